from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import is_swiglu


class UnfuseSwiGLUPass(ir.passes.InPlacePass):
    """Undo :class:`FuseSwiGLUPass`, for who looks at the gate and up: Split -> Sigmoid -> Mul -> Mul.

    Raises:
        ir.passes.PreconditionError: a SwiGLU does not have one input and one output.
    """

    def requires(self, model: ir.Model) -> None:
        for swiglu in filter(is_swiglu, model.graph):
            if len(swiglu.inputs) != 1 or swiglu.inputs[0] is None or len(swiglu.outputs) != 1:
                raise ir.passes.PreconditionError(f"{swiglu.name} does not have one input and one output")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = list(filter(is_swiglu, model.graph))
        for swiglu in found:
            nodes = _four_nodes(swiglu)
            ir.convenience.replace_nodes_and_values(
                model.graph, swiglu, [swiglu], nodes, swiglu.outputs, nodes[-1].outputs
            )
        return ir.passes.PassResult(model, bool(found))


def _four_nodes(swiglu: ir.Node) -> list[ir.Node]:
    """Named after the operator or, without a name, after its output, so that no two are called alike."""
    output = swiglu.outputs[0]
    label = swiglu.name or output.name

    def value(name: str) -> ir.Value:
        return ir.Value(name=f"{label}/{name}", shape=output.shape, type=output.type)

    gate, up, sigmoid, silu = value("gate"), value("up"), value("Sigmoid/output_0"), value("SiLU/output_0")
    product = ir.Value(name=output.name, shape=output.shape, type=output.type)
    return [
        ir.node("Split", swiglu.inputs, {"axis": -1, "num_outputs": 2}, outputs=[gate, up], name=f"{label}/Split"),
        ir.node("Sigmoid", [gate], outputs=[sigmoid], name=f"{label}/Sigmoid"),
        ir.node("Mul", [gate, sigmoid], outputs=[silu], name=f"{label}/SiLU"),
        ir.node("Mul", [silu, up], outputs=[product], name=f"{label}/Mul"),
    ]
