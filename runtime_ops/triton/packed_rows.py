"""A Triton kernel for one hidden state times a weight of packed rows, as onnxruntime's MatMulNBits stores it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROWS = 16
_BLOCKS_AT_ONCE = 32
_WARPS = 4


@triton.jit
def _number(code, ZERO: tl.constexpr):
    """A byte less the one that stands for 0, as float32.

    The byte becomes the last bits of 2^23, from which the difference is exact: a conversion would take four times as
    long as these two instructions.
    """
    return (code.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + ZERO)


@triton.jit
def _packed_rows(
    hidden_ptr,
    packed_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    outputs,
    blocks,
    channels,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    BYTES: tl.constexpr,
    BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < outputs
    byte = tl.arange(0, BYTES)
    total = tl.zeros([ROWS, BLOCKS], tl.float32)
    for start in tl.range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        is_block = is_row[:, None] & (block < blocks)[None, :]
        place = row[:, None].to(tl.int64) * blocks + block[None, :]
        codes = tl.load(
            packed_ptr + place[:, :, None] * BYTES + byte[None, None, :], mask=is_block[:, :, None], other=0
        )
        scale = tl.load(scale_ptr + place, mask=is_block, other=0.0).to(tl.float32)
        channel = (block[:, None] * BYTES + byte[None, :]) * (8 // BITS)
        first = tl.load(hidden_ptr + channel, mask=channel < channels, other=0.0).to(tl.float32)
        if BITS == 4:
            second = tl.load(hidden_ptr + channel + 1, mask=channel + 1 < channels, other=0.0).to(tl.float32)
            low, high = _number(codes & 15, 8), _number(codes >> 4, 8)
            products = low * first[None, :, :] + high * second[None, :, :]
        else:
            products = _number(codes, 128) * first[None, :, :]
        total += tl.sum(products, 2) * scale
    product = tl.sum(total, 1)
    if HAS_BIAS:
        product += tl.load(bias_ptr + row, mask=is_row, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, product.to(out_ptr.dtype.element_ty), mask=is_row)


def packed_rows_product(
    hidden: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """hidden [K] times a weight [N, K] of 4 or 8 bits: [N].

    packed is uint8 [N, blocks, bytes of a block], the middle of the range standing for 0 and the first of two numbers
    in a byte in its low half; scales is [N, blocks].
    """
    outputs, blocks, block_bytes = packed.shape
    out = torch.empty(outputs, dtype=hidden.dtype, device=hidden.device)
    _packed_rows[(triton.cdiv(outputs, _ROWS),)](
        hidden,
        packed,
        scales,
        hidden if bias is None else bias,
        out,
        outputs,
        blocks,
        hidden.numel(),
        ROWS=_ROWS,
        BLOCKS=_BLOCKS_AT_ONCE,
        BYTES=block_bytes,
        BITS=bits,
        HAS_BIAS=bias is not None,
        num_warps=_WARPS,
    )
    return out
