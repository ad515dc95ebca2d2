"""What goes wrong while a graph is loaded or computed on a device, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from sparsecc.errors import SparseccError, mistake


@contextlib.contextmanager
def executor_failures(doing: str, device: torch.device) -> Iterator[None]:
    """Turn what torch, Triton or a file raise into one line that says what was being done, and where memory ran out."""
    try:
        yield
    except SparseccError:
        raise
    except torch.OutOfMemoryError as error:
        raise SparseccError(
            f"{doing}: the memory of {device} is full; take fewer tokens or a smaller model, or run with --device cpu"
        ) from error
    except Exception as error:
        raise mistake(doing, error) from error
