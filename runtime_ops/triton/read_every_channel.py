"""Products of all channels, where those that count would first have to be listed."""

from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import is_gather_active, is_gather_matmul, is_product
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN

EVERY_CHANNEL = "EveryChannel"
"""Y[..., K] -> Y and the indices 0 to K - 1."""


class ReadEveryChannelPass(ir.passes.InPlacePass):
    """Replace GatherActive by an operator that lists all channels, where only sums over the channels are computed.

    How many channels are active is known on the device alone: the host would have to wait for it, and a step whose
    shapes depend on it cannot be captured as a CUDA graph. A channel that is zero adds nothing to a sum, so products
    are the same, also where GatherMatMul computes what the channels are multiplied by.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gathers = [
            node for node in model.graph if is_gather_active(node) and len(node.outputs) == 2 and _only_sums_read(node)
        ]
        for gather in gathers:
            every = ir.node(
                EVERY_CHANNEL, gather.inputs, domain=EXECUTOR_DOMAIN, name=f"{gather.name}/every", num_outputs=2
            )
            ir.convenience.replace_nodes_and_values(
                model.graph, gather, [gather], [every], gather.outputs, every.outputs
            )
        return ir.passes.PassResult(model, bool(gathers))


def _only_sums_read(gather: ir.Node) -> bool:
    """Whether what is listed ends in products, whichever channels it is of."""
    values, indices = gather.outputs
    by_channel = {values, *(node.outputs[0] for node, _ in indices.uses() if is_gather_matmul(node))}
    pending = [*by_channel]
    while pending:
        for node, _ in pending.pop().uses():
            if node.op_type == "Mul" and by_channel.issuperset(node.inputs) and node.outputs[0] not in by_channel:
                by_channel.add(node.outputs[0])
                pending.append(node.outputs[0])
    listed = {indices, *by_channel}
    is_alone = not any(value.is_graph_output() for value in listed)
    return is_alone and all(_is_served(node, index, by_channel, indices) for v in listed for node, index in v.uses())


def _is_served(node: ir.Node, index: int, by_channel: set[ir.Value], indices: ir.Value) -> bool:
    """Whether a node that reads what is listed computes the same of all channels."""
    if is_product(node):
        return index < 2 and node.inputs[0] in by_channel and node.inputs[1] is indices
    if is_gather_matmul(node):
        return index == 1 and node.inputs[1] is indices
    return node.op_type == "Mul" and node.domain == "" and by_channel.issuperset(node.inputs)
