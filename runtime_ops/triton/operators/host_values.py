"""Small integer tensors that describe shapes stay on the host; what meets a tensor of the device is copied there once.

A copy within a decode step would make the device wait for the host, and could not be captured in a CUDA graph. A graph
that was captured reads its copies as long as it lives, so none is ever freed; they are few and small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


def on_one_device(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Move host tensors to the device of the others, if there is one, before the function sees them."""

    def aligned(*tensors: torch.Tensor) -> torch.Tensor:
        device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
        if device is None:
            return function(*tensors)
        return function(*(copy_on(tensor, device) for tensor in tensors))

    return aligned


def copy_on(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor as the device has it: equal tensors share one copy, which must not be written to."""
    if tensor.device.type != "cpu":
        return tensor
    return _copy(tuple(tensor.reshape(-1).tolist()), tuple(tensor.shape), tensor.dtype, device)


@functools.cache
def _copy(entries: tuple[float, ...], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(entries, dtype=dtype, device=device).reshape(shape)
