"""Gate, up, silu and their product as one operator, so that one kernel computes a feed-forward layer's first half."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from sparsecc.operators import is_sparse_linear
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN

GATED = "Gated"
"""Before the name of a sparse operator: silu of the first half of its columns times the second."""
_WEIGHT = 2
"""Among the inputs of a sparse projection."""


@dataclasses.dataclass(frozen=True)
class _Gating:
    """Nodes that compute silu(gate) * up of the two halves of a product's columns."""

    product: ir.Node
    split: ir.Node
    sigmoid: ir.Node
    silu: ir.Node
    result: ir.Node

    @property
    def is_read_only_here(self) -> bool:
        """Whether nothing else reads what lies between the product and the result."""
        reads = {
            self.product.outputs[0]: 1,
            self.split.outputs[0]: 2,
            self.split.outputs[1]: 1,
            self.sigmoid.outputs[0]: 1,
            self.silu.outputs[0]: 1,
        }
        return all(len(value.uses()) == count and not value.is_graph_output() for value, count in reads.items())


class FuseGatedLinearPass(ir.passes.InPlacePass):
    """Replace SparseLinear, Split, Sigmoid, Mul and Mul by one node of the executor's own.

    The gate must be the first and up the second half of the columns, as :class:`sparsecc.passes.MergeProductsPass` puts
    them, and nothing else may read what lies between.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gatings = [gating for node in model.graph if (gating := _gating(node)) is not None]
        for gating in gatings:
            _fuse(model.graph, gating)
        return ir.passes.PassResult(model, bool(gatings))


def _gating(result: ir.Node) -> _Gating | None:
    """What ends in a Mul, if that computes silu(first) * second of a split product that nothing else reads."""
    if not _is(result, "Mul") or len(result.inputs) != 2:
        return None
    for activated, up in (result.inputs, reversed(result.inputs)):
        silu, sigmoid, gate = _silu(activated)
        split = gate.producer() if gate is not None else None
        if split is None or silu is None or sigmoid is None or [gate, up] != list(split.outputs):
            continue
        product = _halved_product(split)
        if product is not None and (gating := _Gating(product, split, sigmoid, silu, result)).is_read_only_here:
            return gating
    return None


def _silu(value: ir.Value | None) -> tuple[ir.Node | None, ir.Node | None, ir.Value | None]:
    """Where the value is x * sigmoid(x): the Mul, the Sigmoid and x."""
    node = value.producer() if value is not None else None
    if node is not None and _is(node, "Mul") and len(node.inputs) == 2:
        for gate, activation in (node.inputs, reversed(node.inputs)):
            sigmoid = activation.producer() if activation is not None else None
            if sigmoid is not None and _is(sigmoid, "Sigmoid") and sigmoid.inputs[0] is gate:
                return node, sigmoid, gate
    return None, None, None


def _halved_product(split: ir.Node) -> ir.Node | None:
    """The sparse projection whose columns a node splits in the middle, if it does."""
    if not _is(split, "Split") or split.attributes.get_int("axis", 0) != -1 or len(split.inputs) != 2:
        return None
    product = split.inputs[0].producer() if split.inputs[0] is not None else None
    if product is None or not is_sparse_linear(product) or len(product.inputs) <= _WEIGHT:
        return None
    widths, weight = (
        None if value is None else value.const_value for value in (split.inputs[1], product.inputs[_WEIGHT])
    )
    if widths is None or weight is None:
        return None
    columns = weight.shape.numpy()[-1]
    return product if widths.numpy().tolist() == [columns / 2] * 2 else None


def _is(node: ir.Node, op_type: str) -> bool:
    return (node.domain, node.op_type) == ("", op_type)


def _fuse(graph: ir.Graph, gating: _Gating) -> None:
    product = gating.product
    fused = ir.node(
        GATED + product.op_type,
        product.inputs,
        {name: attribute.value for name, attribute in product.attributes.items()},
        domain=EXECUTOR_DOMAIN,
        name=f"{product.name}/gated",
    )
    replaced = [gating.result, gating.silu, gating.sigmoid, gating.split, product]
    ir.convenience.replace_nodes_and_values(
        graph, gating.result, replaced, [fused], gating.result.outputs, fused.outputs
    )
