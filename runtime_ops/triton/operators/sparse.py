"""The sparse operators of the domain ``ai.sparsecc``; what they mean is said in sparsecc.runtime_ops.definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import torch
from torch.nn import functional

from sparsecc.operators import DOMAIN
from sparsecc.runtime_ops.triton.fuse_gated_linear import GATED
from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement
from sparsecc.runtime_ops.triton.projection import BlockedWeight, PlainWeight, Projection, Weight
from sparsecc.runtime_ops.triton.reference import kept
from sparsecc.runtime_ops.triton.sparse_linear import gated_linear, sparse_linear


def _bind_threshold(node: ir.Node, _placement: Placement) -> Kernel:
    limit = node.attributes.get_int("max_sparse_rows", 0)

    def threshold(hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        rows = math.prod(hidden.shape[:-1])
        return kept(hidden, bounds, dense=0 < limit < rows)

    return threshold


def _gather_active(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    indices = (hidden.reshape(-1, hidden.shape[-1]) != 0).any(dim=0).nonzero().squeeze(1)
    return hidden[..., indices], indices


def _bind_sparse_matmul(_node: ir.Node, _placement: Placement) -> Kernel:
    def sparse_matmul(
        values: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return _product(values, indices, PlainWeight(weight).dense(values.dtype), bias)

    return sparse_matmul


def _bind_sparse_matmul_nbits(node: ir.Node, _placement: Placement) -> Kernel:
    block_size = node.attributes.get_int("block_size", 32)

    def sparse_matmul_nbits(
        values: torch.Tensor,
        indices: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return _product(values, indices, BlockedWeight(codes, scales, block_size).dense(values.dtype), bias)

    return sparse_matmul_nbits


def _product(
    values: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    rows = weight if indices.numel() == weight.shape[0] else weight[indices]
    product = values @ rows
    return product if bias is None else product + bias


def _bind_sparse_linear(node: ir.Node, _placement: Placement) -> Kernel:
    limit, compute = node.attributes.get_int("max_sparse_rows", 0), _projection_of(node)

    def linear(
        hidden: torch.Tensor, bounds: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return compute(hidden, PlainWeight(weight), bounds, bias, limit)

    return linear


def _bind_sparse_linear_nbits(node: ir.Node, _placement: Placement) -> Kernel:
    limit, compute = node.attributes.get_int("max_sparse_rows", 0), _projection_of(node)
    block_size = node.attributes.get_int("block_size", 32)

    def linear_nbits(
        hidden: torch.Tensor,
        bounds: torch.Tensor,
        codes: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return compute(hidden, BlockedWeight(codes, scales, block_size), bounds, bias, limit)

    return linear_nbits


_Compute = Callable[[torch.Tensor, Weight, torch.Tensor, torch.Tensor | None, int], torch.Tensor]


def _projection_of(node: ir.Node) -> _Compute:
    return _gated if node.op_type.startswith(GATED) else _linear


def _linear(
    hidden: torch.Tensor, weight: Weight, bounds: torch.Tensor, bias: torch.Tensor | None, limit: int
) -> torch.Tensor:
    projection = Projection(weight, (bounds,), (weight.shape[1],), bias, limit)
    if projection.is_dense(math.prod(hidden.shape[:-1])):
        product = hidden @ weight.dense(hidden.dtype)
        return product if bias is None else product + bias
    return sparse_linear(hidden, projection)


def _gated(
    hidden: torch.Tensor, weight: Weight, bounds: torch.Tensor, bias: torch.Tensor | None, limit: int
) -> torch.Tensor:
    projection = Projection(weight, (bounds,), (weight.shape[1],), bias, limit)
    if projection.is_dense(math.prod(hidden.shape[:-1])):
        gate, up = _linear(hidden, weight, bounds, bias, limit).chunk(2, dim=-1)
        return functional.silu(gate) * up
    return gated_linear(hidden, projection)


OPERATORS = {
    (DOMAIN, "GatherActive"): Operator(lambda _node, _placement: _gather_active),
    (DOMAIN, GATED + "SparseLinear"): Operator(_bind_sparse_linear, frozenset({1})),
    (DOMAIN, GATED + "SparseLinearNBits"): Operator(_bind_sparse_linear_nbits, frozenset({1, 2, 3})),
    (DOMAIN, "SparseLinear"): Operator(_bind_sparse_linear, frozenset({1})),
    (DOMAIN, "SparseLinearNBits"): Operator(_bind_sparse_linear_nbits, frozenset({1, 2, 3})),
    (DOMAIN, "SparseMatMul"): Operator(_bind_sparse_matmul),
    (DOMAIN, "SparseMatMulNBits"): Operator(_bind_sparse_matmul_nbits, frozenset({2, 3})),
    (DOMAIN, "Threshold"): Operator(_bind_threshold, frozenset({1})),
}
