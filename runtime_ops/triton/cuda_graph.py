"""Capture a step of many small kernels as one CUDA graph, which the GPU runs without waiting for Python."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparsecc.runtime_ops.triton.current_device import on_device
from sparsecc.runtime_ops.triton.failures import executor_failures

_WARM_UP_STEPS = 3
"""Kernels are compiled and workspaces allocated before the capture, which allows neither."""


def captured(
    step: Callable[[], torch.Tensor], reset: Callable[[], None], device: torch.device
) -> Callable[[], torch.Tensor]:
    """A function that replays ``step`` on a GPU, with the tensor that it returned when it was captured.

    ``step`` reads and writes the same tensors each time, and is run a few times first; ``reset`` undoes what that did.

    Raises:
        SparseccError: the step needs the host, as where a shape depends on values, or more memory than there is.
    """
    with on_device(device), executor_failures("a decode step cannot be captured as a CUDA graph", device):
        graph, result = _captured(step, reset)

    def replay() -> torch.Tensor:
        with on_device(device):
            graph.replay()
        return result

    return replay


def _captured(step: Callable[[], torch.Tensor], reset: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Of the current device."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(_WARM_UP_STEPS):
            step()
            reset()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph, stream=stream):
        result = step()
    reset()
    return graph, result
