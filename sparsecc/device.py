"""Where a model runs."""

from __future__ import annotations

import enum


class Device(enum.StrEnum):
    """A CPU, through onnxruntime, or a CUDA GPU, through the executor of sparsecc.runtime_ops.triton."""

    CPU = "cpu"
    CUDA = "cuda"
