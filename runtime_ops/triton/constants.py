"""The constants of a graph as tensors, each loaded once."""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
import torch

from sparsecc.errors import SparseccError
from sparsecc.runtime_ops.triton.operators.operator import Placement, stored_type

_ON_HOST = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}
"""Types of constants that say shapes, axes and the like; the host reads those."""
_INT4_IN_BYTE = 2


class Constants:
    """Tensors of a graph's initializers, one however many nodes read it in the same form.

    On the CPU a tensor that needs no conversion is the memory map of the file itself.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._loaded: dict[tuple[str, bool], torch.Tensor] = {}

    def tensor(self, value: ir.Value, *, as_stored: bool) -> torch.Tensor:
        """An initializer in the type that the graph computes in, or as the file stores it, int4 packed.

        Raises:
            SparseccError: its type has no place in the executor.
        """
        key = (str(value.name), as_stored or value.dtype != ir.DataType.FLOAT)
        if key not in self._loaded:
            assert value.const_value is not None
            self._loaded[key] = self._load(value.const_value, as_stored)
        return self._loaded[key]

    def _load(self, constant: ir.TensorProtocol, as_stored: bool) -> torch.Tensor:
        if constant.dtype == ir.DataType.INT4:
            if not as_stored:
                raise SparseccError(f"{constant.name} is int4 where the executor reads none; run with --device cpu")
            return _packed_int4(constant).to(self._placement.device)
        dtype = stored_type(constant.dtype) if as_stored else self._placement.torch_type(constant.dtype)
        if constant.dtype in _ON_HOST:
            return _mapped(constant).to(dtype)
        tensor = _mapped(constant).to(self._placement.device).to(dtype)
        if isinstance(constant, ir.ExternalTensor) and self._placement.device.type != "cpu":
            constant.release()
        return tensor


def _mapped(constant: ir.TensorProtocol) -> torch.Tensor:
    """The tensor over the constant's own memory, which nothing writes to."""
    array = np.ascontiguousarray(constant.numpy()).reshape(constant.shape.numpy())
    stored = stored_type(constant.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        if constant.dtype == ir.DataType.BFLOAT16:
            return torch.from_numpy(array.view(np.int16)).view(stored)
        return torch.from_numpy(array)


def _packed_int4(constant: ir.TensorProtocol) -> torch.Tensor:
    """uint8 [..., N / 2], two entries to a byte as ONNX packs them."""
    *others, columns = constant.shape.numpy()
    if columns % _INT4_IN_BYTE:
        raise SparseccError(f"{constant.name} has int4 rows of odd length; run the model with --device cpu")
    packed = np.frombuffer(constant.tobytes(), np.uint8)
    return torch.from_numpy(packed.copy()).reshape(*others, columns // _INT4_IN_BYTE)
