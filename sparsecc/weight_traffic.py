"""The bytes of weights that decoding a token reads, counted from what thresholds let through."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import onnx_ir as ir

from sparsecc.operators import is_added, is_product
from sparsecc.projections import HEAD, Projection, projections_and_head

_OTHER_PRODUCTS = {("", "Gemm"), ("", "MatMul"), ("com.microsoft", "MatMulNBits")}
"""What multiplies by constants without being a projection: a head that is read whole, above all."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a token reads on average.

    Attributes:
        sparsity: the share of projection bytes that is not read, over the whole model; what a method added beside
            the projections, such as low-rank branches, counts as read. The language-model head is one of the
            projections where it is thresholded, and else none, as in most methods' papers.
        sparsity_by_kind: the same for each kind of projection.
        bytes_per_token: the bytes of all matrix products that are read, the head's among them.
    """

    sparsity: float
    sparsity_by_kind: Mapping[str, float]
    bytes_per_token: float


class WeightTraffic:
    """The bytes of an unfused graph's matrix products, and which of them a token reads."""

    def __init__(self, graph: ir.Graph) -> None:
        self.projections = projections_and_head(graph)
        self.row_bytes = {projection.name: _row_bytes(projection) for projection in self.projections}
        sparse = {projection.node for projection in self.projections}
        others = [node for node in graph if _is_product(node) and node not in sparse]
        of_projections = sum(projection.rows * self.row_bytes[projection.name] for projection in self.projections)
        self._bytes = sum(map(_constant_bytes, others)) + of_projections
        self.added_bytes = sum(map(_constant_bytes, filter(is_added, others)))

    def of(self, active_rows: Mapping[str, float]) -> Traffic:
        """The traffic where a token reads so many rows of the named projections, and all rows of the others.

        A head that is not named is not thresholded.
        """
        skipped: defaultdict[str, float] = defaultdict(float)
        stored: defaultdict[str, float] = defaultdict(float)
        for projection in self.projections:
            if projection.kind == HEAD and projection.name not in active_rows:
                continue
            row_bytes = self.row_bytes[projection.name]
            idle_rows = projection.rows - active_rows.get(projection.name, projection.rows)
            skipped[projection.kind] += idle_rows * row_bytes
            stored[projection.kind] += projection.rows * row_bytes
        total, saved = sum(stored.values()), sum(skipped.values())
        by_kind = {kind: skipped[kind] / stored[kind] for kind in stored}
        return Traffic((saved - self.added_bytes) / total if stored else 0.0, by_kind, self._bytes - saved)


def _row_bytes(projection: Projection) -> float:
    """The bytes that one row of the weight costs, with its scales where it is quantized."""
    weight = projection.weight.const_value
    assert weight is not None
    scales = projection.node.inputs[3] if projection.node.op_type.endswith("NBits") else None
    scale_bytes = scales.const_value.nbytes if scales is not None and scales.const_value is not None else 0
    return (weight.nbytes + scale_bytes) / projection.rows


def _is_product(node: ir.Node) -> bool:
    return (node.domain, node.op_type) in _OTHER_PRODUCTS or is_product(node)


def _constant_bytes(node: ir.Node) -> int:
    constants = [value.const_value for value in node.inputs if value is not None]
    return sum(constant.nbytes for constant in constants if constant is not None)
