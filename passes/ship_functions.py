from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, VERSION
from sparsecc.runtime_ops.definitions import model_local_functions

OLDEST_OPSET = 18


class ShipFunctionsPass(ir.passes.InPlacePass):
    """Add the sparse operators that a model uses to it as functions, so that it runs where they are unknown.

    A model's functions must speak its version of ONNX. The bodies mean the same in every opset from 18 on.

    Raises:
        ir.passes.PreconditionError: the model's opset is older, or it uses a sparse operator that there is not.
    """

    def requires(self, model: ir.Model) -> None:
        if model.opset_imports.get("", OLDEST_OPSET) < OLDEST_OPSET:
            raise ir.passes.PreconditionError(
                f"the model has opset {model.opset_imports['']}; export it with opset {OLDEST_OPSET} or newer"
            )
        for _, name, _ in _undefined_operators(model) - {function.identifier() for function in model_local_functions()}:
            raise ir.passes.PreconditionError(f"the model uses {DOMAIN}.{name}, which this sparsecc does not know")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        undefined = _undefined_operators(model)
        functions = [function for function in model_local_functions() if function.identifier() in undefined]
        for function in functions:
            if "" in function.opset_imports and "" in model.opset_imports:
                function.opset_imports[""] = model.opset_imports[""]
            model.functions[function.identifier()] = function
        is_imported = model.opset_imports.get(DOMAIN) == VERSION or not _used_operators(model)
        if not is_imported:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(functions) or not is_imported)

    def ensures(self, model: ir.Model) -> None:
        for _, name, _ in _undefined_operators(model):
            raise ir.passes.PostconditionError(f"the model uses {DOMAIN}.{name} and does not define it")
        if _used_operators(model) and model.opset_imports.get(DOMAIN) != VERSION:
            raise ir.passes.PostconditionError(f"the model does not import version {VERSION} of {DOMAIN}")


def _used_operators(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """The sparse operators of the graph, and those that their definitions are made of."""
    bodies = {function.identifier(): function for function in model_local_functions()}
    used = {node.op_identifier() for node in model.graph if node.domain == DOMAIN}
    reached = [*used]
    while reached:
        body = bodies.get(reached.pop(), ())
        inner = {node.op_identifier() for node in body if node.domain == DOMAIN} - used
        used |= inner
        reached += inner
    return used


def _undefined_operators(model: ir.Model) -> set[ir.OperatorIdentifier]:
    """The sparse operators that are used and not defined in the model."""
    return _used_operators(model) - model.functions.keys()
