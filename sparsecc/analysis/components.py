"""The components of a decoder layer whose activations are studied, found by what the graph connects."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

ATTENTION_INPUT = "attention_input"
O_INPUT = "o_input"
FFN_INPUT = "ffn_input"
GATE = "gate"
GATE_ACTIVATION = "gate_activation"
UP = "up"
DOWN_INPUT = "down_input"

COMPONENTS = (ATTENTION_INPUT, O_INPUT, FFN_INPUT, GATE, GATE_ACTIVATION, UP, DOWN_INPUT)
"""In the order of the data.

======================  ================================================================================================
``attention_input``     what q, k and v read
``o_input``             what o reads: the heads' results
``ffn_input``           what gate and up read
``gate``                the product of gate, before the activation function; gated networks have it
``gate_activation``     the same behind the activation function
``up``                  the product of up; without a gate, before the activation function
``down_input``          what down reads: gate_activation * up, or without a gate the activated up
======================  ================================================================================================

Products are taken with their bias. The last dimension of a component are its neurons.
"""

FFN_NEURONS = (GATE_ACTIVATION, UP, DOWN_INPUT)
"""The components inside the feed-forward network that the paper sets to zero where they are small."""


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
