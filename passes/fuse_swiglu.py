from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from sparsecc.operators import DOMAIN, columns_of, is_product, is_sparse_linear


@dataclasses.dataclass(frozen=True)
class _Activation:
    """Nodes that compute silu(gate) * up of the two halves of a product's columns."""

    split: ir.Node
    sigmoid: ir.Node
    silu: ir.Node
    gated: ir.Node

    @property
    def is_read_only_here(self) -> bool:
        """Whether nothing else reads what lies between the product and the result."""
        gate, up = self.split.outputs
        reads = {gate: 2, up: 1, self.sigmoid.outputs[0]: 1, self.silu.outputs[0]: 1}
        return all(len(value.uses()) == count and not value.is_graph_output() for value, count in reads.items())


class FuseSwiGLUPass(ir.passes.InPlacePass):
    """Make Split -> Sigmoid -> Mul -> Mul one SwiGLU, where gate and up are the halves of one sparse product.

    For one token each of the four takes longer to start than to compute. :class:`MergeProductsPass` makes such
    products, and :class:`UnfuseSwiGLUPass` undoes this. A sparse product is float32, as SwiGLU has to be.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        activations = list(_activations(model.graph))
        taken = {node.name for node in model.graph}
        for activation in activations:
            _fuse(model.graph, activation, _name(activation, taken))
        return ir.passes.PassResult(model, bool(activations))

    def ensures(self, model: ir.Model) -> None:
        for activation in _activations(model.graph):
            raise ir.passes.PostconditionError(f"{activation.split.name} and what follows could be one operator")


def _activations(graph: ir.Graph) -> Iterator[_Activation]:
    for gated in graph:
        for activated, up in _both_orders(gated):
            for gate, opened in _both_orders(activated.producer()):
                activation = _activation(gated, activated, gate, opened)
                is_whole = activation is not None and [gate, up] == list(activation.split.outputs)
                if activation is not None and is_whole and activation.is_read_only_here:
                    yield activation


def _both_orders(product: ir.Node | None) -> list[tuple[ir.Value, ir.Value]]:
    """The factors of a Mul in either order; nothing of another node."""
    if product is None or not _is(product, "Mul") or len(product.inputs) != 2:
        return []
    first, second = product.inputs
    return [(first, second), (second, first)] if first is not None and second is not None else []


def _activation(gated: ir.Node, activated: ir.Value, gate: ir.Value, opened: ir.Value) -> _Activation | None:
    silu, sigmoid, split = activated.producer(), opened.producer(), gate.producer()
    if silu is None or sigmoid is None or split is None:
        return None
    is_silu = _is(sigmoid, "Sigmoid") and tuple(sigmoid.inputs) == (gate,)
    return _Activation(split, sigmoid, silu, gated) if is_silu and _halves_a_product(split) else None


def _halves_a_product(split: ir.Node) -> bool:
    """Whether a node splits the columns of a sparse product in the middle."""
    axis, value = split.attributes.get("axis"), split.inputs[0] if split.inputs else None
    product = value.producer() if value is not None else None
    if not _is(split, "Split") or len(split.outputs) != 2 or axis is None or axis.value != -1:
        return False
    if product is None or not (is_product(product) or is_sparse_linear(product)):
        return False
    weight = product.inputs[2] if len(product.inputs) > 2 else None
    if weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    columns = columns_of(product)
    if len(split.inputs) == 1:
        return columns % 2 == 0
    widths = split.inputs[1].const_value if split.inputs[1] is not None else None
    return widths is not None and widths.numpy().tolist() == [columns / 2, columns / 2]


def _is(node: ir.Node, op_type: str) -> bool:
    return (node.domain, node.op_type) == ("", op_type)


def _name(activation: _Activation, taken: set[str | None]) -> str:
    """What the operator is called, like no other node: after the product, as the Split is."""
    label = (activation.split.name or "").rpartition("/")[0] or activation.gated.outputs[0].name
    name = f"{label}/SwiGLU"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _fuse(graph: ir.Graph, activation: _Activation, name: str) -> None:
    output = activation.gated.outputs[0]
    fused = ir.node(
        "SwiGLU",
        activation.split.inputs[:1],
        domain=DOMAIN,
        name=name,
        outputs=[ir.Value(name=output.name, shape=output.shape, type=output.type)],
    )
    replaced = [activation.gated, activation.silu, activation.sigmoid, activation.split]
    ir.convenience.replace_nodes_and_values(graph, activation.gated, replaced, [fused], [output], fused.outputs)
