"""A projection of hidden states through the weight rows of their active channels, on the device of the weights."""

from __future__ import annotations

import torch

from sparsecc.runtime_ops.triton import reference
from sparsecc.runtime_ops.triton.projection import Projection


def sparse_linear(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """y[..., N] of x[..., K] in float32, float16 or bfloat16; computed in float32, returned in the type of x."""
    return reference.project(x, projection).to(x.dtype)


def gated_linear(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """silu(gate) * up, where the first half of the columns of y[..., N] is gate and the second up: [..., N / 2]."""
    return reference.gated_project(x, projection).to(x.dtype)
