"""The sparse operators one by one; what they mean is said in sparsecc.runtime_ops.definitions."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch.nn import functional

from sparsecc.operators import DOMAIN
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN
from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement, require
from sparsecc.runtime_ops.triton.projection import BlockedWeight, PlainWeight
from sparsecc.runtime_ops.triton.read_every_channel import EVERY_CHANNEL
from sparsecc.runtime_ops.triton.reference import kept


def _bind_threshold(node: ir.Node, _placement: Placement) -> Kernel:
    limit = node.attributes.get_int("max_sparse_rows", 0)

    def threshold(hidden: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        rows = math.prod(hidden.shape[:-1])
        return kept(hidden, bounds, dense=0 < limit < rows)

    return threshold


def _bind_keep_largest(node: ir.Node, _placement: Placement) -> Kernel:
    count, limit = node.attributes.get_int("k"), node.attributes.get_int("max_sparse_rows", 0)
    require(count >= 0, node, "keeps fewer than no channels")

    def keep_largest(hidden: torch.Tensor) -> torch.Tensor:
        if 0 < limit < math.prod(hidden.shape[:-1]):
            return hidden
        numbers = torch.where(hidden.isnan(), 0, hidden)
        largest = numbers.abs().argsort(dim=-1, descending=True, stable=True)[..., :count]
        return torch.zeros_like(numbers).scatter(-1, largest, numbers.gather(-1, largest))

    return keep_largest


def _every_channel(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden, torch.arange(hidden.shape[-1], device=hidden.device)


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
    product = values @ _chosen(weight, indices)
    return product if bias is None else product + bias


def _gather_matmul(hidden: torch.Tensor, indices: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return hidden @ _chosen(PlainWeight(weight).dense(hidden.dtype), indices).t()


def _bind_gather_matmul_nbits(node: ir.Node, _placement: Placement) -> Kernel:
    block_size = node.attributes.get_int("block_size", 32)

    def gather_matmul_nbits(
        hidden: torch.Tensor, indices: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
    ) -> torch.Tensor:
        return hidden @ _chosen(BlockedWeight(codes, scales, block_size).dense(hidden.dtype), indices).t()

    return gather_matmul_nbits


def _chosen(weight: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The rows of a weight, which is not copied where all of them are read."""
    return weight if indices.numel() == weight.shape[0] else weight[indices]


def _swiglu(tensor: torch.Tensor) -> torch.Tensor:
    gate, up = tensor.tensor_split(2, dim=-1)
    return functional.silu(gate) * up


OPERATORS = {
    (EXECUTOR_DOMAIN, EVERY_CHANNEL): Operator(lambda _node, _placement: _every_channel),
    (DOMAIN, "GatherActive"): Operator(lambda _node, _placement: _gather_active),
    (DOMAIN, "GatherMatMul"): Operator(lambda _node, _placement: _gather_matmul),
    (DOMAIN, "GatherMatMulNBits"): Operator(_bind_gather_matmul_nbits, frozenset({2, 3})),
    (DOMAIN, "KeepLargest"): Operator(_bind_keep_largest),
    (DOMAIN, "SparseMatMul"): Operator(_bind_sparse_matmul),
    (DOMAIN, "SparseMatMulNBits"): Operator(_bind_sparse_matmul_nbits, frozenset({2, 3})),
    (DOMAIN, "SwiGLU"): Operator(lambda _node, _placement: _swiglu),
    (DOMAIN, "Threshold"): Operator(_bind_threshold, frozenset({1})),
}
