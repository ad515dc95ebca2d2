from __future__ import annotations

import onnx_ir as ir

from sparsecc.projections import SPARSE_DOMAIN


def active_count_name(threshold: ir.Node) -> str:
    """The graph output with the number of entries that a Threshold kept, summed over all rows."""
    return f"{threshold.name}/active_count"


class CountActivePass(ir.passes.InPlacePass):
    """Add an output behind every Threshold that counts the entries it kept, so that sparsity is measured."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        present = {output.name for output in model.graph.outputs}
        modified = False
        for node in list(model.graph):
            if node.op_type == "Threshold" and node.domain == SPARSE_DOMAIN and active_count_name(node) not in present:
                model.graph.outputs.append(_insert_count(model.graph, node))
                modified = True
        return ir.passes.PassResult(model, modified)


def _insert_count(graph: ir.Graph, threshold: ir.Node) -> ir.Value:
    """Every non-zero entry, NaN too, is true as a boolean; a sum wants integers."""
    is_active = ir.node("Cast", threshold.outputs, {"to": ir.DataType.BOOL})
    as_integer = ir.node("Cast", is_active.outputs, {"to": ir.DataType.INT64})
    count = ir.Value(name=active_count_name(threshold), type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    total = ir.node("ReduceSum", as_integer.outputs, {"keepdims": 0}, outputs=[count])
    graph.insert_after(threshold, [is_active, as_integer, total])
    return count
