"""A projection of hidden states through the weight rows of their active channels, on the device of the weights.

One row and few rows have kernels. Many rows use every channel between them, so they are a dense product. On a CPU, and
where a gradient is asked for, plain torch computes the same.
"""

from __future__ import annotations

import dataclasses
import os

import torch
from torch.nn import functional

from sparsecc.runtime_ops.triton import reference
from sparsecc.runtime_ops.triton.projection import Projection

MOST_ROWS = 16
"""That the kernel of few rows takes."""


def sparse_linear(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """y[..., N] of x[..., K] in float32, float16 or bfloat16; added up in float32, returned in the type of x."""
    return _project(x, projection, gated=False)


def gated_linear(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """silu(gate) * up, where the first half of the columns of y[..., N] is gate and the second up: [..., N / 2].

    The projection has one threshold, or one for gate and one for up.
    """
    return _project(x, projection, gated=True)


def _project(x: torch.Tensor, projection: Projection, *, gated: bool) -> torch.Tensor:
    if not has_kernels(x):
        compute = reference.gated_project if gated else reference.project
        return compute(x, projection).to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = _rows(rows, projection, gated=gated)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def has_kernels(x: torch.Tensor) -> bool:
    """Whether the kernels run on x: a GPU, or Triton's interpreter; they have no gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return False
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


def _rows(rows: torch.Tensor, projection: Projection, *, gated: bool) -> torch.Tensor:
    count = rows.shape[0]
    if count == 0 or count > MOST_ROWS or projection.is_dense(count):
        return _dense(rows, projection, gated=gated)
    if projection.low_rank is None:
        return _launched(rows, projection, gated=gated)
    y = _launched(rows, dataclasses.replace(projection, low_rank=None), gated=False)
    return _activated(y + _correction(rows, projection), gated=gated)


def _launched(rows: torch.Tensor, projection: Projection, *, gated: bool) -> torch.Tensor:
    from sparsecc.runtime_ops.triton.launch import launch_few_rows, launch_one_row  # needs Triton, which a GPU brings
    from sparsecc.runtime_ops.triton.tuning import SMALL_CUT, cut_for

    columns = projection.weight.shape[1]
    out = rows.new_empty(rows.shape[0], columns // 2 if gated else columns)
    if rows.shape[0] > 1:
        launch_few_rows(rows, projection, gated=gated, out=out)
    else:
        cut = cut_for(projection, rows[0], gated=gated) if rows.is_cuda else SMALL_CUT
        launch_one_row(rows[0], projection, cut, gated=gated, out=out[0])
    return out


def _correction(rows: torch.Tensor, projection: Projection) -> torch.Tensor:
    """(x - kept(x)) @ A @ B in the type of x."""
    assert projection.low_rank is not None
    dropped = rows - reference.kept(rows, projection.thresholds[0], dense=projection.is_dense(rows.shape[0]))
    left, right = projection.low_rank.left.to(rows.dtype), projection.low_rank.right.to(rows.dtype)
    return dropped @ left @ right


def _dense(rows: torch.Tensor, projection: Projection, *, gated: bool) -> torch.Tensor:
    """The product of many rows with all of W; channels that are zero in all rows do not count, whatever W holds."""
    weight = projection.weight.dense(rows.dtype)
    dense = projection.is_dense(rows.shape[0])
    pieces = torch.split(weight, list(projection.widths), dim=1)
    products = []
    for threshold, columns in zip(projection.thresholds, pieces, strict=True):
        values = reference.kept(rows, threshold, dense=dense)
        products.append(values @ (columns if dense else torch.where((values != 0).any(dim=0)[:, None], columns, 0)))
    y = torch.cat(products, dim=1) if len(products) > 1 else products[0]
    if projection.bias is not None:
        y = y + projection.bias.to(y.dtype)
    if projection.low_rank is not None:
        y = y + _correction(rows, projection)
    return _activated(y, gated=gated)


def _activated(y: torch.Tensor, *, gated: bool) -> torch.Tensor:
    if not gated:
        return y
    gate, up = y.chunk(2, dim=-1)
    return functional.silu(gate) * up
