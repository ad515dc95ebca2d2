"""The GPU that streams and captures are of and that Triton launches on, whatever device their tensors are on."""

from __future__ import annotations

import contextlib

import torch


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a GPU the current one meanwhile; other devices are not chosen so."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
