from __future__ import annotations

import onnx_ir as ir

from sparsecc.projections import SPARSE_DOMAIN
from sparsecc.runtime_ops.definitions import VERSION, model_local_functions


class ShipFunctionsPass(ir.passes.InPlacePass):
    """Add the sparse operators that a model uses to it as functions, so that it runs where they are unknown."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        used = {node.op_type for node in model.graph if node.domain == SPARSE_DOMAIN}
        missing = [
            function
            for function in model_local_functions()
            if function.name in used and function.identifier() not in model.functions
        ]
        for function in missing:
            function.opset_imports[""] = model.opset_imports.get("", function.opset_imports[""])  # its ops are older
            model.functions[function.identifier()] = function
        if used:
            model.opset_imports[SPARSE_DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(missing))
