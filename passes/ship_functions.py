from __future__ import annotations

import onnx_ir as ir

from sparsecc.projections import SPARSE_DOMAIN
from sparsecc.runtime_ops.definitions import VERSION, model_local_functions

OLDEST_OPSET = 18


class ShipFunctionsPass(ir.passes.InPlacePass):
    """Add the sparse operators that a model uses to it as functions, so that it runs where they are unknown.

    A model's functions must speak its version of ONNX. The bodies mean the same in every opset from 18 on.

    Raises:
        ir.passes.PreconditionError: the model's opset is older.
    """

    def requires(self, model: ir.Model) -> None:
        if model.opset_imports.get("", OLDEST_OPSET) < OLDEST_OPSET:
            raise ir.passes.PreconditionError(
                f"the model has opset {model.opset_imports['']}; export it with opset {OLDEST_OPSET} or newer"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        used = {node.op_type for node in model.graph if node.domain == SPARSE_DOMAIN}
        missing = [
            function
            for function in model_local_functions()
            if function.name in used and function.identifier() not in model.functions
        ]
        for function in missing:
            function.opset_imports[""] = model.opset_imports.get("", function.opset_imports[""])
            model.functions[function.identifier()] = function
        if used:
            model.opset_imports[SPARSE_DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(missing))
