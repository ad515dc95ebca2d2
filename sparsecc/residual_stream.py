"""Find the residual stream of a decoder: the hidden state that every layer adds to and reads through an RMS norm."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.initializers import float32_copy
from sparsecc.projections import find_projections, is_linear
from sparsecc.vocabulary import Embedding, find_dense_head, find_embedding

_NORM = ("", "SimplifiedLayerNormalization")
_ADDING_NORM = ("com.microsoft", "SkipSimplifiedLayerNormalization")


class UnknownResidualStreamError(Exception):
    """The graph has no residual stream of the form that is known; the message says what is different."""


@dataclasses.dataclass(frozen=True)
class Writer:
    """A product whose output is added to the stream.

    Attributes:
        node: the MatMul.
        bias: the Add of a constant that follows it, if one does.
    """

    node: ir.Node
    bias: ir.Node | None


@dataclasses.dataclass(frozen=True)
class ReadingNorm:
    """An RMS norm of the stream, with what is added just before it and what reads it.

    Attributes:
        node: (Skip)SimplifiedLayerNormalization.
        stream: which of its inputs is the stream.
        gain: which of its inputs is the gain, float32 [D].
        writer: what is added to the stream; None at the first norm.
        readers: each product of the normalized hidden state, float32 [D, N].
        layer: of the projections that read it; None before the head.
    """

    node: ir.Node
    stream: int
    gain: int
    writer: Writer | None
    readers: tuple[ir.Node, ...]
    layer: int | None

    @property
    def gain_values(self) -> NDArray[np.float32]:
        """float32 [D]."""
        value = self.node.inputs[self.gain]
        assert value is not None
        assert value.const_value is not None
        return float32_copy(value.const_value)


@dataclasses.dataclass(frozen=True)
class ResidualStream:
    """The embedding that begins the stream, and its norms in order; the last one feeds the head."""

    embedding: Embedding
    norms: tuple[ReadingNorm, ...]

    @property
    def layers(self) -> int:
        return 1 + max(norm.layer for norm in self.norms if norm.layer is not None)

    @property
    def gains(self) -> dict[str, NDArray[np.float32]]:
        """The gain, float32 [D], of each norm by the name of the hidden state it computes; the head's is the last."""
        return {str(norm.node.outputs[0].name): norm.gain_values for norm in self.norms}

    @property
    def width(self) -> int:
        """D."""
        return int(self.norms[0].gain_values.size)


def find_residual_stream(graph: ir.Graph) -> ResidualStream:
    """The residual stream, as onnxruntime-genai's model builder writes that of Llama and its kin.

    Raises:
        UnknownResidualStreamError: something else reads or writes the stream, or a norm is not RMS.
    """
    embedding, head = find_embedding(graph), find_dense_head(graph)
    if embedding is None or head is None:
        raise UnknownResidualStreamError("it has no embedding or head with a float32 matrix")
    layers = {entry.node: entry.layer for entry in find_projections(graph)}
    norms = tuple(_norms(embedding.node.outputs[0], layers, head))
    if not norms or norms[-1].readers != (head,):
        raise UnknownResidualStreamError("its head does not read the residual stream through a norm")
    return ResidualStream(embedding, norms)


def _norms(stream: ir.Value | None, layers: dict[ir.Node, int], head: ir.Node) -> Iterator[ReadingNorm]:
    passed: set[ir.Value] = set()
    is_first = True
    while stream is not None:
        if stream in passed or stream.is_graph_output():
            raise UnknownResidualStreamError("its residual stream is a cycle or an output")
        passed.add(stream)
        consumers = list(stream.consumers())
        if is_first:
            plain = [node for node in consumers if (node.domain, node.op_type) == _NORM]
            if len(plain) != 1:
                raise UnknownResidualStreamError("no RMS norm of its own reads the embedding")
            consumers.remove(plain[0])
            yield _norm(plain[0], 0, None, layers, head)
            is_first = False
        if len(consumers) != 1 or (consumers[0].domain, consumers[0].op_type) != _ADDING_NORM:
            raise UnknownResidualStreamError(f"{stream.name} is read by more than an RMS norm that adds to it")
        node = consumers[0]
        place = list(node.inputs).index(stream)
        if place > 1 or node.inputs[0] is node.inputs[1] or any(value is not None for value in node.inputs[3:]):
            raise UnknownResidualStreamError(f"{node.name} does not just add and normalize")
        yield _norm(node, place, _writer(node.inputs[1 - place]), layers, head)
        stream = node.outputs[3] if len(node.outputs) > 3 and node.outputs[3].uses() else None


def _norm(node: ir.Node, stream: int, writer: Writer | None, layers: dict[ir.Node, int], head: ir.Node) -> ReadingNorm:
    gain = 1 if (node.domain, node.op_type) == _NORM else 2
    value = node.inputs[gain] if len(node.inputs) > gain else None
    tensor = value.const_value if value is not None else None
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 1:
        raise UnknownResidualStreamError(f"{node.name} has no constant float32 gain")
    normalized = node.outputs[0]
    readers = tuple(dict.fromkeys(normalized.consumers()))
    read_layers = {layers.get(reader) for reader in readers}
    is_known = all(reader.op_type == "MatMul" and is_linear(reader) for reader in readers)
    if not is_known or normalized.is_graph_output() or len(read_layers) != 1:
        raise UnknownResidualStreamError(f"{node.name} is read by something else than the projections of a layer")
    layer = read_layers.pop()
    if layer is None and readers != (head,):
        raise UnknownResidualStreamError(f"{node.name} is read by a product that is no projection")
    return ReadingNorm(node, stream, gain, writer, readers, layer)


def _writer(value: ir.Value | None) -> Writer:
    """The product that computes ``value`` for the stream alone, with or without a bias."""
    node, bias = _only_producer(value), None
    if node.op_type == "Add" and node.domain == "":
        bias = node
        products = [side for side in node.inputs if side is not None and side.const_value is None]
        if len(products) != 1:
            raise UnknownResidualStreamError(f"{node.name} adds more than a bias to what a projection writes")
        node = _only_producer(products[0])
    if node.op_type != "MatMul" or not is_linear(node):
        raise UnknownResidualStreamError(f"{node.name} writes to the residual stream and is no projection")
    return Writer(node, bias)


def _only_producer(value: ir.Value | None) -> ir.Node:
    node = value.producer() if value is not None else None
    if value is None or node is None or len(value.uses()) != 1 or value.is_graph_output():
        raise UnknownResidualStreamError("what is written to its residual stream is read elsewhere, too")
    return node
