"""The kernel of one token: a projection of one hidden state through the weight rows of its active channels."""

import triton
import triton.language as tl

from sparsecc.runtime_ops.triton.compaction import compact
from sparsecc.runtime_ops.triton.early_start import let_next_kernel_start, prefetch_rows, wait_for_kernel_ahead
from sparsecc.runtime_ops.triton.split_sum import collect, leave
from sparsecc.runtime_ops.triton.weight_rows import add_rows, no_rows, total_of


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def tile_of_segment(tile, width0, width1, width2, BLOCK: tl.constexpr):
    """Of a tile of columns: its segment, the first column of the segment, its first column in that, and the width."""
    tiles0 = tl.cdiv(width0, BLOCK)
    tiles1 = tl.cdiv(width1, BLOCK)
    in1 = tile >= tiles0
    in2 = tile >= tiles0 + tiles1
    segment = in1.to(tl.int32) + in2.to(tl.int32)
    before = tl.where(in2, width0 + width1, tl.where(in1, width0, 0))
    within = (tile - tl.where(in2, tiles0 + tiles1, tl.where(in1, tiles0, 0))) * BLOCK
    width = tl.where(in2, width2, tl.where(in1, width1, width0))
    return segment, before, within, width


@triton.jit
def inverse_deviation(part_ptr, parts, K, epsilon, NORMED: tl.constexpr, PARTS: tl.constexpr):
    """1 / sqrt(mean square of K entries + epsilon) of the sum of squares in parts; without NORMED nothing reads it."""
    inverse = epsilon
    if NORMED:
        part = tl.arange(0, PARTS)
        squares = tl.load(part_ptr + part, mask=part < parts, other=0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(squares, 0) / K + epsilon)
    return inverse


@triton.jit
def gated_if(by_half, GATED: tl.constexpr, BLOCK: tl.constexpr):
    """silu(gate) * up of [2, BLOCK], or [BLOCK] of [1, BLOCK]."""
    if GATED:
        half = tl.arange(0, 2)[:, None]
        y = silu(tl.sum(tl.where(half == 0, by_half, 0.0), 0)) * tl.sum(tl.where(half == 1, by_half, 0.0), 0)
    else:
        y = tl.reshape(by_half, [BLOCK])
    return y


@triton.jit(do_not_specialize=["length", "rows_ahead"])
def one_row_kernel(
    x_ptr, threshold_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, index_ptr, slot_ptr,
    gain_ptr, part_ptr, parts, epsilon, residual_ptr, square_ptr,
    K, N, blocks, block_size, row_bytes, width0, width1, width2, length, rows_ahead,
    KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    UNROLL: tl.constexpr, SLICE: tl.constexpr, SPLITS: tl.constexpr, AT_ONCE: tl.constexpr,
    EVEN: tl.constexpr, COMPACT: tl.constexpr, PER_CHANNEL: tl.constexpr, SHARED: tl.constexpr, BIAS: tl.constexpr,
    EARLY: tl.constexpr, NORMED: tl.constexpr, PARTS: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """y[N] = kept(x)[K] @ W + bias in segments with thresholds of their own; or silu(gate) * up of two halves, [N / 2].

    With NORMED x is put through its RMS norm first: x / sqrt(mean of x² + epsilon) * gain[K], where the sum of x² comes
    in ``parts``, at most PARTS. With ADDED y is added to a residual [N], and what tiles contribute to the sum of its
    squares is written: that is the next norm's sum in parts.

    The program (tile, split) adds up the active channels of the split-th slice of ``length`` input channels for BLOCK
    columns, of both halves if gated. With EARLY it starts before the kernel ahead ends.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    first = split * length
    HALVES: tl.constexpr = 2 if GATED else 1
    SEGMENTS: tl.constexpr = 1 if SHARED else 2
    WIDTH: tl.constexpr = HALVES * BLOCK
    if EARLY:
        rows = tl.maximum(tl.minimum(rows_ahead, K - first), 0)
        prefetch_rows(w_ptr, row_bytes, first, rows, tile, tl.num_programs(0))
        wait_for_kernel_ahead()
    if GATED:
        segment = 0
        before = 0
        within = tile * BLOCK
        width = width0
        half_offset = width0
    else:
        segment, before, within, width = tile_of_segment(tile, width0, width1, width2, BLOCK)
        half_offset = 0
    column = before + within
    limit = width - within

    inverse = inverse_deviation(part_ptr, parts, K, epsilon, NORMED, PARTS)
    index_ptr += (split * tl.num_programs(0) + tile) * SLICE
    count = tl.minimum(first + length, K) - first
    if COMPACT:
        count = compact(
            x_ptr, gain_ptr, inverse, threshold_ptr, index_ptr, segment, first, first + count, K,
            SEGMENTS, SLICE, PER_CHANNEL, NORMED,
        )  # fmt: skip
    sums = add_rows(
        no_rows(KIND, GROUP, HALVES, BLOCK, RUN), x_ptr, gain_ptr, inverse, threshold_ptr, w_ptr, scale_ptr,
        index_ptr, segment, first, count, column, half_offset, limit, K, N, blocks, block_size,
        KIND, HALVES, BLOCK, RUN, GROUP, UNROLL, EVEN, COMPACT, PER_CHANNEL, SHARED, NORMED,
    )  # fmt: skip
    total = total_of(sums, KIND, WIDTH)
    if EARLY:
        let_next_kernel_start()

    offset = tl.arange(0, BLOCK)
    inside = offset < limit
    if ADDED:
        needed = offset < tl.where(split == SPLITS - 1, limit, 0)
        residual = tl.load(residual_ptr + column + offset, mask=needed, other=0.0).to(tl.float32)
    if SPLITS > 1:
        slot_ptr += tile * (SPLITS - 1) * WIDTH
        if split < SPLITS - 1:
            leave(slot_ptr + split * WIDTH + tl.arange(0, WIDTH), total)
        else:
            total += collect(slot_ptr, SPLITS - 1, WIDTH, WIDTH, SPLITS - 1, AT_ONCE)
    if split == SPLITS - 1:
        half = tl.arange(0, HALVES)[:, None]
        by_half = tl.reshape(total, [HALVES, BLOCK])
        if BIAS:
            bias = tl.load(bias_ptr + column + half * half_offset + offset[None, :], mask=inside[None, :], other=0.0)
            by_half += bias.to(tl.float32)
        y = gated_if(by_half, GATED, BLOCK).to(y_ptr.dtype.element_ty)
        if ADDED:
            y = (residual + y.to(tl.float32)).to(y.dtype)
            known = tl.where(inside, y.to(tl.float32), 0.0)
            tl.store(square_ptr + tile, tl.sum(known * known, 0))
        tl.store(y_ptr + column + offset, y, mask=inside)
