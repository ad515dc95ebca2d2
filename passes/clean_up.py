from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass


class CleanUpPass(ir.passes.InPlacePass):
    """Remove the nodes, initializers, functions and opset imports that nothing uses.

    onnx_ir cuts absent inputs off the end of a node on the way. They are put back, because onnx's reference evaluator
    wants a SparseMatMul without a bias to say so.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        inputs = {node: len(node.inputs) for node in model.graph}
        modified = [
            RemoveUnusedNodesPass()(model).modified,
            RemoveUnusedFunctionsPass()(model).modified,  # type: ignore[no-untyped-call]
            RemoveUnusedOpsetsPass()(model).modified,
        ]
        for node in model.graph:
            node.resize_inputs(inputs[node])
        return ir.passes.PassResult(model, any(modified))

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                raise ir.passes.PostconditionError(f"nothing uses {node.name}")
