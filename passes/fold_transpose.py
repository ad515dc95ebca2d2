from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from sparsecc.block_dequantization import read_constant
from sparsecc.initializers import register


class FoldTransposePass(ir.passes.InPlacePass):
    """Transpose the constant float32 matrices that are transposed before a MatMul multiplies by them, when written."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = _transposed_weights(model)
        for node in nodes:
            matrix = node.inputs[0]
            assert matrix is not None
            assert matrix.const_value is not None
            rows, columns = matrix.const_value.shape.numpy()
            transposed = functools.partial(_transposed, matrix.const_value)
            tensor = ir.LazyTensor(transposed, ir.DataType.FLOAT, ir.Shape([columns, rows]))
            weight = register(model.graph, f"{matrix.name}_transposed", tensor)
            ir.convenience.replace_all_uses_with(node.outputs[0], weight)
            model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        for node in _transposed_weights(model):
            raise ir.passes.PostconditionError(f"{node.name} transposes a weight")


def _transposed_weights(model: ir.Model) -> list[ir.Node]:
    """Each Transpose of a constant matrix that MatMuls multiply by, and nothing else reads."""
    return [
        node
        for node in model.graph
        if (node.domain, node.op_type) == ("", "Transpose")
        and len(node.inputs) == 1
        and _is_matrix(node.inputs[0])
        and _is_reversal(node)
        and not node.outputs[0].is_graph_output()
        and all(_multiplies_by(consumer, node.outputs[0]) for consumer in node.outputs[0].consumers())
    ]


def _is_matrix(value: ir.Value | None) -> bool:
    tensor = value.const_value if value is not None else None
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2


def _is_reversal(node: ir.Node) -> bool:
    """Without a ``perm`` all axes are reversed."""
    order = node.attributes.get("perm")
    return order is None or (order.type == ir.AttributeType.INTS and list(order.as_ints()) == [1, 0])


def _multiplies_by(node: ir.Node, weight: ir.Value) -> bool:
    return (node.domain, node.op_type) == ("", "MatMul") and node.inputs[0] is not weight


def _transposed(matrix: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.ascontiguousarray(read_constant(matrix).T))
