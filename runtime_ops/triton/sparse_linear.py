"""A projection of hidden states through the weight rows of their active channels, on the device of the weights.

One row and few rows have kernels. Many rows use every channel between them, so they are a dense product. On a CPU, and
where a gradient is asked for, plain torch computes the same.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sparsecc.runtime_ops.triton import reference
from sparsecc.runtime_ops.triton.projection import Norm, Projection, Residual

if TYPE_CHECKING:
    from sparsecc.runtime_ops.triton.launch import Cut

MOST_ROWS = 16
"""That the kernel of few rows takes."""


def sparse_linear(x: torch.Tensor, projection: Projection, norm: Norm | None = None) -> torch.Tensor:
    """y[..., N] of x[..., K] in float32, float16 or bfloat16; added up in float32, returned in the type of x.

    Raises:
        ValueError: x has another number of channels than the weight, here and in what follows.
    """
    return _project(x, projection, norm, gated=False)


def gated_linear(x: torch.Tensor, projection: Projection, norm: Norm | None = None) -> torch.Tensor:
    """silu(gate) * up, where the first half of the columns of y[..., N] is gate and the second up: [..., N / 2].

    The projection has one threshold, or one for gate and one for up.
    """
    return _project(x, projection, norm, gated=True)


def added_linear(
    x: torch.Tensor, projection: Projection, residual: torch.Tensor, norm: Norm | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of residual[..., N] and y, rounded before and after, and the sum of its squares for a :class:`Norm`.

    The latter is float32 [parts] if x is one row and kernels compute it; else it is empty.
    """
    _check_channels(x, projection)
    x, norm = _normed_unless_in_launch(x, norm)
    is_alike = residual.shape == (*x.shape[:-1], projection.weight.shape[1])
    if not (is_alike and has_kernels(residual) and _is_one_launch(x, projection)):
        total = residual + sparse_linear(x, projection, norm).to(residual.dtype)
        return total, total.new_empty(0, dtype=torch.float32)
    from sparsecc.runtime_ops.triton.launch import one_row_launch, parts_of  # needs Triton, which a GPU brings

    row, cut = x.reshape(-1).contiguous(), _cut(x, projection, gated=False)
    total = torch.empty_like(residual)
    squares = x.new_empty(parts_of(projection, cut), dtype=torch.float32)
    added_to = Residual(residual.reshape(-1).contiguous(), squares)
    one_row_launch(row, projection, cut, gated=False, out=total.view(-1), norm=norm, residual=added_to).run()
    return total, squares


def _check_channels(x: torch.Tensor, projection: Projection) -> None:
    channels, _ = projection.weight.shape
    if x.shape[-1:] != (channels,):
        raise ValueError(f"hidden states {list(x.shape)} do not fit a weight of {channels} input channels")


def _normed_unless_in_launch(x: torch.Tensor, norm: Norm | None) -> tuple[torch.Tensor, Norm | None]:
    """A norm whose squares nobody added up, or whose gain is not one for each channel, is taken here."""
    if norm is None or (norm.squares.numel() > 0 and norm.gain.shape == x.shape[-1:]):
        return x, norm
    return _normed(x, norm), None


def _normed(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """The norm of all rows of x[..., K], where there is one."""
    if norm is None:
        return x
    if not has_kernels(x):
        return reference.rms_norm(x, norm.gain, norm.epsilon)
    from sparsecc.runtime_ops.triton.row_norm import row_norm  # needs Triton, which a GPU brings

    return row_norm(x, None, norm.gain, norm.epsilon)[0]


def _project(x: torch.Tensor, projection: Projection, norm: Norm | None, *, gated: bool) -> torch.Tensor:
    _check_channels(x, projection)
    x, norm = _normed_unless_in_launch(x, norm)
    if _is_one_launch(x, projection):
        return _one_row(x, projection, norm, gated=gated)
    x = _normed(x, norm)
    if projection.is_dense(_rows_of(x)):
        return _activated(_plus_bias(x @ projection.weight.dense(x.dtype), projection), gated=gated)
    if not has_kernels(x):
        compute = reference.gated_project if gated else reference.project
        return compute(x, projection).to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = _rows(rows, projection, gated=gated)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _is_one_launch(x: torch.Tensor, projection: Projection) -> bool:
    return has_kernels(x) and _rows_of(x) == 1 and projection.low_rank is None


def _rows_of(x: torch.Tensor) -> int:
    return math.prod(x.shape[:-1])


def has_kernels(x: torch.Tensor) -> bool:
    """Whether the kernels run on x: a GPU, or Triton's interpreter; they have no gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return False
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def _rows(rows: torch.Tensor, projection: Projection, *, gated: bool) -> torch.Tensor:
    if not 0 < rows.shape[0] <= MOST_ROWS:
        return _many_rows(rows, projection, gated=gated)
    if projection.low_rank is None:
        return _launched(rows, projection, gated=gated)
    y = _launched(rows, dataclasses.replace(projection, low_rank=None), gated=False)
    return _activated(y + _correction(rows, projection), gated=gated)


def _launched(rows: torch.Tensor, projection: Projection, *, gated: bool) -> torch.Tensor:
    if rows.shape[0] == 1:
        return _one_row(rows, projection, None, gated=gated)
    from sparsecc.runtime_ops.triton.launch import launch_few_rows  # needs Triton, which a GPU brings

    columns = projection.weight.shape[1]
    out = rows.new_empty(rows.shape[0], columns // 2 if gated else columns)
    launch_few_rows(rows, projection, gated=gated, out=out)
    return out


def _one_row(x: torch.Tensor, projection: Projection, norm: Norm | None, *, gated: bool) -> torch.Tensor:
    from sparsecc.runtime_ops.triton.launch import one_row_launch  # needs Triton, which a GPU brings

    columns = projection.weight.shape[1]
    out = x.new_empty(*x.shape[:-1], columns // 2 if gated else columns)
    cut = _cut(x, projection, gated=gated)
    row = x.reshape(-1).contiguous()
    one_row_launch(row, projection, cut, gated=gated, out=out.view(-1), norm=norm).run()
    return out


def _cut(x: torch.Tensor, projection: Projection, *, gated: bool) -> Cut:
    from sparsecc.runtime_ops.triton.tuning import SMALL_CUT, cut_for  # needs Triton, which a GPU brings

    return cut_for(projection, x.reshape(-1), gated=gated) if x.is_cuda else SMALL_CUT


def _correction(rows: torch.Tensor, projection: Projection) -> torch.Tensor:
    """(x - kept(x)) @ A @ B in the type of x."""
    assert projection.low_rank is not None
    dropped = rows - reference.kept(rows, projection.thresholds[0], dense=False)
    left, right = projection.low_rank.left.to(rows.dtype), projection.low_rank.right.to(rows.dtype)
    return dropped @ left @ right


def _many_rows(rows: torch.Tensor, projection: Projection, *, gated: bool) -> torch.Tensor:
    """The product with all of W; channels that are zero in all rows do not count, whatever W holds."""
    pieces = torch.split(projection.weight.dense(rows.dtype), list(projection.widths), dim=1)
    products = []
    for threshold, columns in zip(projection.thresholds, pieces, strict=True):
        values = reference.kept(rows, threshold, dense=False)
        products.append(values @ torch.where((values != 0).any(dim=0)[:, None], columns, 0))
    y = _plus_bias(torch.cat(products, dim=1) if len(products) > 1 else products[0], projection)
    if projection.low_rank is not None:
        y = y + _correction(rows, projection)
    return _activated(y, gated=gated)


def _plus_bias(y: torch.Tensor, projection: Projection) -> torch.Tensor:
    return y if projection.bias is None else y + projection.bias.to(y.dtype)


def _activated(y: torch.Tensor, *, gated: bool) -> torch.Tensor:
    if not gated:
        return y
    gate, up = y.chunk(2, dim=-1)
    return functional.silu(gate) * up
