"""Sparse projections in plain torch: what the kernels are tested against, and what runs where they do not."""

from __future__ import annotations

import torch
from torch.nn import functional

from sparsecc.runtime_ops.triton.projection import Projection


def kept(x: torch.Tensor, threshold: torch.Tensor, *, dense: bool) -> torch.Tensor:
    """x where abs(x) >= threshold, else 0, so that NaN is 0; all of x if it is dense."""
    return x if dense else torch.where(x.abs() >= threshold, x, 0)


def rms_norm(hidden: torch.Tensor, gain: torch.Tensor, epsilon: float) -> torch.Tensor:
    """hidden / sqrt(mean(hidden²) + epsilon) * gain along the last axis (arXiv 1910.07467, equation 4), in float32."""
    wide = hidden.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (normed * gain.float()).to(hidden.dtype)


def active_rows(values: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns of values[M, K] that are non-zero in any row, and their rows of weight[K, N]."""
    indices = (values != 0).any(dim=0).nonzero().squeeze(1)
    return values[:, indices], weight[indices]


def project(x: torch.Tensor, projection: Projection, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """y[..., N] of x[..., K], computed in ``dtype``."""
    rows = x.reshape(-1, x.shape[-1]).to(dtype)
    dense = projection.is_dense(rows.shape[0])
    weight = projection.weight.dense(dtype)
    segments = zip(projection.thresholds, torch.split(weight, list(projection.widths), dim=1), strict=True)
    y = torch.cat([_product(kept(rows, threshold, dense=dense), columns) for threshold, columns in segments], dim=1)
    if projection.low_rank is not None:
        dropped = rows - kept(rows, projection.thresholds[0], dense=dense)
        y += dropped @ projection.low_rank.left.to(dtype) @ projection.low_rank.right.to(dtype)
    if projection.bias is not None:
        y += projection.bias.to(dtype)
    return y.reshape(*x.shape[:-1], y.shape[1])


def _product(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    values, weight = active_rows(values, weight)
    return values @ weight


def gated_project(x: torch.Tensor, projection: Projection, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """silu(gate) * up of the two halves of a projection's columns: [..., N / 2]."""
    gate, up = project(x, projection, dtype).chunk(2, dim=-1)
    return functional.silu(gate) * up
