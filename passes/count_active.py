from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import is_selection


def active_count_name(threshold: ir.Node) -> str:
    """The graph output with the number of entries that a Threshold or KeepLargest kept, summed over all rows."""
    return f"{threshold.name}/active_count"


class CountActivePass(ir.passes.InPlacePass):
    """Add an output behind every Threshold or KeepLargest that counts the entries it kept: sparsity is measured so.

    Raises:
        ir.passes.PreconditionError: two Thresholds have one name, so that their counts could not be told apart.
    """

    def requires(self, model: ir.Model) -> None:
        names = [node.name for node in model.graph if is_selection(node)]
        if len(names) != len(set(names)):
            raise ir.passes.PreconditionError("two Thresholds of the model have one name")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        uncounted = _uncounted(model.graph)
        model.graph.outputs.extend([_insert_count(model.graph, threshold) for threshold in uncounted])
        return ir.passes.PassResult(model, bool(uncounted))

    def ensures(self, model: ir.Model) -> None:
        for threshold in _uncounted(model.graph):
            raise ir.passes.PostconditionError(f"nothing counts what {threshold.name} keeps")


def _uncounted(graph: ir.Graph) -> list[ir.Node]:
    counts = {output.name for output in graph.outputs}
    return [node for node in graph if is_selection(node) and active_count_name(node) not in counts]


def _insert_count(graph: ir.Graph, threshold: ir.Node) -> ir.Value:
    """Every non-zero entry, NaN too, is true as a boolean; a sum wants integers."""
    is_active = ir.node("Cast", threshold.outputs, {"to": ir.DataType.BOOL})
    as_integer = ir.node("Cast", is_active.outputs, {"to": ir.DataType.INT64})
    count = ir.Value(name=active_count_name(threshold), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    total = ir.node("ReduceSum", as_integer.outputs, {"keepdims": 0}, outputs=[count])
    graph.insert_after(threshold, [is_active, as_integer, total])
    return count
