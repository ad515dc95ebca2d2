"""A sparse projection in one node, also with what the executor's passes put into it."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import onnx_ir as ir
import torch

from sparsecc.operators import DOMAIN
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN
from sparsecc.runtime_ops.triton.fuse_gated_linear import GATED
from sparsecc.runtime_ops.triton.fuse_norms import ADDED, INPUTS, NORMED
from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement
from sparsecc.runtime_ops.triton.projection import BlockedWeight, Norm, PlainWeight, Projection
from sparsecc.runtime_ops.triton.sparse_linear import added_linear, gated_linear, sparse_linear


@dataclasses.dataclass(frozen=True)
class _Form:
    """Which of the operators: what the passes put before its name, and what it is made from."""

    added: bool
    normed: bool
    gated: bool
    base: str

    @property
    def name(self) -> str:
        return ADDED * self.added + NORMED * self.normed + GATED * self.gated + self.base

    @property
    def domain(self) -> str:
        return EXECUTOR_DOMAIN if self.added or self.normed or self.gated else DOMAIN

    @property
    def as_stored(self) -> frozenset[int]:
        """Thresholds, and weights with scales."""
        return frozenset({1, 2, 3} if self.is_quantized else {1})

    @property
    def is_quantized(self) -> bool:
        return self.base == "SparseLinearNBits"

    def bind(self, node: ir.Node, _placement: Placement) -> Kernel:
        limit, block_size = node.attributes.get_int("max_sparse_rows", 0), node.attributes.get_int("block_size", 32)
        epsilon = node.attributes.get_float("epsilon", 0.0)

        def compute(
            hidden: torch.Tensor, bounds: torch.Tensor, stored: torch.Tensor, *others: Any
        ) -> torch.Tensor | tuple[torch.Tensor, ...]:
            rest = iter(others)
            weight = BlockedWeight(stored, next(rest), block_size) if self.is_quantized else PlainWeight(stored)
            projection = Projection(weight, (bounds,), (weight.shape[1],), next(rest, None), limit)
            norm = Norm(next(rest), next(rest), epsilon) if self.normed else None
            if self.added:
                return added_linear(hidden, projection, next(rest), norm)
            return (gated_linear if self.gated else sparse_linear)(hidden, projection, norm)

        return compute


_FORMS = (_Form(*form) for form in itertools.product((False, True), (False, True), (False, True), INPUTS))

OPERATORS = {
    (form.domain, form.name): Operator(form.bind, form.as_stored) for form in _FORMS if not form.added or not form.gated
}
