"""Starting before the kernel ahead has ended, and using that time to fetch weights.

Between the last weights of one kernel and the first of the next, memory would idle for some microseconds: sums are
collected, the next kernel starts, reads its hidden state and finds the active channels. With programmatic dependent
launch (Hopper and newer) the next kernel starts when the one ahead has read its weights, and asks for the first weight
rows of each slice to be brought into the L2 cache before it waits for its hidden state. Some rows turn out not to be
needed; reading them took time in which nothing else was read.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

GRANULE = tl.constexpr(128)
"""Bytes that are asked for together: a line of the cache."""


@triton.jit
def prefetch(address, size):
    """Ask the L2 cache for ``size`` bytes, a multiple of 16, from an address that is one too."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .u32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        @first cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [address, size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_rows(w_ptr, row_bytes, first, rows, part, parts):
    """Ask for this part of ``parts`` of the weight rows from ``first`` on, which are one run of bytes.

    It begins with the whole line that the first of them lies in, wherever the weight begins.
    """
    size = (rows * row_bytes // parts) // GRANULE * GRANULE
    begin = (w_ptr.to(tl.int64) + first.to(tl.int64) * row_bytes) & -GRANULE
    prefetch(begin + part * size, size)


@triton.jit
def wait_for_kernel_ahead():
    gdc_wait()


@triton.jit
def let_next_kernel_start():
    gdc_launch_dependents()
