from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.initializers import float32_copy, register
from sparsecc.operators import ADDED
from sparsecc.projections import ATTENTION_OPS, Projection, find_projections
from sparsecc.recipe import Rotations
from sparsecc.residual_stream import (
    ReadingNorm,
    ResidualStream,
    UnknownResidualStreamError,
    find_residual_stream,
)

Array = NDArray[np.float32]
Transform = Callable[[Array], Array]


class RotateHiddenStatesPass(ir.passes.InPlacePass):
    """Write hidden states in other orthogonal bases, by rotating the weights around them; the logits stay the same.

    The residual stream is in the basis Q_l in layer l, that of the last layer before the head. What writes to it is
    multiplied by Q_l from the right, what reads it by Q_l^T diag(gain) from the left: an RMS norm without its gain
    commutes with a rotation. Where two layers have different bases, an adapter Q_l^T Q_(l+1) is put into the stream.
    Values are rotated with v, and back with o, by key-value head.

    Raises:
        ir.passes.PreconditionError: the model's residual stream or attention is of another form, or the rotations do
            not fit it.
    """

    def __init__(self, rotations: Rotations) -> None:
        super().__init__()
        self.rotations = rotations

    def requires(self, model: ir.Model) -> None:
        if is_rotated(model.graph):
            return
        try:
            stream = find_residual_stream(model.graph)
        except UnknownResidualStreamError as error:
            raise ir.passes.PreconditionError(f"hidden states cannot be rotated: {error}") from error
        layers, width = len(self.rotations.residual), stream.width
        if {norm.layer for norm in stream.norms} - {None} != set(range(layers)):
            raise ir.passes.PreconditionError(f"the rotations are for {layers} layers, and the model has others")
        if any(basis.shape != (width, width) for basis in self.rotations.residual):
            raise ir.passes.PreconditionError(f"a rotation does not fit a residual stream of {width} channels")
        if self.rotations.heads and value_heads(model.graph) != [basis.shape[:2] for basis in self.rotations.heads]:
            raise ir.passes.PreconditionError("the rotations of values do not fit the model's key-value heads")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        if is_rotated(graph):
            return ir.passes.PassResult(model, False)
        weights: defaultdict[tuple[ir.Node, int], list[Transform]] = defaultdict(list)
        if self.rotations.heads:
            self._rotate_values(graph, weights)
        stream = find_residual_stream(graph)
        self._rotate_stream(graph, stream, weights)
        for (node, place), transforms in weights.items():
            _replace_constant(graph, node, place, transforms)
        return ir.passes.PassResult(model, True)

    def _rotate_stream(
        self, graph: ir.Graph, stream: ResidualStream, weights: defaultdict[tuple[ir.Node, int], list[Transform]]
    ) -> None:
        bases = self.rotations.residual
        current = bases[0]
        _rotate_embedding(graph, stream, current)
        ones = register(graph, "/model/unit_gain", ir.tensor(np.ones(stream.width, np.float32)))
        for norm in stream.norms:
            basis = current if norm.layer is None else bases[norm.layer]
            if not np.array_equal(basis, current):
                _insert_adapter(graph, norm, current, basis)
            current = basis
            if norm.writer is not None:
                weights[norm.writer.node, 1].append(_from_right(basis))
                if norm.writer.bias is not None:
                    weights[norm.writer.bias, _constant_place(norm.writer.bias)].append(_from_right(basis))
            gain = norm.gain_values
            for reader in norm.readers:
                weights[reader, 1].append(_from_left(basis, gain))
            norm.node.replace_input_with(norm.gain, ones)

    def _rotate_values(self, graph: ir.Graph, weights: defaultdict[tuple[ir.Node, int], list[Transform]]) -> None:
        by_layer = _by_layer(graph)
        for layer, basis in enumerate(self.rotations.heads):
            v, o = by_layer[layer]["v"], by_layer[layer]["o"]
            weights[v.node, 1].append(_values_from_right(basis))
            bias = _bias_after(v.node)
            if bias is not None:
                weights[bias, _constant_place(bias)].append(_values_from_right(basis))
            weights[o.node, 1].append(_attended_from_left(basis))


def is_rotated(graph: ir.Graph) -> bool:
    """Whether this pass was here: it leaves no gain to the norms of the residual stream."""
    return any(name.startswith("/model/unit_gain") for name in graph.initializers)


def value_heads(graph: ir.Graph) -> list[tuple[int, int]] | None:
    """For each layer how many key-value heads it has and their size, where v's values reach o untouched; else None."""
    shapes: list[tuple[int, int]] = []
    for layer, kinds in sorted(_by_layer(graph).items()):
        if not {"v", "o"} <= kinds.keys() or layer != len(shapes):
            return None
        v, o = kinds["v"], kinds["o"]
        bias = _bias_after(v.node)
        values = (bias or v.node).outputs[0]
        attention = o.input.producer()
        if attention is None or attention.op_type not in ATTENTION_OPS or attention.op_type != "GroupQueryAttention":
            return None
        groups = attention.attributes.get_int("kv_num_heads", 0)
        if len(attention.inputs) < 3 or attention.inputs[2] is not values or groups < 1 or v.outputs % groups:
            return None
        size = v.outputs // groups
        if o.channels % v.outputs or list(values.consumers()) != [attention]:
            return None
        shapes.append((groups, size))
    return shapes


def _by_layer(graph: ir.Graph) -> Mapping[int, dict[str, Projection]]:
    by_layer: defaultdict[int, dict[str, Projection]] = defaultdict(dict)
    for projection in find_projections(graph):
        by_layer[projection.layer][projection.kind] = projection
    return by_layer


def _bias_after(product: ir.Node) -> ir.Node | None:
    consumers = list(product.outputs[0].consumers())
    is_bias = len(consumers) == 1 and consumers[0].op_type == "Add" and _has_constant(consumers[0])
    return consumers[0] if is_bias else None


def _has_constant(node: ir.Node) -> bool:
    return any(value is not None and value.const_value is not None for value in node.inputs)


def _constant_place(node: ir.Node) -> int:
    return next(i for i, value in enumerate(node.inputs) if value is not None and value.const_value is not None)


def _from_right(basis: Array) -> Transform:
    """W Q, or b Q, of what writes to the stream."""
    return lambda weight: weight @ basis


def _from_left(basis: Array, gain: Array) -> Transform:
    """Q^T diag(gain) W of what reads the stream."""
    return lambda weight: basis.T @ (gain[:, None] * weight)


def _values_from_right(basis: Array) -> Transform:
    """The columns of v, [..., G * H], each head's in its own basis [G, H, H]."""
    groups, size, _ = basis.shape
    return lambda weight: np.einsum(
        "...gh,ghj->...gj", weight.reshape(*weight.shape[:-1], groups, size), basis, optimize=True
    ).reshape(weight.shape)


def _attended_from_left(basis: Array) -> Transform:
    """The rows of o, [G * heads * H, D], back from the basis of the key-value head that each query head reads."""
    groups, size, _ = basis.shape
    return lambda weight: np.einsum(
        "gqhd,ghj->gqjd", weight.reshape(groups, -1, size, weight.shape[-1]), basis, optimize=True
    ).reshape(weight.shape)


def _insert_adapter(graph: ir.Graph, norm: ReadingNorm, before: Array, after: Array) -> None:
    stream = norm.node.inputs[norm.stream]
    assert stream is not None
    name = f"/model/layers.{norm.layer}/residual_adapter"
    matrix = register(graph, f"{name}/weight", ir.tensor(before.T @ after))
    adapter = ir.node(
        "MatMul",
        [stream, matrix],
        name=f"{name}/MatMul",
        outputs=[ir.Value(name=f"{name}/output_0", shape=stream.shape, type=stream.type)],
        metadata_props={ADDED: "residual adapter", "layer": str(norm.layer)},
    )
    graph.insert_before(norm.node, adapter)
    norm.node.replace_input_with(norm.stream, adapter.outputs[0])


def _rotate_embedding(graph: ir.Graph, stream: ResidualStream, basis: Array) -> None:
    """The table gets a matrix of its own, also where it was the head's: that is rotated another way."""
    embedding = stream.embedding
    table = embedding.weight.const_value
    assert table is not None
    rows, columns = table.shape.numpy()
    shape = (columns, rows) if embedding.is_transposed else (rows, columns)

    def rotated() -> ir.TensorProtocol:
        array = float32_copy(table)
        return ir.tensor((array.T if embedding.is_transposed else array) @ basis)

    lazy = ir.LazyTensor(rotated, ir.DataType.FLOAT, ir.Shape(shape))
    embedding.node.replace_input_with(0, register(graph, "/model/embed_tokens/rotated", lazy))


def _replace_constant(graph: ir.Graph, node: ir.Node, place: int, transforms: list[Transform]) -> None:
    value = node.inputs[place]
    assert value is not None
    tensor = value.const_value
    assert tensor is not None

    def transformed() -> ir.TensorProtocol:
        array = float32_copy(tensor)
        for transform in transforms:
            array = transform(array)
        return ir.tensor(np.ascontiguousarray(array, np.float32))

    lazy = ir.LazyTensor(transformed, ir.DataType.FLOAT, ir.Shape(tensor.shape.numpy()))
    node.replace_input_with(place, register(graph, f"{value.name}/rotated", lazy))
