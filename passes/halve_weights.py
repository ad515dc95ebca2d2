from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import is_gather_matmul, is_sparse_matmul
from sparsecc.projections import is_linear
from sparsecc.quantization.half_tensor import half_matrix


class HalveWeightsPass(ir.passes.InPlacePass):
    """Store the weight of every SparseMatMul and GatherMatMul in float16, converted when the model is written.

    Raises:
        SparseccError: a weight is beyond the range of float16.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        halves: dict[ir.Value, ir.Value] = {}
        nodes = _with_whole_weight(model.graph)
        for node in nodes:
            weight = node.inputs[2]
            assert weight is not None
            if weight not in halves:
                halves[weight] = half_matrix(_tensor(weight), f"{weight.name}_fp16")
                model.graph.register_initializer(halves[weight])
            node.replace_input_with(2, halves[weight])
        return ir.passes.PassResult(model, bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        for node in _with_whole_weight(model.graph):
            raise ir.passes.PostconditionError(f"{node.name} reads a float32 weight")


def _with_whole_weight(graph: ir.Graph) -> list[ir.Node]:
    products = [node for node in graph if is_sparse_matmul(node) or is_gather_matmul(node)]
    return [node for node in products if is_linear(node) and _tensor(node.inputs[2]).dtype == ir.DataType.FLOAT]


def _tensor(weight: ir.Value | None) -> ir.TensorProtocol:
    assert weight is not None
    assert weight.const_value is not None
    return weight.const_value
