"""A Triton kernel for one hidden state times a weight of packed rows, as onnxruntime's MatMulNBits stores it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecc.runtime_ops.triton.weight_rows import UNIT, code_at

_ROWS = 32
_BLOCKS_AT_ONCE = 32
_WARPS = 4
_WORD_BITS = tl.constexpr(32)
_MANTISSA_BITS = tl.constexpr(23)
_FACTOR_UNIT = tl.constexpr(2.0**96)
"""By which hidden states are scaled up, since codes are scaled down."""
_SMALLEST = tl.constexpr(2.0**-53)
"""The smallest float32, 2^-149, times _FACTOR_UNIT."""


@triton.jit
def _product_of_place(words, hidden_ptr, channel, channels, BITS: tl.constexpr, PLACE: tl.constexpr):
    """The numbers of a place in words[R, B, W] times their entries of the hidden state, and times _SMALLEST.

    A code becomes a float32 as in weight_rows.py: as a subnormal, its other bits cleared. What stands for 0 is
    subtracted from it, exactly. The last places are shifted down to where a float32 has its mantissa. Entries are
    finite below 2^31.
    """
    low: tl.constexpr = _MANTISSA_BITS // BITS
    shift: tl.constexpr = 0 if low > PLACE else _WORD_BITS - low * BITS
    bit: tl.constexpr = PLACE * BITS - shift
    zero: tl.constexpr = 2.0**-149 * (UNIT << (bit + BITS - 1))
    code = code_at(words >> shift, bit, BITS)
    entry = tl.load(hidden_ptr + channel + PLACE, mask=channel + PLACE < channels, other=0.0).to(tl.float32)
    return (code - zero) * (entry * (_FACTOR_UNIT / (UNIT << bit)))[None, :, :]


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
    WORDS: tl.constexpr,
    BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    codes: tl.constexpr = _WORD_BITS // BITS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < outputs
    word = tl.arange(0, WORDS)
    total = tl.zeros([ROWS, BLOCKS], tl.float32)
    for start in tl.range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        is_block = is_row[:, None] & (block < blocks)[None, :]
        place = row[:, None].to(tl.int64) * blocks + block[None, :]
        words = tl.load(
            packed_ptr + place[:, :, None] * WORDS + word[None, None, :], mask=is_block[:, :, None], other=0
        )
        scale = tl.load(scale_ptr + place, mask=is_block, other=0.0).to(tl.float32)
        channel = (block[:, None] * WORDS + word[None, :]) * codes
        products = tl.zeros([ROWS, BLOCKS, WORDS], tl.float32)
        for code in tl.static_range(codes):
            products += _product_of_place(words, hidden_ptr, channel, channels, BITS, code)
        total += tl.sum(products, 2) / _SMALLEST * scale
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
    outputs, blocks, _ = packed.shape
    words = packed.view(torch.int32)
    out = torch.empty(outputs, dtype=hidden.dtype, device=hidden.device)
    _packed_rows[(triton.cdiv(outputs, _ROWS),)](
        hidden,
        words,
        scales,
        hidden if bias is None else bias,
        out,
        outputs,
        blocks,
        hidden.numel(),
        ROWS=_ROWS,
        BLOCKS=_BLOCKS_AT_ONCE,
        WORDS=words.shape[2],
        BITS=bits,
        HAS_BIAS=bias is not None,
        num_warps=_WARPS,
    )
    return out
