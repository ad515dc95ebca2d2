"""Operators whose weights are small integers with scales by block: they are dequantized where they are used."""

from __future__ import annotations

import onnx_ir as ir
import torch

from sparsecc.runtime_ops.triton.operators.host_values import copy_on
from sparsecc.runtime_ops.triton.operators.operator import (
    Kernel,
    Operator,
    Placement,
    has_input,
    is_for_triton,
    require,
)
from sparsecc.runtime_ops.triton.projection import unpacked_int4

_CONTRIB_BITS = (2, 4, 8)


def unpacked(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first ``count`` unsigned numbers of each row of bytes [..., B], low bits first: uint8 [..., count]."""
    if bits == 8:
        return packed[..., :count]
    fields = [packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)]
    return torch.stack(fields, dim=-1).flatten(-2)[..., :count]


def _centred(
    codes: torch.Tensor, zero_points: torch.Tensor | None, bits: int, blocks: int
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Codes, and zero points by block, unpacked: the middle of the range where none are given."""
    if zero_points is None:
        return codes, float(1 << (bits - 1))
    if zero_points.dtype == torch.uint8:
        zero_points = unpacked(zero_points.reshape(*codes.shape[:-1], -1), bits, blocks)
    return codes, zero_points.reshape(*codes.shape[:-1], blocks).float()


def _dequantized_rows(
    packed: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    bits: int,
    block_size: int,
    columns: int,
) -> torch.Tensor:
    """float32 [..., columns] of rows whose bytes [..., B] hold blocks with one scale [..., blocks] each."""
    blocks = scales.shape[-1]
    codes, centres = _centred(unpacked(packed, bits, blocks * block_size), zero_points, bits, blocks)
    by_block = codes.reshape(*codes.shape[:-1], blocks, -1).float()
    centre = centres.unsqueeze(-1) if isinstance(centres, torch.Tensor) else centres
    return ((by_block - centre) * scales.float().unsqueeze(-1)).flatten(-2)[..., :columns]


def _bind_matmul_nbits(node: ir.Node, _placement: Placement) -> Kernel:
    channels, columns = node.attributes.get_int("K"), node.attributes.get_int("N")
    bits, block_size = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size")
    require(bits in _CONTRIB_BITS, node, f"has weights of {bits} bits")
    require(not node.attributes.get_int("weight_prepacked", 0), node, "has a prepacked weight")
    require(not has_input(node, 4), node, "has a g_idx")
    blocks = -(-channels // block_size)
    has_kernel = bits in (4, 8) and not has_input(node, 3)

    def matmul_nbits(
        hidden: torch.Tensor,
        packed: torch.Tensor,
        scales: torch.Tensor,
        zero_points: torch.Tensor | None = None,
        _group: None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        scales = scales.reshape(columns, blocks)
        if has_kernel and is_for_triton(hidden) and hidden.numel() == channels:
            from sparsecc.runtime_ops.triton.packed_rows import packed_rows_product

            rows = packed.reshape(columns, blocks, -1)
            return packed_rows_product(hidden, rows, scales, bias, bits).reshape(*hidden.shape[:-1], columns)
        packed = packed.reshape(columns, -1)
        weight = _dequantized_rows(packed, scales, zero_points, bits, block_size, channels).to(hidden.dtype)
        return torch.nn.functional.linear(hidden, weight, bias)

    return matmul_nbits


def _bind_gather_block_quantized(node: ir.Node, placement: Placement) -> Kernel:
    bits, block_size = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
    table = node.inputs[0]
    rank = None if table is None or table.shape is None else len(table.shape)
    axis = node.attributes.get_int("quantize_axis", 1)
    require(node.attributes.get_int("gather_axis", 0) == 0, node, "gathers other than rows")
    require(rank is None or axis in (-1, rank - 1), node, "has blocks that are not along the last axis")
    require(table is None or table.dtype in (None, ir.DataType.UINT8), node, "has a table that is not packed bytes")
    require(bits in _CONTRIB_BITS, node, f"has a table of {bits} bits")

    def gather_block_quantized(
        table: torch.Tensor, indices: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = copy_on(indices, table.device).long()
        chosen = None if zero_points is None else zero_points[rows]
        columns = table.shape[-1] * 8 // bits
        return _dequantized_rows(table[rows], scales[rows], chosen, bits, block_size, columns).to(placement.dtype)

    return gather_block_quantized


def _bind_dequantize_linear(node: ir.Node, placement: Placement) -> Kernel:
    axis, block_size = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    codes = node.inputs[0]
    is_int4 = codes is not None and codes.dtype == ir.DataType.INT4
    require(not (is_int4 and has_input(node, 2)), node, "has int4 weights with zero points")

    def dequantize_linear(
        codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor | None = None
    ) -> torch.Tensor:
        wide = (unpacked_int4(codes) if is_int4 else codes).float()
        if zero_points is not None:
            wide = wide - _by_entry(zero_points.float(), axis, block_size, wide)
        return (wide * _by_entry(scales.float(), axis, block_size, wide)).to(placement.dtype)

    return dequantize_linear


def _by_entry(scales: torch.Tensor, axis: int, block_size: int, entries: torch.Tensor) -> torch.Tensor:
    """Scales of blocks along an axis, of that whole axis or of all, such that they multiply the entries."""
    if block_size:
        return scales.repeat_interleave(block_size, dim=axis).narrow(axis, 0, entries.shape[axis])
    if scales.numel() == 1:
        return scales.reshape(())
    return scales.reshape([-1 if place == axis % entries.dim() else 1 for place in range(entries.dim())])


OPERATORS = {
    ("", "DequantizeLinear"): Operator(_bind_dequantize_linear, frozenset({0, 1, 2})),
    ("com.microsoft", "GatherBlockQuantized"): Operator(_bind_gather_block_quantized, frozenset({0, 2, 3})),
    ("com.microsoft", "MatMulNBits"): Operator(_bind_matmul_nbits, frozenset({1, 2, 3})),
}
