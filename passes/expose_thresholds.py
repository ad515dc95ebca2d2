from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, VERSION
from sparsecc.projections import Projection, projections_and_head


def threshold_input_name(name: str) -> str:
    """The graph input that holds the threshold of a projection or an inner value of that name, float32 [1] or [K]."""
    return f"{name}/Threshold/T"


class ExposeThresholdsPass(ir.passes.InPlacePass):
    """Put a Threshold of its own before every projection, with the threshold as an input of the graph.

    So that thresholds can be tried without building a session for each. A projection that has a Threshold keeps it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        bare = _without_threshold(model)
        for projection in bare:
            node = exposed_threshold(model.graph, projection.name, projection.input)
            model.graph.insert_before(projection.node, node)
            projection.node.replace_input_with(0, node.outputs[0])
        if bare:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(bare))

    def ensures(self, model: ir.Model) -> None:
        for projection in _without_threshold(model):
            raise ir.passes.PostconditionError(f"{projection.name} has no Threshold")


def _without_threshold(model: ir.Model) -> list[Projection]:
    return [projection for projection in projections_and_head(model.graph) if projection.threshold is None]


def exposed_threshold(graph: ir.Graph, name: str, hidden: ir.Value) -> ir.Node:
    """A Threshold of a value, still outside of the graph, with its threshold as a new input of the graph."""
    threshold_name = threshold_input_name(name)
    entries = ir.Shape([ir.SymbolicDim(f"{threshold_name}/entries")])
    threshold = ir.Value(name=threshold_name, shape=entries, type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(threshold)
    return ir.node(
        "Threshold",
        [hidden, threshold],
        {"max_sparse_rows": 0},
        domain=DOMAIN,
        name=f"{name}/Threshold",
        outputs=[ir.Value(name=f"{name}/Threshold/output_0", shape=hidden.shape, type=hidden.type)],
    )
