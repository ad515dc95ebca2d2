from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


class TapValuesPass(ir.passes.InPlacePass):
    """Make inner values of the graph outputs of it, after those it has.

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
        values = _values(model.graph)
        tapped = [values[name] for name in self.names if not values[name].is_graph_output()]
        model.graph.outputs.extend(tapped)
        return ir.passes.PassResult(model, bool(tapped))

    def ensures(self, model: ir.Model) -> None:
        missing = set(self.names) - {output.name for output in model.graph.outputs}
        if missing:
            raise ir.passes.PostconditionError(f"{sorted(missing)[0]} is no output")


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    return {value.name: value for node in graph for value in node.outputs if value.name}
