"""Matrices in float16, converted one at a time when the model is written."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.errors import SparseccError


def half_matrix(matrix: ir.TensorProtocol, name: str) -> ir.Value:
    """An initializer float16 [K, N] of a float32 matrix [K, N].

    Raises:
        SparseccError: when it is written, an entry is beyond the range of float16.
    """
    rows, columns = matrix.shape.numpy()
    return _initializer(name, (rows, columns), functools.partial(_half, matrix))


def transposed_half_matrix(matrix: ir.TensorProtocol, name: str) -> ir.Value:
    """An initializer float16 [N, K] of a float32 matrix [K, N].

    Raises:
        SparseccError: when it is written, an entry is beyond the range of float16.
    """
    rows, columns = matrix.shape.numpy()
    return _initializer(name, (columns, rows), lambda: np.ascontiguousarray(_half(matrix).T))


def _initializer(name: str, shape: tuple[int, int], make: Callable[[], NDArray[np.float16]]) -> ir.Value:
    half = ir.DataType.FLOAT16
    lazy = ir.LazyTensor(lambda: ir.Tensor(make()), half, ir.Shape(shape), name=name)
    return ir.Value(name=name, const_value=lazy, shape=ir.Shape(shape), type=ir.TensorType(half))


def _half(matrix: ir.TensorProtocol) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half: NDArray[np.float16] = matrix.numpy().astype(np.float16)
    if isinstance(matrix, ir.ExternalTensor):
        matrix.release()
    if not np.isfinite(half).all():
        raise SparseccError(f"{matrix.name} has weights beyond the range of float16; store them as fp32, int8 or int4")
    return half
