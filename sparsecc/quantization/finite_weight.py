"""Read weights that are to be quantized."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.errors import SparseccError
from sparsecc.projections import Projection


def weight_array(projection: Projection) -> NDArray[np.float32]:
    """A copy float32 [K, N] of a projection's weight, of which nothing stays mapped.

    Raises:
        SparseccError: a weight is NaN or infinite.
    """
    tensor = projection.weight.const_value
    assert tensor is not None
    weight: NDArray[np.float32] = np.array(tensor.numpy(), np.float32)
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    require_finite(weight, projection.name)
    return weight


def require_finite(weight: NDArray[np.float32], name: str) -> None:
    """Refuse a weight with a NaN or an infinity, which no integer stands for.

    Raises:
        SparseccError: it has one.
    """
    if not np.isfinite(weight).all():
        raise SparseccError(f"{name} has weights that are NaN or infinite; check the checkpoint")
