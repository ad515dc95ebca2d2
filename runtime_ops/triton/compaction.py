"""Which input channels are active: found inside the kernel that reads their weight rows.

A kernel of its own for this costs as much as a small product. A program needs only the channels of its own slice, and a
slice is short.
"""

import triton
import triton.language as tl


@triton.jit
def is_kept(x, threshold):
    """abs(x) >= threshold and x is not 0; NaN is not kept."""
    return (tl.abs(x) >= threshold) & (x != 0.0)


@triton.jit
def entries_of(x_ptr, gain_ptr, inverse, k, inside, NORMED: tl.constexpr):
    """The entries of channels k as float32; with NORMED times ``inverse`` and their gain, rounded as x is."""
    x = tl.load(x_ptr + k, mask=inside, other=0.0)
    entries = x.to(tl.float32)
    if NORMED:
        gain = tl.load(gain_ptr + k, mask=inside, other=0.0).to(tl.float32)
        entries = (entries * inverse * gain).to(x.dtype).to(tl.float32)
    return entries


@triton.jit
def thresholds_of(threshold_ptr, segment, k, inside, K, PER_CHANNEL: tl.constexpr):
    """The thresholds of channels k in a segment of columns: from [segments, K], or from [segments, 1]."""
    if PER_CHANNEL:
        threshold = tl.load(threshold_ptr + segment * K + k, mask=inside, other=0.0)
    else:
        threshold = tl.load(threshold_ptr + segment)
    return threshold


@triton.jit
def compact(
    x_ptr,
    gain_ptr,
    inverse,
    threshold_ptr,
    index_ptr,
    segment,
    first,
    end,
    K,
    SEGMENTS: tl.constexpr,
    SLICE: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    NORMED: tl.constexpr,
):
    """Write the channels of [first, end) that are kept in any of SEGMENTS segments, ascending; returns their number.

    A prefix sum over the slice gives each active channel its place. The places are written to global memory and read
    back by the same program, which is a trip to the cache and needs a barrier only.
    """
    k = first + tl.arange(0, SLICE)
    inside = k < end
    x = entries_of(x_ptr, gain_ptr, inverse, k, inside, NORMED)
    active = is_kept(x, thresholds_of(threshold_ptr, segment, k, inside, K, PER_CHANNEL))
    if SEGMENTS == 2:
        active = active | is_kept(x, thresholds_of(threshold_ptr, segment + 1, k, inside, K, PER_CHANNEL))
    place = tl.cumsum(active.to(tl.int32), 0)
    tl.store(index_ptr + place - 1, k, mask=active)
    count = tl.max(place, 0)
    tl.debug_barrier()
    return count
