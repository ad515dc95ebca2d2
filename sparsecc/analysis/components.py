"""The components of a decoder layer whose activations are studied, found by what the graph connects."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from sparsecc.projections import ACTIVATION_OPS, PASS_THROUGH_OPS, Projection, is_linear

ATTENTION_INPUT = "attention_input"
O_INPUT = "o_input"
FFN_INPUT = "ffn_input"
PRE_ACTIVATION = "pre_activation"
GATE_ACTIVATION = "gate_activation"
UP = "up"
DOWN_INPUT = "down_input"

COMPONENTS = (ATTENTION_INPUT, O_INPUT, FFN_INPUT, PRE_ACTIVATION, GATE_ACTIVATION, UP, DOWN_INPUT)
"""In the order of the data.

======================  ================================================================================================
``attention_input``     what q, k and v read
``o_input``             what o reads: the heads' results
``ffn_input``           what gate and up read
``pre_activation``      what the activation function reads: the product of gate, or of up in a network without a gate
``gate_activation``     the activated gate; gated networks have it
``up``                  the product of up; gated networks have it
``down_input``          what down reads: gate_activation * up, or without a gate the activated up
======================  ================================================================================================

Products are taken with their bias. The last dimension of a component are its neurons.
"""

FFN_NEURONS = (GATE_ACTIVATION, UP, DOWN_INPUT)
"""What may be zero inside a feed-forward network: these the paper sets to zero where they are small."""


@dataclasses.dataclass(frozen=True)
class Component:
    """A value of the graph with one row a token.

    Attributes:
        layer: the index of the decoder layer, from 0.
        name: one of :data:`COMPONENTS`.
        value: the value of the graph, [..., neurons].
        neurons: its last dimension.
    """

    layer: int
    name: str
    value: ir.Value
    neurons: int


def find_components(projections: Sequence[Projection]) -> list[Component]:
    """The components of a dense decoder with these projections, by layer and in the order of :data:`COMPONENTS`."""
    layers: defaultdict[int, dict[str, Projection]] = defaultdict(dict)
    for projection in projections:
        layers[projection.layer].setdefault(projection.kind, projection)
    return [component for layer in sorted(layers) for component in _of_layer(layer, layers[layer])]


def _of_layer(layer: int, projections: Mapping[str, Projection]) -> Iterator[Component]:
    inputs = {
        ATTENTION_INPUT: _first(projections, "q", "qkv", "k", "v"),
        O_INPUT: projections.get("o"),
        FFN_INPUT: _first(projections, "gate", "gate_up", "up"),
        DOWN_INPUT: projections.get("down"),
    }
    found = {name: Component(layer, name, of.input, of.channels) for name, of in inputs.items() if of is not None}
    if "down" in projections:
        down = projections["down"]
        inner = _inside_network(down, _first(projections, "gate", "gate_up"), projections.get("up"))
        found |= {name: Component(layer, name, value, down.channels) for name, value in inner.items()}
    yield from (found[name] for name in COMPONENTS if name in found)


def _first(projections: Mapping[str, Projection], *kinds: str) -> Projection | None:
    return next((projections[kind] for kind in kinds if kind in projections), None)


def _inside_network(down: Projection, gate: Projection | None, up: Projection | None) -> dict[str, ir.Value]:
    """The values between the projections of a feed-forward network, but for what ``down`` reads."""
    if gate is None:
        return {PRE_ACTIVATION: _before_activation(up.node, down.input)} if up is not None else {}
    multiply = down.input.producer()
    assert multiply is not None
    sides = [value for value in multiply.inputs if value is not None]
    activated = next(side for side in sides if any(node.op_type in ACTIVATION_OPS for node in _behind(side)))
    linear = next(side for side in sides if side is not activated)
    return {PRE_ACTIVATION: _before_activation(gate.node, activated), GATE_ACTIVATION: activated, UP: linear}


def _before_activation(linear: ir.Node, activated: ir.Value) -> ir.Value:
    """The last value that all of ``activated`` is computed from: the product of ``linear``, its bias added."""
    between = _behind(activated)
    value = linear.outputs[0]
    while True:
        readers = [node for node in value.consumers() if node in between]
        if len(readers) != 1 or readers[0].op_type not in PASS_THROUGH_OPS:
            return value
        reader = readers[0]
        between.remove(reader)
        ahead = [output for output in reader.outputs if output is activated or between.intersection(output.consumers())]
        if len(ahead) != 1:
            return value
        value = ahead[0]


def _behind(value: ir.Value) -> set[ir.Node]:
    """The nodes that ``value`` is computed by, back to matrix products with constant weights, without those."""
    found: set[ir.Node] = set()
    open_values = [value]
    while open_values:
        node = open_values.pop().producer()
        if node is not None and node not in found and not is_linear(node):
            found.add(node)
            open_values += [source for source in node.inputs if source is not None]
    return found
