from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.initializers import register
from sparsecc.vocabulary import Embedding, find_dense_head, find_embedding

logger = logging.getLogger(__name__)

_CONTRIB = "com.microsoft"
_INT8_ACTIVATIONS = 4
"""The accuracy level of MatMulNBits at which the product is one of integers."""


class PackedTensors(NamedTuple):
    """A matrix [V, K] as onnxruntime's MatMulNBits takes it.

    Attributes:
        packed: uint8 [V, K / block_size, bytes of a block], the middle of the range standing for 0.
        scales: float32 [V, K / block_size].
        bits, block_size: of a weight, and how many share a scale.
    """

    packed: ir.TensorProtocol
    scales: ir.TensorProtocol
    bits: int
    block_size: int


class QuantizeVocabularyPass(ir.passes.InPlacePass):
    """Quantize a head without a threshold to onnxruntime's MatMulNBits, and the embedding to GatherBlockQuantized.

    Where both are one matrix, they go on sharing one. ``pack`` quantizes a matrix [V, K] under the given name, whole
    blocks along K; a matrix with a K that is no multiple of ``block_size`` is left alone.
    """

    def __init__(self, pack: Callable[[str, NDArray[np.float32]], PackedTensors], block_size: int) -> None:
        super().__init__()
        self.pack = pack
        self.block_size = block_size

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        head, embedding = self._head(model.graph), self._embedding(model.graph)
        table = _Table.of(model.graph, self.pack("lm_head", _head_matrix(head))) if head else None
        if embedding is not None:
            if table is None or head is None or not _is_tied(head, embedding):
                table_of_embedding = _Table.of(model.graph, self.pack("embed_tokens", _embedding_matrix(embedding)))
            else:
                table_of_embedding = table
            _replace_embedding(model.graph, embedding, table_of_embedding)
        if head is not None and table is not None:
            _replace_head(model.graph, head, table)
        if head is not None or embedding is not None:
            model.opset_imports.setdefault(_CONTRIB, 1)
        return ir.passes.PassResult(model, head is not None or embedding is not None)

    def ensures(self, model: ir.Model) -> None:
        if self._head(model.graph) is not None or self._embedding(model.graph) is not None:
            raise ir.passes.PostconditionError("the head or the embedding is not quantized")

    def _head(self, graph: ir.Graph) -> ir.Node | None:
        head = find_dense_head(graph)
        if head is None or self._has_whole_blocks(_shape(head.inputs[1])[0]):
            return head
        logger.info("%s stays float32: its channels are no whole blocks", head.name)
        return None

    def _embedding(self, graph: ir.Graph) -> Embedding | None:
        embedding = find_embedding(graph)
        if embedding is None or self._has_whole_blocks(_shape(embedding.weight)[0 if embedding.is_transposed else 1]):
            return embedding
        logger.info("%s stays float32: its channels are no whole blocks", embedding.node.name)
        return None

    def _has_whole_blocks(self, channels: int) -> bool:
        return channels % self.block_size == 0


class _Table(NamedTuple):
    """A packed matrix as two initializers."""

    packed: ir.Value
    scales: ir.Value
    bits: int
    block_size: int

    @classmethod
    def of(cls, graph: ir.Graph, tensors: PackedTensors) -> _Table:
        return cls(
            register(graph, tensors.packed.name or "", tensors.packed),
            register(graph, tensors.scales.name or "", tensors.scales),
            tensors.bits,
            tensors.block_size,
        )


def _replace_head(graph: ir.Graph, head: ir.Node, table: _Table) -> None:
    channels, tokens = _shape(head.inputs[1])
    logits = head.outputs[0]
    node = ir.node(
        "MatMulNBits",
        [head.inputs[0], table.packed, table.scales],
        {
            "K": channels,
            "N": tokens,
            "bits": table.bits,
            "block_size": table.block_size,
            "accuracy_level": _INT8_ACTIVATIONS,
        },
        domain=_CONTRIB,
        name=f"{(head.name or 'lm_head').removesuffix('/MatMul')}/MatMulNBits",
        outputs=[ir.Value(name=logits.name, shape=logits.shape, type=logits.type)],
    )
    ir.convenience.replace_nodes_and_values(graph, head, [head], [node], [logits], node.outputs)


def _replace_embedding(graph: ir.Graph, embedding: Embedding, table: _Table) -> None:
    """Gather whole blocks and join them: so the packed matrix is read in the shape that MatMulNBits wants it in."""
    node, (found,) = embedding.node, embedding.node.outputs
    name = (node.name or "embed_tokens").removesuffix("/Gather")
    channels = _shape(embedding.weight)[0 if embedding.is_transposed else 1]
    axis = _constant(graph, f"{name}/scales_axis", [2])
    shape = _constant(graph, f"{name}/shape", [0, 0, channels])
    scales = ir.node("Unsqueeze", [table.scales, axis], name=f"{name}/Unsqueeze")
    gather = ir.node(
        "GatherBlockQuantized",
        [table.packed, node.inputs[1], scales.outputs[0]],
        {"bits": table.bits, "block_size": table.block_size, "gather_axis": 0, "quantize_axis": 2},
        domain=_CONTRIB,
        name=f"{name}/GatherBlockQuantized",
    )
    joined = ir.Value(name=found.name, shape=found.shape, type=found.type)
    join = ir.node("Reshape", [gather.outputs[0], shape], name=f"{name}/Reshape", outputs=[joined])
    ir.convenience.replace_nodes_and_values(graph, node, [node], [scales, gather, join], [found], [joined])


def _head_matrix(head: ir.Node) -> NDArray[np.float32]:
    """float32 [V, K]."""
    return np.ascontiguousarray(_array(head.inputs[1]).T)


def _embedding_matrix(embedding: Embedding) -> NDArray[np.float32]:
    """float32 [V, K]."""
    array = _array(embedding.weight)
    return np.ascontiguousarray(array.T if embedding.is_transposed else array)


def _is_tied(head: ir.Node, embedding: Embedding) -> bool:
    """Whether the head multiplies by the transpose of the embedding's table, be it the same initializer or a copy."""
    weight = head.inputs[1]
    if embedding.weight is weight:
        return embedding.is_transposed
    by_head, by_embedding = _array(weight), _array(embedding.weight)
    return np.array_equal(by_head, by_embedding if embedding.is_transposed else by_embedding.T)


def _constant(graph: ir.Graph, name: str, numbers: list[int]) -> ir.Value:
    return register(graph, name, ir.tensor(np.array(numbers, np.int64)))


def _array(value: ir.Value | None) -> NDArray[np.float32]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())
