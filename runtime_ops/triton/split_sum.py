"""The sum of what several programs computed of one output, in one launch and always in the same order.

Each program adds up a slice of the input channels. All but the last one of a tile leave their sums in a mailbox; the
last one, which the hardware starts after the others, waits until each slot is filled, adds the sums up in the order of
the slices, and empties the slots for the next launch. A slot says itself whether it is filled: EMPTY is a NaN that no
sum is ever written as. So no fence, no counter and no second kernel is needed, which cost about a microsecond each, and
the result does not depend on who comes first.

Addition in float32 of a few tens of terms of float32 errs by some units of the last place of the largest term; the
terms themselves were added up in float32 by many threads, each a few tens of products, so the whole sum errs less than
adding up the products one by one.
"""

import triton
import triton.language as tl

EMPTY = tl.constexpr(-1)
"""The bits of an empty slot, as int32."""
PLAIN_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def leave(slot_ptr, values):
    """Fill the slots of one program with float32 values."""
    bits = values.to(tl.int32, bitcast=True)
    tl.store(slot_ptr, tl.where(bits == EMPTY, PLAIN_NAN, bits))


@triton.jit
def collect(slot_ptr, others, stride, WIDTH: tl.constexpr, OTHERS: tl.constexpr, AT_ONCE: tl.constexpr):
    """The sum [WIDTH] of the values that ``others`` programs leave, ``stride`` slots apart from slot_ptr on.

    OTHERS is a bound of ``others``; the slots of AT_ONCE programs are read at a time.
    """
    column = tl.arange(0, WIDTH)[None, :]
    missing = 1
    total = tl.zeros([WIDTH], tl.float32)
    while missing > 0:
        total = tl.zeros([WIDTH], tl.float32)
        empty = tl.zeros([WIDTH], tl.int32)
        for chunk in tl.static_range(0, OTHERS, AT_ONCE):
            other = chunk + tl.arange(0, AT_ONCE)[:, None]
            bits = tl.load(slot_ptr + other * stride + column, mask=other < others, other=0, volatile=True)
            empty += tl.sum((bits == EMPTY).to(tl.int32), 0)
            total += tl.sum(bits.to(tl.float32, bitcast=True), 0)
        missing = tl.sum(empty, 0)
    total += missing.to(tl.float32)  # 0 by now; Triton 3.6 compiles no loop whose condition is not used after it
    tl.debug_barrier()  # warps that read the same slots each have to see them filled before one of them empties any
    for chunk in tl.static_range(0, OTHERS, AT_ONCE):
        other = chunk + tl.arange(0, AT_ONCE)[:, None]
        tl.store(slot_ptr + other * stride + column, EMPTY, mask=other < others)
    return total
