"""What the compiler makes of the sum that programs leave to one another; the sum itself is in triton_kernels.py."""

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsecc.runtime_ops.triton.launch import Cut, _slots_at_once
from sparsecc.runtime_ops.triton.split_sum import collect

HOPPER = GPUTarget("cuda", 90, 32)


@triton.jit
def collect_kernel(slot_ptr, y_ptr, WIDTH: tl.constexpr):  # noqa: N803
    tl.store(y_ptr + tl.arange(0, WIDTH), collect(slot_ptr, 1, WIDTH, WIDTH, 1, 1))


@pytest.mark.parametrize("warps", [2, 4])
def test_no_warp_empties_slots_that_another_has_yet_to_see_filled(warps: int) -> None:
    source = ASTSource(collect_kernel, {"slot_ptr": "*i32", "y_ptr": "*fp32"}, {"WIDTH": 32})
    ptx = triton.compile(source, target=HOPPER, options={"num_warps": warps}).asm["ptx"]
    last_look, emptied = ptx.rindex("ld.volatile.global"), ptx.index("st.global")
    assert "bar.sync" in ptx[last_look:emptied]


@pytest.mark.parametrize("splits", [2, 3, 8])
@pytest.mark.parametrize(("block", "halves", "warps"), [(32, 1, 1), (32, 1, 2), (64, 1, 4), (16, 2, 4), (512, 1, 1)])
def test_no_two_threads_read_the_same_slot(block: int, halves: int, warps: int, splits: int) -> None:
    at_once = _slots_at_once(Cut(block, splits, warps, 8, 128), halves)
    assert at_once & (at_once - 1) == 0
    assert at_once * block * halves >= 32 * warps
