"""A Triton kernel for one hidden state times a weight of packed rows, as onnxruntime's MatMulNBits stores it.

A program goes through many groups of rows. It keeps the hidden state in registers meanwhile, each thread the entries of
the words that it reads, and has the next group's weights under way while it multiplies.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from sparsecc.runtime_ops.triton.dependent_launch import launch_options, starts_early
from sparsecc.runtime_ops.triton.early_start import wait_for_kernel_ahead
from sparsecc.runtime_ops.triton.weight_rows import UNIT, code_at

_MOST_ROWS = 8
_WORDS_OF_THREAD = 4
_THREADS = 32
_MOST_WARPS = 16
_WARPS_OF_MULTIPROCESSOR = 16
_WORD_BITS = tl.constexpr(32)
_MANTISSA_BITS = tl.constexpr(23)
_FACTOR_UNIT = tl.constexpr(2.0**96)
"""By which hidden states are scaled up, since codes are scaled down."""
_SMALLEST = tl.constexpr(2.0**-53)
"""The smallest float32, 2^-149, times _FACTOR_UNIT."""


@triton.jit
def _code_of_place(words, BITS: tl.constexpr, PLACE: tl.constexpr):
    """The numbers of a place in words as float32, times the factor of 2 that :func:`_entries_of_place` divides by.

    A code becomes a float32 as in weight_rows.py: as a subnormal, its other bits cleared. The last places are shifted
    down to where a float32 has its mantissa.
    """
    low: tl.constexpr = _MANTISSA_BITS // BITS
    shift: tl.constexpr = 0 if low > PLACE else _WORD_BITS - low * BITS
    return code_at(words >> shift, PLACE * BITS - shift, BITS)


@triton.jit
def _entries_of_place(hidden_ptr, channel, channels, BITS: tl.constexpr, PLACE: tl.constexpr):
    """The entries of the hidden state that belong to a place in words, finite below 2^31, and the products of what
    stands for 0 with them."""
    low: tl.constexpr = _MANTISSA_BITS // BITS
    bit: tl.constexpr = PLACE * BITS - (0 if low > PLACE else _WORD_BITS - low * BITS)
    entries = tl.load(hidden_ptr + channel + PLACE, mask=channel + PLACE < channels, other=0.0).to(tl.float32)
    return entries * (_FACTOR_UNIT / (UNIT << bit)), entries * (_SMALLEST * (UNIT << (BITS - 1)))


@triton.jit
def _stored_rows(
    packed_ptr, scale_ptr, group, outputs, blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr, WORDS: tl.constexpr
):
    """words[BLOCKS, ROWS, WORDS] and scales[BLOCKS, ROWS] of a group of rows, 0 past the last.

    In this order Triton gives neighbouring blocks to neighbouring threads.
    """
    row = group * ROWS + tl.arange(0, ROWS)
    block = tl.arange(0, BLOCKS)
    mask = (block < blocks)[:, None] & (row < outputs)[None, :]
    place = row[None, :].to(tl.int64) * blocks + block[:, None]
    word = tl.arange(0, WORDS)[None, None, :]
    words = tl.load(packed_ptr + place[:, :, None] * WORDS + word, mask=mask[:, :, None], other=0)
    return words, tl.load(scale_ptr + place, mask=mask, other=0.0)


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
    EARLY: tl.constexpr,
):
    codes: tl.constexpr = _WORD_BITS // BITS
    first = tl.program_id(0)
    words, scales = _stored_rows(packed_ptr, scale_ptr, first, outputs, blocks, ROWS, BLOCKS, WORDS)
    if EARLY:
        wait_for_kernel_ahead()
    channel = (tl.arange(0, BLOCKS)[:, None] * WORDS + tl.arange(0, WORDS)[None, :]) * codes
    entries = ()
    middle = tl.zeros([BLOCKS, WORDS], tl.float32)
    for place in tl.static_range(codes):
        entry, zero = _entries_of_place(hidden_ptr, channel, channels, BITS, place)
        entries = entries + (entry,)
        middle += zero
    middle = tl.sum(middle, 1)[:, None]
    for group in tl.range(first, tl.cdiv(outputs, ROWS), tl.num_programs(0)):
        next_words, next_scales = _stored_rows(
            packed_ptr, scale_ptr, group + tl.num_programs(0), outputs, blocks, ROWS, BLOCKS, WORDS
        )
        products = tl.zeros([BLOCKS, ROWS, WORDS], tl.float32)
        for place in tl.static_range(codes):
            products += _code_of_place(words, BITS, place) * entries[place][:, None, :]
        by_block = (tl.sum(products, 2) - middle) / _SMALLEST * scales.to(tl.float32)
        row = group * ROWS + tl.arange(0, ROWS)
        product = tl.sum(by_block, 0)
        if HAS_BIAS:
            product += tl.load(bias_ptr + row, mask=row < outputs, other=0.0).to(tl.float32)
        tl.store(out_ptr + row, product.to(out_ptr.dtype.element_ty), mask=row < outputs)
        words = next_words
        scales = next_scales


def packed_rows_product(
    hidden: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, bits: int
) -> torch.Tensor:
    """hidden [K] times a weight [N, K] of 4 or 8 bits: [N].

    packed is uint8 [N, blocks, bytes of a block], the middle of the range standing for 0 and the first of two numbers
    in a byte in its low half; scales is [N, blocks]. A bias that is not [N] is torch's to broadcast, or to refuse.
    """
    outputs, blocks, _ = packed.shape
    if bias is not None and bias.shape != (outputs,):
        return packed_rows_product(hidden, packed, scales, None, bits) + bias
    words = packed.contiguous().view(torch.int32)
    out = torch.empty(outputs, dtype=hidden.dtype, device=hidden.device)
    blocks_at_once = triton.next_power_of_2(blocks)
    warps = max(1, min(_MOST_WARPS, blocks_at_once * words.shape[2] // (_WORDS_OF_THREAD * _THREADS)))
    rows = _rows_at_once(blocks_at_once * words.shape[2] // (warps * _THREADS), warps)
    programs = min(triton.cdiv(outputs, rows), _programs(hidden.device, warps))
    _packed_rows[(programs,)](
        hidden.contiguous(),
        words,
        scales.contiguous(),
        hidden if bias is None else bias.contiguous(),
        out,
        outputs,
        blocks,
        hidden.numel(),
        ROWS=rows,
        BLOCKS=blocks_at_once,
        WORDS=words.shape[2],
        BITS=bits,
        HAS_BIAS=bias is not None,
        EARLY=starts_early(hidden.device),
        num_warps=warps,
        **launch_options(hidden.device),
    )
    return out


def _rows_at_once(words_of_thread: int, warps: int) -> int:
    """As many rows as registers hold beside the entries of the hidden state; the most warps have half as many each."""
    rows = _MOST_ROWS * _WORDS_OF_THREAD // max(words_of_thread, _WORDS_OF_THREAD)
    return max(1, rows // 2 if warps == _MOST_WARPS else rows)


@functools.lru_cache
def _programs(device: torch.device, warps: int) -> int:
    """How many programs of that many warps are under way at a time."""
    if device.type != "cuda":
        return 2
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return int(multiprocessors * max(1, _WARPS_OF_MULTIPROCESSOR // warps))
