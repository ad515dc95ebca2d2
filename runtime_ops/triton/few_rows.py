"""The kernel of a few tokens at a time: 2 to 16 rows through the weight rows that any of them needs."""

import triton
import triton.language as tl

from sparsecc.runtime_ops.triton.compaction import is_kept, thresholds_of
from sparsecc.runtime_ops.triton.one_row import silu, tile_of_segment
from sparsecc.runtime_ops.triton.split_sum import collect, leave
from sparsecc.runtime_ops.triton.weight_rows import INT4, PLAIN


@triton.jit
def compact_union(
    x_ptr, threshold_ptr, index_ptr, segment, first, end, rows, K,
    SEGMENTS: tl.constexpr, SLICE: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """Write the channels of [first, end) that any row of x[rows, K] keeps in any segment, ascending; their number."""
    k = first + tl.arange(0, SLICE)
    inside = k < end
    active = tl.zeros([SLICE], tl.int1)
    for row in tl.range(0, rows):
        x = tl.load(x_ptr + row * K + k, mask=inside, other=0.0).to(tl.float32)
        for other in tl.static_range(SEGMENTS):
            active = active | is_kept(x, thresholds_of(threshold_ptr, segment + other, k, inside, K, PER_CHANNEL))
    place = tl.cumsum(active.to(tl.int32), 0)
    tl.store(index_ptr + place - 1, k, mask=active)
    count = tl.max(place, 0)
    tl.debug_barrier()
    return count


@triton.jit
def weight_tile(w_ptr, scale_ptr, k, live, column, inside, N, blocks, block_size, KIND: tl.constexpr):
    """The weights of channels k at columns, [channels, columns]: as stored if plain, else float32."""
    row = k.to(tl.int64)[:, None]
    mask = live[:, None] & inside[None, :]
    if KIND == PLAIN:
        tile = tl.load(w_ptr + row * N + column[None, :], mask=mask, other=0.0)
    else:
        if KIND == INT4:
            word = tl.load(w_ptr + (row * N + column[None, :]) // 8, mask=mask, other=0)
            code = (((word >> (column[None, :] % 8) * 4) & 15) ^ 8) - 8
        else:
            code = tl.load(w_ptr + row * N + column[None, :], mask=mask, other=0)
        scale = tl.load(scale_ptr + row * blocks + column[None, :] // block_size, mask=mask, other=0.0)
        tile = code.to(tl.float32) * scale.to(tl.float32)
    return tile


@triton.jit
def products(
    x_ptr, threshold_ptr, w_ptr, scale_ptr, index_ptr, segment, count, rows, column, inside, K, N, blocks, block_size,
    KIND: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr, PER_CHANNEL: tl.constexpr,
    SHARED: tl.constexpr,
):  # fmt: skip
    """kept(x)[ROWS, count channels] @ W[those channels, columns] in float32.

    Unless gate and up are SHARED by a threshold, some of the channels may be kept for the other half alone: 0 times
    their weights would be NaN where those are infinite, so they are not read.

    Operands of 16 bits go to the matrix units as they are. float32 is split into three parts that they take (tf32x3),
    which errs about as little as float32 itself.
    """
    row = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.range(0, count, CHANNELS):
        place = start + tl.arange(0, CHANNELS)
        live = place < count
        k = tl.load(index_ptr + place, mask=live, other=0)
        x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=(row < rows)[:, None] & live[None, :], other=0.0)
        threshold = thresholds_of(threshold_ptr, segment, k, live, K, PER_CHANNEL)
        if PER_CHANNEL:
            threshold = threshold[None, :]
        x = tl.where(is_kept(x.to(tl.float32), threshold), x, 0.0).to(x.dtype)
        if not SHARED:
            live = live & (tl.max((x != 0.0).to(tl.int32), 0) > 0)
        tile = weight_tile(w_ptr, scale_ptr, k, live, column, inside, N, blocks, block_size, KIND)
        if x.dtype == tile.dtype and x.dtype != tl.float32:
            total = tl.dot(x, tile, total)
        else:
            total = tl.dot(x.to(tl.float32), tile.to(tl.float32), total, input_precision="tf32x3")
    return total


@triton.jit
def few_rows_kernel(
    x_ptr, threshold_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, index_ptr, slot_ptr,
    rows, K, N, blocks, block_size, width0, width1, width2, length,
    KIND: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
    SLICE: tl.constexpr, SPLITS: tl.constexpr, AT_ONCE: tl.constexpr,
    PER_CHANNEL: tl.constexpr, SHARED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """y[rows, N] = kept(x)[rows, K] @ W + bias in segments; or silu(gate) * up of two halves, [rows, N / 2].

    The program (tile, split) multiplies the channels of its slice that any row needs.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    HALVES: tl.constexpr = 2 if GATED else 1
    SEGMENTS: tl.constexpr = 1 if SHARED else 2
    WIDTH: tl.constexpr = HALVES * ROWS * BLOCK
    if GATED:
        segment = 0
        before = 0
        within = tile * BLOCK
        width = width0
    else:
        segment, before, within, width = tile_of_segment(tile, width0, width1, width2, BLOCK)
    offset = within + tl.arange(0, BLOCK)
    inside = offset < width
    column = before + offset
    first = split * length
    end = tl.minimum(first + length, K)
    index_ptr += (split * tl.num_programs(0) + tile) * SLICE
    count = compact_union(x_ptr, threshold_ptr, index_ptr, segment, first, end, rows, K, SEGMENTS, SLICE, PER_CHANNEL)
    total = products(
        x_ptr, threshold_ptr, w_ptr, scale_ptr, index_ptr, segment, count, rows, column, inside, K, N, blocks,
        block_size, KIND, ROWS, BLOCK, CHANNELS, PER_CHANNEL, SHARED,
    )  # fmt: skip
    flat = tl.reshape(total, [ROWS * BLOCK])
    slot_ptr += tile * (SPLITS - 1) * WIDTH
    mine = split * WIDTH + tl.arange(0, ROWS * BLOCK)
    if GATED:
        ups = products(
            x_ptr, threshold_ptr, w_ptr, scale_ptr, index_ptr, segment + SEGMENTS - 1, count, rows, column + width0,
            inside, K, N, blocks, block_size, KIND, ROWS, BLOCK, CHANNELS, PER_CHANNEL, SHARED,
        )  # fmt: skip
        flat_up = tl.reshape(ups, [ROWS * BLOCK])
    if split < SPLITS - 1:
        leave(slot_ptr + mine, flat)
        if GATED:
            leave(slot_ptr + ROWS * BLOCK + mine, flat_up)
    else:
        if SPLITS > 1:
            flat += collect(slot_ptr, SPLITS - 1, WIDTH, ROWS * BLOCK, SPLITS - 1, AT_ONCE)
        y = tl.reshape(flat, [ROWS, BLOCK])
        if BIAS:
            y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        if GATED:
            if SPLITS > 1:
                flat_up += collect(slot_ptr + ROWS * BLOCK, SPLITS - 1, WIDTH, ROWS * BLOCK, SPLITS - 1, AT_ONCE)
            up = tl.reshape(flat_up, [ROWS, BLOCK])
            if BIAS:
                up += tl.load(bias_ptr + width0 + column, mask=inside, other=0.0).to(tl.float32)[None, :]
            y = silu(y) * up
        row = tl.arange(0, ROWS)
        out = y_ptr + row[:, None] * (N // HALVES) + column[None, :]
        tl.store(out, y.to(y_ptr.dtype.element_ty), mask=(row < rows)[:, None] & inside[None, :])
