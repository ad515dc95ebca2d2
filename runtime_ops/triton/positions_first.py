"""What attention needs to know of positions, computed before all else."""

from __future__ import annotations

import onnx_ir as ir

_FIRST_OF_POSITIONS = 5
"""Of GroupQueryAttention's inputs: from here on they say where tokens are and by how much to turn them."""


class PositionsFirstPass(ir.passes.InPlacePass):
    """Move the nodes that only attention's positions come from to the beginning of the graph.

    Attention on a GPU reads its position before the launch ahead of it has ended, so that launch must not compute it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sources = _sources_of_positions(model.graph)
        first = [node for node in model.graph if node in sources]
        others = [node for node in model.graph if node not in sources]
        if not first or [*model.graph][: len(first)] == first:
            return ir.passes.PassResult(model, False)
        model.graph.remove(first)
        model.graph.insert_before(others[0], first)
        return ir.passes.PassResult(model, True)


def _sources_of_positions(graph: ir.Graph) -> set[ir.Node]:
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    pending = [value for node in attentions for value in node.inputs[_FIRST_OF_POSITIONS:]]
    sources: set[ir.Node] = set()
    while pending:
        value = pending.pop()
        producer = value.producer() if value is not None else None
        if producer is not None and producer not in sources:
            sources.add(producer)
            pending.extend(producer.inputs)
    return sources
