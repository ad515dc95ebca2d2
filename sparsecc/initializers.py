"""Add constants to a graph."""

from __future__ import annotations

import onnx_ir as ir


def register(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Add an initializer, under another name where the name is taken."""
    while name in graph.initializers:
        name += "_"
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value
