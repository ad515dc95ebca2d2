from __future__ import annotations

import logging

import onnx_ir as ir

from sparsecc.projections import SPARSE_DOMAIN, is_linear

logger = logging.getLogger(__name__)


class InsertGatherActivePass(ir.passes.InPlacePass):
    """Put a GatherActive behind every Threshold that feeds a projection.

    It lists the channels that survived, once for all the projections that share the Threshold. Nothing consumes the
    list yet.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "Threshold" or node.domain != SPARSE_DOMAIN:
                continue
            consumers = node.outputs[0].consumers()
            if any(consumer.op_type == "GatherActive" for consumer in consumers):
                logger.debug("%s has a GatherActive already", node.name)
            elif any(is_linear(consumer) for consumer in consumers):
                model.graph.insert_after(node, _gather_active(node))
                modified = True
        return ir.passes.PassResult(model, modified)


def _gather_active(threshold: ir.Node) -> ir.Node:
    name = (threshold.name or "").removesuffix("/Threshold") + "/GatherActive"
    hidden = threshold.outputs[0]
    leading = [*hidden.shape][:-1] if hidden.shape is not None else None
    active = ir.SymbolicDim(f"{name}/active")
    values = ir.Value(
        name=f"{name}/values", type=hidden.type, shape=ir.Shape([*leading, active]) if leading is not None else None
    )
    indices = ir.Value(name=f"{name}/indices", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([active]))
    return ir.node("GatherActive", [hidden], domain=SPARSE_DOMAIN, name=name, outputs=[values, indices])
