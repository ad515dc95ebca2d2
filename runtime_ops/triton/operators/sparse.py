"""The sparse operators one by one; what they mean is said in sparsecc.runtime_ops.definitions."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch

from sparsecc.operators import DOMAIN
from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement
from sparsecc.runtime_ops.triton.projection import BlockedWeight, PlainWeight
from sparsecc.runtime_ops.triton.reference import kept


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


OPERATORS = {
    (DOMAIN, "GatherActive"): Operator(lambda _node, _placement: _gather_active),
    (DOMAIN, "SparseMatMul"): Operator(_bind_sparse_matmul),
    (DOMAIN, "SparseMatMulNBits"): Operator(_bind_sparse_matmul_nbits, frozenset({2, 3})),
    (DOMAIN, "Threshold"): Operator(_bind_threshold, frozenset({1})),
}
