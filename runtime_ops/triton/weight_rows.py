"""Adding up the weight rows of active channels, each times its entry of the hidden state.

W[K, N] is row-major, so a tile of BLOCK columns of a channel is one contiguous run. GROUP channels are read by the
threads of a program at a time and UNROLL such groups before the first is used, because memory is only kept busy by many
loads under way. A tile has HALVES runs: one, or one of gate's and one of up's columns.

Products are exact in float32 for weights of 16 bits or less times a hidden state of 16 bits; all sums are float32.
"""

import triton
import triton.language as tl

from sparsecc.runtime_ops.triton.compaction import entries_of, is_kept, thresholds_of

PLAIN = tl.constexpr(0)
INT8 = tl.constexpr(1)
INT4 = tl.constexpr(2)

WORD = tl.constexpr(8)
"""int4 codes in 32 bits."""
CODE_BITS = tl.constexpr(4)
UNIT = tl.constexpr(1)
LOW_CODES = tl.constexpr(5)
"""Of a word: those that lie within the mantissa of a float32."""
SIGN_BITS = tl.constexpr(-2004318072)
"""0x88888888: flipping the sign bits of two's complement int4 adds 8 to each code."""
CODE_OFFSET = tl.constexpr(8.0)
FACTOR_UNIT = tl.constexpr(2.0**80)
"""By which factors of codes are scaled up, since codes are scaled down."""
SMALLEST = tl.constexpr(2.0**-69)
"""The smallest float32, 2^-149, times FACTOR_UNIT."""


@triton.jit
def channels_and_entries(
    x_ptr, gain_ptr, inverse, threshold_ptr, index_ptr, segment, first, start, count, K,
    HALVES: tl.constexpr, GROUP: tl.constexpr, COMPACT: tl.constexpr, PER_CHANNEL: tl.constexpr, SHARED: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """GROUP channels from the start-th on, and their entries of x by half: [GROUP], [HALVES, GROUP].

    With COMPACT they are the next active ones, else the next ones of the slice from ``first`` on. An entry is 0 past
    ``count``, and in a half that drops it.
    """
    place = start + tl.arange(0, GROUP)
    live = place < count
    k = tl.load(index_ptr + place, mask=live, other=0) if COMPACT else first + place
    entries = entries_of(x_ptr, gain_ptr, inverse, k, live, NORMED)[None, :]
    if HALVES == 2:
        entries = tl.broadcast_to(entries, [HALVES, GROUP])
    if not COMPACT or not SHARED:
        half = tl.arange(0, HALVES)[:, None]
        ruling = segment if SHARED else segment + half
        inside = tl.broadcast_to(live[None, :], [HALVES, GROUP])
        threshold = thresholds_of(threshold_ptr, ruling, k[None, :] + half * 0, inside, K, PER_CHANNEL)
        entries = tl.where(is_kept(entries, threshold), entries, 0.0)
    return k, entries


@triton.jit
def no_rows(KIND: tl.constexpr, GROUP: tl.constexpr, HALVES: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr):
    """Sums to begin with, in the shape in which weights of a kind are read.

    Of int4 the first are those of the factors alone, and then there are some for each place in a word.

    Plain weights are read as [HALVES, GROUP, BLOCK], others as [BLOCK / RUN, HALVES, GROUP, RUN], an order in which
    Triton gives neighbouring runs to neighbouring threads.
    """
    if KIND == PLAIN:
        sums = (tl.zeros([HALVES, GROUP, BLOCK], tl.float32),)
    elif KIND == INT8:
        sums = (tl.zeros([BLOCK // RUN, HALVES, GROUP, RUN], tl.float32),)
    else:
        sums = (tl.zeros([BLOCK // RUN, HALVES, GROUP, 1], tl.float32),)
        for _ in tl.static_range(WORD):
            sums = sums + (tl.zeros([BLOCK // RUN, HALVES, GROUP, RUN // WORD], tl.float32),)
    return sums


@triton.jit
def of_place(sums, PLACE: tl.constexpr):
    """The sums of a place in words, without the scale of codes and factors."""
    BIT: tl.constexpr = CODE_BITS * (PLACE if PLACE < LOW_CODES else PLACE - WORD + LOW_CODES)
    return sums[1 + PLACE] * (1.0 / (SMALLEST * (UNIT << BIT)))


@triton.jit
def total_of(sums, KIND: tl.constexpr, WIDTH: tl.constexpr):
    """The sums over all groups by half and column: [WIDTH]."""
    if KIND == PLAIN:
        total = tl.sum(sums[0], 1)
    elif KIND == INT8:
        total = tl.permute(tl.sum(sums[0], 2), (1, 0, 2))
    else:
        first = tl.join(tl.join(of_place(sums, 0), of_place(sums, 4)), tl.join(of_place(sums, 2), of_place(sums, 6)))
        second = tl.join(tl.join(of_place(sums, 1), of_place(sums, 5)), tl.join(of_place(sums, 3), of_place(sums, 7)))
        by_code = tl.sum(tl.join(first, second), 2)
        too_much = CODE_OFFSET / FACTOR_UNIT * tl.sum(sums[0], 2)
        total = tl.permute(by_code - too_much[:, :, :, None, None, None], (1, 0, 2, 3, 4, 5))
    return tl.reshape(total, [WIDTH])


@triton.jit
def stored_tile(
    w_ptr, k, needed, column, half_offset, limit, N,
    KIND: tl.constexpr, HALVES: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The weights of channels k[GROUP] as they are stored, 0 where they are not needed or past ``limit`` columns.

    Of a half they start at ``column`` plus ``half_offset`` for the second. int4 is read as words of eight codes, of
    which there are fewer than 2^31.
    """
    half = tl.arange(0, HALVES)[:, None]
    if KIND == PLAIN:
        offset = tl.arange(0, BLOCK)
        row = k.to(tl.int64)[None, :] * N + column + half * half_offset
        address = w_ptr + row[:, :, None] + offset[None, None, :]
        inside = (offset < limit)[None, None, :]
        mask = needed[:, :, None]
    else:
        run = tl.arange(0, BLOCK // RUN)[:, None, None, None]
        mask = needed[None, :, :, None]
        if KIND == INT8:
            offset = run * RUN + tl.arange(0, RUN)[None, None, None, :]
            row = k.to(tl.int64)[None, :] * N + column + half * half_offset
            address = w_ptr + row[None, :, :, None] + offset
            inside = offset < limit
        else:
            begin = column // WORD + half * (half_offset // WORD)
            words = tl.multiple_of(k[None, :] * (N // WORD) + begin, [RUN // WORD, RUN // WORD])
            offset = run * (RUN // WORD) + tl.arange(0, RUN // WORD)[None, None, None, :]
            address = w_ptr + words[None, :, :, None] + offset
            inside = offset * WORD < limit
    if not EVEN:
        mask = mask & inside
    return tl.load(address, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def scale_tile(
    scale_ptr, k, needed, column, half_offset, limit, blocks, block_size,
    HALVES: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """The scales [BLOCK / RUN, HALVES, GROUP, 1] of the same tile, of fewer than 2^31: RUN columns lie in one block."""
    offset = (tl.arange(0, BLOCK // RUN) * RUN)[:, None, None, None]
    start = column + (tl.arange(0, HALVES) * half_offset)[None, :, None, None] + offset
    address = scale_ptr + (k[None, None, :, None] * blocks + start // block_size)
    mask = needed[None, :, :, None] & (offset < limit)
    return tl.load(address, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def code_at(word, BIT: tl.constexpr, BITS: tl.constexpr):
    """The code of BITS bits that begins at a bit of a word, times 2^(BIT - 149), as float32."""
    return (word & (((UNIT << BITS) - 1) << BIT)).to(tl.float32, bitcast=True)


@triton.jit
def plus_weighted(sums, tile, entries, scales, KIND: tl.constexpr):
    """sums plus a stored tile times entries of x[HALVES, GROUP], and times scales[runs, HALVES, GROUP, 1].

    int8 and int4 take the scale times the entry first, a rounding of 2^-24 that each product has once either way.
    An int4 code becomes a float32 by one instruction. All bits but its own are cleared, and so it is the mantissa of a
    number without an exponent, a subnormal, which a GPU multiplies as fast as any other; factors are scaled up in
    return. The 8 that codes are too large by is taken off in the end, times the sum of the factors. Only the last codes
    of a word have to be shifted down to the mantissa, all at once. Where an entry times a scale is not below 2^47, sums
    are NaN.
    """
    if KIND == PLAIN:
        added = (sums[0] + tile.to(tl.float32) * entries[:, :, None],)
    elif KIND == INT8:
        added = (sums[0] + tile.to(tl.float32) * (scales * entries[None, :, :, None]),)
    else:
        factor = scales * entries[None, :, :, None] * FACTOR_UNIT
        low = tile ^ SIGN_BITS
        high = low >> (WORD - LOW_CODES) * CODE_BITS
        added = (sums[0] + factor,)
        for place in tl.static_range(LOW_CODES):
            added = added + (sums[1 + place] + code_at(low, CODE_BITS * place, CODE_BITS) * factor,)
        for place in tl.static_range(WORD - LOW_CODES):
            code = code_at(high, CODE_BITS * (2 * LOW_CODES - WORD + place), CODE_BITS)
            added = added + (sums[1 + LOW_CODES + place] + code * factor,)
    return added


@triton.jit
def load_batch(
    x_ptr, gain_ptr, inverse, threshold_ptr, w_ptr, scale_ptr, index_ptr,
    segment, first, start, count, column, half_offset, limit, K, N, blocks, block_size,
    KIND: tl.constexpr, HALVES: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    UNROLL: tl.constexpr, EVEN: tl.constexpr, COMPACT: tl.constexpr, PER_CHANNEL: tl.constexpr, SHARED: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """UNROLL groups of channels from the start-th on: stored tiles, entries of x, scales (or entries again)."""
    channels = ()
    entries = ()
    for step in tl.static_range(UNROLL):
        k, entry = channels_and_entries(
            x_ptr, gain_ptr, inverse, threshold_ptr, index_ptr, segment, first, start + step * GROUP, count, K,
            HALVES, GROUP, COMPACT, PER_CHANNEL, SHARED, NORMED,
        )  # fmt: skip
        channels = channels + (k,)
        entries = entries + (entry,)
    tiles = ()
    scales = ()
    for step in tl.static_range(UNROLL):
        k = channels[step]
        needed = entries[step] != 0.0
        tiles = tiles + (stored_tile(w_ptr, k, needed, column, half_offset, limit, N, KIND, HALVES, BLOCK, RUN, EVEN),)
        if KIND == PLAIN:
            scales = scales + (entries[step],)
        else:
            scales = scales + (
                scale_tile(scale_ptr, k, needed, column, half_offset, limit, blocks, block_size, HALVES, BLOCK, RUN),
            )
    return tiles, entries, scales


@triton.jit
def add_rows(
    sums, x_ptr, gain_ptr, inverse, threshold_ptr, w_ptr, scale_ptr, index_ptr,
    segment, first, count, column, half_offset, limit, K, N, blocks, block_size,
    KIND: tl.constexpr, HALVES: tl.constexpr, BLOCK: tl.constexpr, RUN: tl.constexpr, GROUP: tl.constexpr,
    UNROLL: tl.constexpr, EVEN: tl.constexpr, COMPACT: tl.constexpr, PER_CHANNEL: tl.constexpr, SHARED: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """sums plus the weight rows of active channels: of ``count`` that are, or among ``count`` from ``first`` on.

    All loads of a batch are written before the first product, so that the compiler can have them all under way.
    """
    for start in tl.range(0, count, GROUP * UNROLL):
        tiles, entries, scales = load_batch(
            x_ptr, gain_ptr, inverse, threshold_ptr, w_ptr, scale_ptr, index_ptr,
            segment, first, start, count, column, half_offset, limit, K, N, blocks, block_size,
            KIND, HALVES, BLOCK, RUN, GROUP, UNROLL, EVEN, COMPACT, PER_CHANNEL, SHARED, NORMED,
        )  # fmt: skip
        for step in tl.static_range(UNROLL):
            sums = plus_weighted(sums, tiles[step], entries[step], scales[step], KIND)
    return sums
