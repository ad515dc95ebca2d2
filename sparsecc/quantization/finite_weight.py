"""Read the weight of a projection that is to be quantized."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.errors import SparseccError
from sparsecc.projections import Projection


def finite_weight(projection: Projection) -> NDArray[np.float32]:
    """A copy float32 [K, N] of a projection's weight, of which nothing stays mapped.

    Raises:
        SparseccError: a weight is NaN or infinite, which no integer stands for.
    """
    tensor = projection.weight.const_value
    assert tensor is not None
    weight: NDArray[np.float32] = np.array(tensor.numpy(), np.float32)
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    if not np.isfinite(weight).all():
        raise SparseccError(f"{projection.name} has weights that are NaN or infinite; check the checkpoint")
    return weight
