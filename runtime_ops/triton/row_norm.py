"""A Triton kernel for the norm of a hidden state, and the residual sum before it, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sparsecc.runtime_ops.triton.dependent_launch import launch_options, starts_early
from sparsecc.runtime_ops.triton.early_start import let_next_kernel_start, wait_for_kernel_ahead
from sparsecc.runtime_ops.triton.reference import rms_norm

_WARPS = 8


@triton.jit
def _row_norm(
    hidden_ptr,
    skip_ptr,
    scale_ptr,
    total_ptr,
    normed_ptr,
    columns,
    epsilon,
    HAS_SKIP: tl.constexpr,
    EARLY: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * columns
    column = tl.arange(0, COLUMNS)
    inside = column < columns
    scale = tl.load(scale_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if EARLY:
        wait_for_kernel_ahead()
        let_next_kernel_start()
    total = tl.load(hidden_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_SKIP:
        total += tl.load(skip_ptr + start + column, mask=inside, other=0.0).to(tl.float32)
        rounded = total.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + start + column, rounded, mask=inside)
        total = rounded.to(tl.float32)
    deviation = tl.sqrt(tl.sum(total * total, 0) / columns + epsilon)
    tl.store(normed_ptr + start + column, (total / deviation * scale).to(normed_ptr.dtype.element_ty), mask=inside)


def row_norm(
    hidden: torch.Tensor, skip: torch.Tensor | None, scale: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The RMS norm of hidden + skip, times scale[K], and that sum, both like hidden [..., K].

    The sum is rounded to its type before the norm is taken of it, as where two nodes compute them. Without ``skip``
    the sum is hidden itself. A skip or a scale of another shape is torch's to broadcast, or to refuse.
    """
    columns = hidden.shape[-1]
    if columns == 0 or scale.shape != (columns,) or (skip is not None and skip.shape != hidden.shape):
        total = hidden if skip is None else hidden + skip
        return rms_norm(total, scale, epsilon), total
    hidden = hidden.contiguous()
    normed = torch.empty_like(hidden)
    total = hidden if skip is None else torch.empty_like(hidden)
    _row_norm[(hidden.numel() // columns,)](
        hidden,
        hidden if skip is None else skip.contiguous(),
        scale.contiguous(),
        total,
        normed,
        columns,
        epsilon,
        HAS_SKIP=skip is not None,
        EARLY=starts_early(hidden.device),
        COLUMNS=triton.next_power_of_2(columns),
        num_warps=_WARPS,
        **launch_options(hidden.device),
    )
    return normed, total
