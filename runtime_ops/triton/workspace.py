"""Memory that kernels leave notes in, one for each stream: kernels on one stream run one after the other."""

from __future__ import annotations

import functools

import torch

_EMPTY_SLOT = -1
_FIRST_SIZE = 1 << 20
_FIRST_TICKETS = 1 << 10


class Workspace:
    """Grows as it is asked for more. What was given before stays alive, because a recorded graph may use it."""

    def __init__(self, device: torch.device) -> None:
        self._indices = [torch.empty(_FIRST_SIZE, dtype=torch.int32, device=device)]
        self._sums = [torch.empty(_FIRST_SIZE, dtype=torch.float32, device=device)]
        self._slots = [torch.full((_FIRST_SIZE,), _EMPTY_SLOT, dtype=torch.int32, device=device)]
        self._tickets = [torch.zeros(_FIRST_TICKETS, dtype=torch.int32, device=device)]

    def indices(self, count: int) -> torch.Tensor:
        """int32 [count or more] of any content."""
        if self._indices[-1].numel() < count:
            self._indices.append(self._indices[-1].new_empty(2 * count))
        return self._indices[-1]

    def sums(self, count: int) -> torch.Tensor:
        """float32 [count or more] of any content."""
        if self._sums[-1].numel() < count:
            self._sums.append(self._sums[-1].new_empty(2 * count))
        return self._sums[-1]

    def slots(self, count: int) -> torch.Tensor:
        """int32 [count or more], all empty, and to be left empty; see split_sum.py."""
        if self._slots[-1].numel() < count:
            self._slots.append(self._slots[-1].new_full((2 * count,), _EMPTY_SLOT))
        return self._slots[-1]

    def tickets(self, count: int) -> torch.Tensor:
        """int32 [count or more], all 0, and to be left 0."""
        if self._tickets[-1].numel() < count:
            self._tickets.append(self._tickets[-1].new_zeros(2 * count))
        return self._tickets[-1]


@functools.cache
def _of_stream(device: torch.device, _stream: int) -> Workspace:
    return Workspace(device)


def workspace(device: torch.device) -> Workspace:
    """The workspace of a device's current stream."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _of_stream(device, stream)
