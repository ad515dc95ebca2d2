from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sparsecc.operators import DOMAIN, VERSION
from sparsecc.passes.expose_thresholds import exposed_threshold, threshold_input_name


class ThresholdValuesPass(ir.passes.InPlacePass):
    """Put a Threshold behind inner values, with the threshold as an input of the graph: all that read them read it.

    Where a recipe thresholds what projections read, this serves values of any meaning, and thresholds that are tried
    without building a session for each.

    Raises:
        ir.passes.PreconditionError: the graph has no value of that name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(dict.fromkeys(names))

    def requires(self, model: ir.Model) -> None:
        missing = set(self.names) - set(_values(model.graph))
        if missing:
            raise ir.passes.PreconditionError(f"the graph has no value named {sorted(missing)[0]}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        bare = self._without_threshold(model.graph)
        for value in bare:
            _insert_threshold(model.graph, value)
        if bare:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(bare))

    def ensures(self, model: ir.Model) -> None:
        for value in self._without_threshold(model.graph):
            raise ir.passes.PostconditionError(f"{value.name} has no Threshold")

    def _without_threshold(self, graph: ir.Graph) -> list[ir.Value]:
        values, thresholds = _values(graph), {value.name for value in graph.inputs}
        return [values[name] for name in self.names if threshold_input_name(name) not in thresholds]


def _insert_threshold(graph: ir.Graph, value: ir.Value) -> None:
    readers = value.uses()
    node = exposed_threshold(graph, str(value.name), value)
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    for reader, index in readers:
        reader.replace_input_with(index, node.outputs[0])


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    return {value.name: value for node in graph for value in node.outputs if value.name}
