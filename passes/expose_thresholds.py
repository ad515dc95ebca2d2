from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, VERSION
from sparsecc.projections import Projection, find_projections


def threshold_input_name(projection: str) -> str:
    """The graph input that holds the threshold of a projection of that name, float32 [1] or [K]."""
    return f"{projection}/Threshold/T"


class ExposeThresholdsPass(ir.passes.InPlacePass):
    """Put a Threshold of its own before every projection, with the threshold as an input of the graph.

    So that thresholds can be tried without building a session for each. A projection that has a Threshold keeps it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        bare = _without_threshold(model)
        for projection in bare:
            _insert_threshold(model.graph, projection)
        if bare:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(bare))

    def ensures(self, model: ir.Model) -> None:
        for projection in _without_threshold(model):
            raise ir.passes.PostconditionError(f"{projection.name} has no Threshold")


def _without_threshold(model: ir.Model) -> list[Projection]:
    return [projection for projection in find_projections(model.graph) if projection.threshold is None]


def _insert_threshold(graph: ir.Graph, projection: Projection) -> None:
    name = threshold_input_name(projection.name)
    entries = ir.Shape([ir.SymbolicDim(f"{name}/entries")])
    threshold = ir.Value(name=name, shape=entries, type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(threshold)
    hidden = projection.input
    node = ir.node(
        "Threshold",
        [hidden, threshold],
        {"max_sparse_rows": 0},
        domain=DOMAIN,
        name=f"{projection.name}/Threshold",
        outputs=[ir.Value(name=f"{projection.name}/Threshold/output_0", shape=hidden.shape, type=hidden.type)],
    )
    graph.insert_before(projection.node, node)
    projection.node.replace_input_with(0, node.outputs[0])
