"""Whether kernels between the sparse products start before the one ahead has ended; see early_start.py."""

from __future__ import annotations

import functools

import torch

_OLDEST_CAPABILITY = (9, 0)


@functools.lru_cache
def starts_early(device: torch.device) -> bool:
    """Whether the device has programmatic dependent launch: Hopper and newer."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _OLDEST_CAPABILITY


def launch_options(device: torch.device) -> dict[str, bool]:
    """Options of a launch, which the interpreter does not know."""
    return {"launch_pdl": True} if starts_early(device) else {}
