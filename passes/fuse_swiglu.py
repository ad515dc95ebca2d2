from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from sparsecc.operators import DOMAIN


@dataclasses.dataclass(frozen=True)
class _Activation:
    """Nodes that compute silu(gate) * up of the two halves of a value's channels."""

    split: ir.Node
    sigmoid: ir.Node
    silu: ir.Node
    gated: ir.Node

    @property
    def is_read_only_here(self) -> bool:
        """Whether nothing else reads what lies between the value and the result."""
        gate, up = self.split.outputs
        reads = {gate: 2, up: 1, self.sigmoid.outputs[0]: 1, self.silu.outputs[0]: 1}
        return all(len(value.uses()) == count and not value.is_graph_output() for value, count in reads.items())


class FuseSwiGLUPass(ir.passes.InPlacePass):
    """Make Split -> Sigmoid -> Mul -> Mul one SwiGLU, where gate and up are the halves of one product.

    For one token each of the four takes longer to start than to compute. :class:`MergeProductsPass` makes such
    products, and :class:`UnfuseSwiGLUPass` undoes this.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        activations = list(_activations(model.graph))
        for activation in activations:
            _fuse(model.graph, activation)
        return ir.passes.PassResult(model, bool(activations))

    def ensures(self, model: ir.Model) -> None:
        for activation in _activations(model.graph):
            raise ir.passes.PostconditionError(f"{activation.split.name} and what follows could be one operator")


def _activations(graph: ir.Graph) -> Iterator[_Activation]:
    for gated in graph:
        for activated, up in _both_orders(gated):
            for gate, sigmoid in _both_orders(activated.producer()):
                activation = _activation(gated, activated, sigmoid, gate, up)
                if activation is not None and activation.is_read_only_here:
                    yield activation


def _both_orders(product: ir.Node | None) -> list[tuple[ir.Value, ir.Value]]:
    """The factors of a Mul in either order; nothing of another node."""
    if product is None or not _is(product, "Mul") or len(product.inputs) != 2:
        return []
    first, second = product.inputs
    return [(first, second), (second, first)] if first is not None and second is not None else []


def _activation(
    gated: ir.Node, activated: ir.Value, sigmoid: ir.Value, gate: ir.Value, up: ir.Value
) -> _Activation | None:
    silu, activation, split = activated.producer(), sigmoid.producer(), gate.producer()
    if silu is None or activation is None or split is None or not _halves(split):
        return None
    is_silu = _is(activation, "Sigmoid") and activation.inputs[0] is gate
    return _Activation(split, activation, silu, gated) if is_silu and [gate, up] == list(split.outputs) else None


def _halves(split: ir.Node) -> bool:
    """Whether a node splits channels in the middle."""
    if not _is(split, "Split") or split.attributes.get_int("axis", 0) != -1 or len(split.inputs) != 2:
        return False
    widths = split.inputs[1].const_value if split.inputs[1] is not None else None
    if widths is None or widths.shape.numpy() != (2,):
        return False
    first, second = widths.numpy().tolist()
    return bool(first == second)


def _is(node: ir.Node, op_type: str) -> bool:
    return (node.domain, node.op_type) == ("", op_type)


def _fuse(graph: ir.Graph, activation: _Activation) -> None:
    output = activation.gated.outputs[0]
    fused = ir.node(
        "SwiGLU",
        activation.split.inputs[:1],
        domain=DOMAIN,
        name=f"{(activation.split.name or '').rpartition('/')[0]}/SwiGLU",
        outputs=[ir.Value(name=output.name, shape=output.shape, type=output.type)],
    )
    replaced = [activation.gated, activation.silu, activation.sigmoid, activation.split]
    ir.convenience.replace_nodes_and_values(graph, activation.gated, replaced, [fused], [output], fused.outputs)
