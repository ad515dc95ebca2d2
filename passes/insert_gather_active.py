from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, is_gather_active, is_selection
from sparsecc.projections import is_linear


class InsertGatherActivePass(ir.passes.InPlacePass):
    """Put a GatherActive behind every Threshold or KeepLargest that feeds a projection.

    It lists the channels that survived, once for all the projections that share it. Nothing consumes the
    list yet.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        ungathered = _ungathered(model.graph)
        for threshold in ungathered:
            model.graph.insert_after(threshold, _gather_active(threshold))
        return ir.passes.PassResult(model, bool(ungathered))

    def ensures(self, model: ir.Model) -> None:
        for threshold in _ungathered(model.graph):
            raise ir.passes.PostconditionError(f"{threshold.name} feeds a projection and has no GatherActive")


def _ungathered(graph: ir.Graph) -> list[ir.Node]:
    """The selections that feed a projection and no GatherActive."""
    consumers = {node: node.outputs[0].consumers() for node in graph if is_selection(node)}
    return [
        threshold
        for threshold, nodes in consumers.items()
        if any(map(is_linear, nodes)) and not any(map(is_gather_active, nodes))
    ]


def _gather_active(threshold: ir.Node) -> ir.Node:
    name = (threshold.name or "").removesuffix(f"/{threshold.op_type}") + "/GatherActive"
    hidden = threshold.outputs[0]
    leading = [*hidden.shape][:-1] if hidden.shape is not None else None
    active = ir.SymbolicDim(f"{name}/active")
    values = ir.Value(
        name=f"{name}/values", type=hidden.type, shape=ir.Shape([*leading, active]) if leading is not None else None
    )
    indices = ir.Value(name=f"{name}/indices", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([active]))
    return ir.node("GatherActive", [hidden], domain=DOMAIN, name=name, outputs=[values, indices])
