"""Add constants to a graph, and read those that it has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Add an initializer, under another name where the name is taken."""
    while name in graph.initializers:
        name += "_"
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


def float32_copy(tensor: ir.TensorProtocol) -> NDArray[np.float32]:
    """A constant as an array of its own. Of external data nothing stays mapped, which would count as memory."""
    array = np.array(tensor.numpy(), np.float32)
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return array
