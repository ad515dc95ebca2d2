from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, VERSION, is_added
from sparsecc.projections import is_linear
from sparsecc.quantization.half_tensor import half_matrix


class HalveAddedPass(ir.passes.InPlacePass):
    """Store in float16 the products that a method added beside the projections: low-rank branches, residual adapters.

    Each becomes a GatherActive and a SparseMatMul, which multiply by float16, without a threshold: every channel is
    read. Products of one hidden state share the GatherActive.

    Raises:
        SparseccError: a weight is beyond the range of float16.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        whole = _whole(model.graph)
        gathers: dict[ir.Value, ir.Node] = {}
        for node in whole:
            _halve(model.graph, node, gathers)
        if whole:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(whole))

    def ensures(self, model: ir.Model) -> None:
        for node in _whole(model.graph):
            raise ir.passes.PostconditionError(f"{node.name} reads a float32 weight")


def _whole(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "MatMul" and is_linear(node) and is_added(node)]


def _halve(graph: ir.Graph, node: ir.Node, gathers: dict[ir.Value, ir.Node]) -> None:
    hidden, weight = node.inputs
    assert hidden is not None
    assert weight is not None
    assert weight.const_value is not None
    name = (node.name or "").removesuffix("/MatMul")
    half = half_matrix(weight.const_value, f"{weight.name}_fp16")
    graph.register_initializer(half)
    if hidden not in gathers:
        gathers[hidden] = _gather(hidden, name)
        graph.insert_before(node, gathers[hidden])
    output = node.outputs[0]
    product = ir.node(
        "SparseMatMul",
        [*gathers[hidden].outputs, half, None],
        domain=DOMAIN,
        name=f"{name}/SparseMatMul",
        outputs=[ir.Value(name=output.name, shape=output.shape, type=output.type)],
        metadata_props={**node.metadata_props, "calibrated_sparsity": "0.0000"},
    )
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], [output], product.outputs)


def _gather(hidden: ir.Value, name: str) -> ir.Node:
    values = ir.Value(name=f"{name}/GatherActive/values", type=hidden.type)
    indices = ir.Value(name=f"{name}/GatherActive/indices", type=ir.TensorType(ir.DataType.INT64))
    return ir.node("GatherActive", [hidden], domain=DOMAIN, name=f"{name}/GatherActive", outputs=[values, indices])
