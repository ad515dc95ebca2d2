"""Matrices in float16, converted one at a time when the model is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.errors import SparseccError

_LARGEST_HALF = np.finfo(np.float16).max


def half_matrix(matrix: ir.TensorProtocol, name: str) -> ir.Value:
    """An initializer float16 [K, N] of a float32 matrix [K, N].

    Raises:
        SparseccError: an entry is beyond the range of float16.
    """
    rows, columns = matrix.shape.numpy()
    _require_range(matrix)
    return _initializer(name, (rows, columns), lambda: _half(matrix))


def transposed_half_matrix(matrix: ir.TensorProtocol, name: str) -> ir.Value:
    """An initializer float16 [N, K] of a float32 matrix [K, N].

    Raises:
        SparseccError: an entry is beyond the range of float16.
    """
    rows, columns = matrix.shape.numpy()
    _require_range(matrix)
    return _initializer(name, (columns, rows), lambda: np.ascontiguousarray(_half(matrix).T))


def _initializer(name: str, shape: tuple[int, int], make: Callable[[], NDArray[np.float16]]) -> ir.Value:
    half = ir.DataType.FLOAT16
    lazy = ir.LazyTensor(lambda: ir.Tensor(make()), half, ir.Shape(shape), name=name)
    return ir.Value(name=name, const_value=lazy, shape=ir.Shape(shape), type=ir.TensorType(half))


def _require_range(matrix: ir.TensorProtocol) -> None:
    """Before the model is written, because what is raised then is wrapped."""
    array = matrix.numpy()
    in_range = bool(array.max() <= _LARGEST_HALF and array.min() >= -_LARGEST_HALF)
    del array
    _release(matrix)
    if not in_range:
        raise SparseccError(f"{matrix.name} has weights beyond the range of float16; choose fp32, int8 or int4")


def _half(matrix: ir.TensorProtocol) -> NDArray[np.float16]:
    half: NDArray[np.float16] = matrix.numpy().astype(np.float16)
    _release(matrix)
    return half


def _release(matrix: ir.TensorProtocol) -> None:
    """Else the whole model stays mapped, and counts as this process's memory."""
    if isinstance(matrix, ir.ExternalTensor):
        matrix.release()
