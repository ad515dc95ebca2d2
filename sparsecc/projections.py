"""Find the projections of a decoder: the weight matrices that sparsity can skip rows of.

They are found by what the graph connects, not by what it calls things: q, k and v feed an attention operator, o reads
its result, gate and up meet in a product of which one side went through an activation, down reads that product. Names
only label what was found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import onnx_ir as ir

from sparsecc.operators import (
    is_added,
    is_gather_active,
    is_gather_matmul,
    is_product,
    is_selection,
    is_threshold,
)

ATTENTION_OPS = {"GroupQueryAttention", "MultiHeadAttention", "Attention", "PagedAttention"}
ACTIVATION_OPS = {"Sigmoid", "Relu", "Gelu", "FastGelu", "QuickGelu", "Silu", "Swish", "BiasGelu", "Tanh", "Erf"}
PASS_THROUGH_OPS = {  # what may lie between a projection and the operator that gives it its meaning
    "Add",
    "Cast",
    "Div",
    "Identity",
    "LayerNormalization",
    "Pow",
    "Reshape",
    "RMSNormalization",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
HEAD_FOLLOWED_BY = {"Add", "Cast", "Div", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Tanh"}
"""What may lie between the head and the logits that a graph gives out."""
HEAD = "head"
"""The kind of the language-model head."""
MAX_FORKS = 6
"""Products and sums of two sides that are followed at once: GELU written out with Tanh nests four."""


@dataclasses.dataclass(frozen=True)
class Projection:
    """A matrix product of a hidden state with a constant weight W[K, N].

    Attributes:
        name: the label of the node without its operator, as in ``/model/layers.0/mlp/gate_proj``; unique in the model.
        layer: the index of the decoder layer, from 0; the head's is the number of layers.
        kind: ``q``, ``k``, ``v``, ``qkv`` (fused), ``o``, ``gate``, ``up``, ``gate_up`` (fused), ``down`` or ``head``.
        node: the MatMul, or the SparseMatMul or GatherMatMul, quantized or not, that replaced it.
    """

    name: str
    layer: int
    kind: str
    node: ir.Node

    @property
    def input(self) -> ir.Value:
        """The hidden state [..., K] that is multiplied, before any threshold."""
        value = _before_selection(self.node.inputs[0])
        assert value is not None
        return value

    @property
    def threshold(self) -> ir.Node | None:
        """The Threshold that decides what of this projection is read, if it has one."""
        return next(filter(is_threshold, _selections_for(self.node)), None)

    @property
    def selection(self) -> ir.Node | None:
        """The Threshold or KeepLargest that decides what of this projection is read, if it has one."""
        return next(filter(is_selection, _selections_for(self.node)), None)

    @property
    def weight(self) -> ir.Value:
        """The initializer W[K, N], quantized or not; of a GatherMatMul W[N, K]."""
        value = weight_of(self.node)
        assert value is not None
        return value

    @property
    def channels(self) -> int:
        """K, the number of input channels."""
        return _weight_shape(self.node)[0]

    @property
    def weight_count(self) -> int:
        """K * N."""
        return self.channels * self.outputs

    @property
    def outputs(self) -> int:
        """N, the number of output channels."""
        return _weight_shape(self.node)[1]

    @property
    def rows(self) -> int:
        """The rows of the weight, any of which may be skipped: input channels, or output channels of a GatherMatMul."""
        return self.outputs if is_gather_matmul(self.node) else self.channels


def projections_and_head(graph: ir.Graph) -> list[Projection]:
    """All that sparsity can skip rows of: the projections of the layers, and after them the head, if it is found."""
    projections = find_projections(graph)
    head = _head_after(graph, projections)
    return [*projections, head] if head is not None else projections


def budgeted_projections(graph: ir.Graph, names: Collection[str]) -> list[Projection]:
    """What a budget of weights is shared among: the projections of the layers, and the head where it is named."""
    return [entry for entry in projections_and_head(graph) if entry.kind != HEAD or entry.name in names]


def find_head(graph: ir.Graph) -> Projection | None:
    """The language-model head: the product with a constant matrix whose output the graph gives out as logits."""
    return _head_after(graph, find_projections(graph))


def find_projections(graph: ir.Graph) -> list[Projection]:
    """The projections of a decoder's layers in graph order; the language-model head is none of them.

    A matrix product with a constant weight that serves neither attention nor a feed-forward network is left alone.
    """
    found: dict[ir.Node, tuple[int, str]] = {}
    for layer, attention in enumerate(node for node in graph if _is_attention(node)):
        for node, kind in _attention_projections(attention):
            found.setdefault(node, (layer, kind))
    for layer, (down, sources) in enumerate(_feed_forward_networks(graph, set(found))):
        for node, kind in [*sources, (down, "down")]:
            found.setdefault(node, (layer, kind))
    projections = []
    taken: set[str] = set()
    for node in graph:
        if node in found:
            layer, kind = found[node]
            projections.append(Projection(_unique_label(node, layer, kind, taken), layer, kind, node))
    return projections


def _head_after(graph: ir.Graph, projections: list[Projection]) -> Projection | None:
    of_layers = {projection.node for projection in projections}
    heads = (node for node in reversed(graph) if is_linear(node) and node not in of_layers and not is_added(node))
    head = next(filter(_makes_logits, heads), None)
    if head is None:
        return None
    layers = 1 + max((projection.layer for projection in projections), default=-1)
    name = _unique_label(head, layers, HEAD, {projection.name for projection in projections})
    return Projection(name, layers, HEAD, head)


def _makes_logits(linear: ir.Node) -> bool:
    reached = [linear.outputs[0]]
    seen = set(reached)
    while reached:
        value = reached.pop()
        if value.is_graph_output():
            return True
        ahead = {node.outputs[0] for node in value.consumers() if node.op_type in HEAD_FOLLOWED_BY}
        reached.extend(ahead - seen)
        seen |= ahead
    return False


def is_linear(node: ir.Node) -> bool:
    """Whether a node multiplies a hidden state by a constant matrix of a type that its operator takes."""
    weight = weight_of(node)
    tensor = weight.const_value if weight is not None else None
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype in _weight_types(node)


def weight_of(node: ir.Node) -> ir.Value | None:
    """The value W[K, N], or W[N, K] of a GatherMatMul, that a node multiplies by; constant if :func:`is_linear`."""
    if node.op_type == "MatMul" and node.domain == "" and len(node.inputs) == 2:
        return node.inputs[1]
    if (is_product(node) or is_gather_matmul(node)) and len(node.inputs) > 2:
        return node.inputs[2]
    return None


def _weight_types(node: ir.Node) -> set[ir.DataType]:
    if node.op_type.endswith("NBits"):
        return {ir.DataType.INT4, ir.DataType.INT8}
    return {ir.DataType.FLOAT} if node.op_type == "MatMul" else {ir.DataType.FLOAT, ir.DataType.FLOAT16}


def _weight_shape(linear: ir.Node) -> tuple[int, int]:
    weight = weight_of(linear)
    assert weight is not None
    assert weight.const_value is not None
    rows, columns = weight.const_value.shape.numpy()
    return (columns, rows) if is_gather_matmul(linear) else (rows, columns)


def _before_selection(value: ir.Value | None) -> ir.Value | None:
    """The hidden state that the operators right behind ``value`` select from."""
    selections = _selections(value)
    return selections[-1].inputs[0] if selections else value


def _selections_for(linear: ir.Node) -> list[ir.Node]:
    """What selects the rows of a weight: behind the values that are multiplied, or else behind the list of rows."""
    behind_values = _selections(linear.inputs[0])
    return behind_values or (_selections(linear.inputs[1]) if linear.op_type != "MatMul" else [])


def _selections(value: ir.Value | None) -> list[ir.Node]:
    """Each operator right behind ``value`` that selects channels, the nearest first."""
    found: dict[ir.Node, None] = {}
    while value is not None and (node := value.producer()) is not None and node not in found:
        if not _selects(node) or not node.inputs:
            break
        found[node] = None
        value = node.inputs[0]
    return list(found)


def _selects(node: ir.Node) -> bool:
    return is_selection(node) or is_gather_active(node)


def _passes_through(node: ir.Node) -> bool:
    return _selects(node) or node.op_type in PASS_THROUGH_OPS


def _is_attention(node: ir.Node) -> bool:
    return node.op_type in ATTENTION_OPS


def _attention_projections(attention: ir.Node) -> Iterator[tuple[ir.Node, str]]:
    sources = [_linear_behind(value) for value in attention.inputs[:3]]
    query, key, value = (*sources, None, None)[:3]
    if query is not None and key in (None, query) and value in (None, query):
        yield query, "qkv"
    else:
        yield from ((node, kind) for node, kind in zip((query, key, value), "qkv", strict=True) if node is not None)
    for output in attention.outputs[:1]:
        yield from ((node, "o") for node in _linears_ahead(output))


def _feed_forward_networks(
    graph: ir.Graph, attention_projections: set[ir.Node]
) -> Iterator[tuple[ir.Node, list[tuple[ir.Node, str]]]]:
    """Each down projection with the projections behind its input: gate and up, or up alone where nothing is gated."""
    for node in graph:
        if not is_linear(node) or is_added(node) or node in attention_projections:
            continue
        sources = _gated_sources(node) or _activated_source(node)
        if sources and not attention_projections.intersection(source for source, _ in sources):
            yield node, sources


def _gated_sources(down: ir.Node) -> list[tuple[ir.Node, str]]:
    """gate and up, where ``down`` reads activation(gate) * up.

    Both come from one projection where they are fused, which then has more columns than ``down`` has rows, and where
    the product is SiLU or GELU written out, which gates nothing.
    """
    product = _before_selection(down.inputs[0])
    multiply = product.producer() if product is not None else None
    if multiply is None or multiply.op_type != "Mul":
        return []
    sides = [_linear_behind_activation(value) for value in multiply.inputs]
    gates = [linear for linear, is_activated in sides if is_activated]
    ups = [linear for linear, is_activated in sides if not is_activated]
    if len(gates) != 1 or len(ups) != 1 or gates[0] is None or ups[0] is None:
        return []
    if gates[0] is ups[0]:
        is_fused = _weight_shape(gates[0])[1] > _weight_shape(down)[0]
        return [(gates[0], "gate_up")] if is_fused else []
    return [(gates[0], "gate"), (ups[0], "up")]


def _activated_source(down: ir.Node) -> list[tuple[ir.Node, str]]:
    """up, where ``down`` reads activation(up) and nothing gates it."""
    linear, is_activated = _linear_behind_activation(down.inputs[0])
    return [(linear, "up")] if linear is not None and is_activated else []


def _linear_behind(value: ir.Value | None) -> ir.Node | None:
    """The projection whose product reaches ``value`` through nothing but reshaping, bias, norm or rotation."""
    linear, is_activated = _linear_behind_activation(value)
    return None if is_activated else linear


def _linear_behind_activation(value: ir.Value | None, forks: int = MAX_FORKS) -> tuple[ir.Node | None, bool]:
    """The projection behind ``value`` and whether an activation lies between them.

    SiLU written as x * sigmoid(x), and GELU written out with Tanh or Erf, are products whose sides share one
    projection; the activation is then on one of the sides. Back at a node that was passed, the walk ends: there is
    no projection in a cycle, which an invalid graph may have.
    """
    is_activated = False
    passed: set[ir.Node] = set()
    while value is not None:
        node = value.producer()
        if node is None or node in passed:
            return None, False
        passed.add(node)
        if is_linear(node):
            return node, is_activated
        if node.op_type in ACTIVATION_OPS:
            is_activated = True
        elif node.op_type == "Mul" or (node.op_type == "Add" and _hidden_state_input(node) is None):
            linear, is_activated_aside = _shared_projection(node, forks)
            return linear, is_activated or is_activated_aside
        elif not _passes_through(node):
            return None, False
        value = _hidden_state_input(node)
    return None, False


def _shared_projection(node: ir.Node, forks: int) -> tuple[ir.Node | None, bool]:
    """The one projection behind all sides of a product or sum, and whether an activation is on any side."""
    if forks == 0:
        return None, False
    sides = [_linear_behind_activation(value, forks - 1) for value in node.inputs if not _is_constant(value)]
    linears = {linear for linear, _ in sides}
    if len(linears) != 1:
        return None, False
    return linears.pop(), any(is_activated for _, is_activated in sides)


def _hidden_state_input(node: ir.Node) -> ir.Value | None:
    """The one input that is neither constant nor absent; a residual sum has two and leads nowhere."""
    candidates = [
        value for value in node.inputs if value is not None and not _is_constant(value) and not _is_added_output(value)
    ]
    if node.op_type == "Add":
        return candidates[0] if len(candidates) == 1 else None
    return candidates[0] if candidates else None


def _is_added_output(value: ir.Value) -> bool:
    """Whether a method added what computes ``value``, as the low-rank branch beside a projection."""
    producer = value.producer()
    return producer is not None and is_added(producer)


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or value.const_value is not None:
        return True
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant"


def _linears_ahead(value: ir.Value) -> list[ir.Node]:
    """The projections that read ``value``, directly or through reshaping; each value is looked at once."""
    linears = []
    reached = [value]
    seen = {value}
    while reached:
        value = reached.pop()
        for node in value.consumers():
            if is_added(node):
                continue
            if is_linear(node) and node.inputs[0] is value:
                linears.append(node)
            elif _passes_through(node) and node.op_type != "Add" and not seen.issuperset(node.outputs[:1]):
                seen.add(node.outputs[0])
                reached.append(node.outputs[0])
    return linears


def _unique_label(node: ir.Node, layer: int, kind: str, taken: set[str]) -> str:
    label = _without_operator(node.name or "") or f"/layers.{layer}/{kind}"
    while label in taken:
        label += "_"
    taken.add(label)
    return label


def _without_operator(name: str) -> str:
    label, _, operator = name.rpartition("/")
    return label if operator.removesuffix("NBits") in ("MatMul", "SparseMatMul", "GatherMatMul") else name
