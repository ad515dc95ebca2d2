"""Tensors that wait on disk to be written into a model, so that one weight at a time is in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_DATA_NAME = "quantized.data"


class ScratchTensors:
    """A file in an existing directory that tensors are appended to; they live as long as it does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def add(self, name: str, array: NDArray[np.generic], dtype: ir.DataType) -> ir.ExternalTensor:
        """Append an array; an int8 array of numbers from -8 to 7 may be stored as INT4."""
        packed = ir.Tensor(array.astype(dtype.numpy()), dtype).tobytes()
        with (self._directory / _DATA_NAME).open("ab") as file:
            offset = file.tell()
            file.write(packed)
        return ir.ExternalTensor(
            _DATA_NAME,
            offset,
            len(packed),
            dtype,
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self._directory,
        )
