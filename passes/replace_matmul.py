from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, is_gather_active
from sparsecc.projections import is_linear, projections_and_head


class ReplaceMatMulPass(ir.passes.InPlacePass):
    """Replace each MatMul behind a GatherActive by a SparseMatMul, which reads the weight rows of active channels only.

    The weight stays the initializer it was, W[K, N] with one contiguous row an input channel. The absent bias is
    written as an empty name, because onnx's reference evaluator wants every input of a function to be given.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = {projection.node: projection.name for projection in projections_and_head(model.graph)}
        replaceable = _replaceable(model.graph)
        for node, gather in replaceable.items():
            replacement = _sparse_matmul(node, gather, names.get(node) or (node.name or "").removesuffix("/MatMul"))
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [replacement], node.outputs, replacement.outputs
            )
        return ir.passes.PassResult(model, bool(replaceable))

    def ensures(self, model: ir.Model) -> None:
        for node in _replaceable(model.graph):
            raise ir.passes.PostconditionError(f"{node.name} reads every row of its weight behind a GatherActive")


def _replaceable(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """Each MatMul with a constant matrix whose hidden state a GatherActive reads as well, and the GatherActive."""
    gathers = {node.inputs[0]: node for node in graph if is_gather_active(node)}
    return {
        node: gathers[node.inputs[0]]
        for node in graph
        if node.op_type == "MatMul" and is_linear(node) and node.inputs[0] in gathers
    }


def _sparse_matmul(matmul: ir.Node, gather: ir.Node, name: str) -> ir.Node:
    values, indices = gather.outputs
    product = matmul.outputs[0]
    return ir.node(
        "SparseMatMul",
        [values, indices, matmul.inputs[1], None],
        domain=DOMAIN,
        name=f"{name}/SparseMatMul",
        outputs=[ir.Value(name=product.name, shape=product.shape, type=product.type)],
        metadata_props=dict(matmul.metadata_props),
    )
