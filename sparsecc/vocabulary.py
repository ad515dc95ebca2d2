"""Find where a decoder turns tokens into hidden states, and hidden states into logits."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from sparsecc.projections import find_head

_TOKENS = "input_ids"


@dataclasses.dataclass(frozen=True)
class Embedding:
    """The lookup of token ids in a constant float32 table.

    Attributes:
        node: the Gather.
        weight: the initializer, [V, K] or, where ``is_transposed``, [K, V] behind a Transpose.
    """

    node: ir.Node
    weight: ir.Value
    is_transposed: bool


def find_dense_head(graph: ir.Graph) -> ir.Node | None:
    """The MatMul by a constant float32 W[K, V] that makes the logits."""
    head = find_head(graph)
    return head.node if head is not None and head.node.op_type == "MatMul" else None


def find_embedding(graph: ir.Graph) -> Embedding | None:
    """The Gather that looks up the input ``input_ids``, where its table is a float32 matrix.

    Learned positions are looked up in a table of their own.
    """
    for node in graph:
        if (node.domain, node.op_type) != ("", "Gather") or node.attributes.get_int("axis", 0) != 0:
            continue
        table, ids = node.inputs
        if table is None or ids is None or not ids.is_graph_input() or ids.name != _TOKENS:
            continue
        source = _transposed(table)
        weight = source or table
        if _is_matrix(weight):
            return Embedding(node, weight, is_transposed=source is not None)
    return None


def _transposed(value: ir.Value) -> ir.Value | None:
    """The matrix that ``value`` is the transpose of."""
    node = value.producer()
    if node is None or (node.domain, node.op_type) != ("", "Transpose"):
        return None
    return node.inputs[0] if list(node.attributes.get_ints("perm", [1, 0])) == [1, 0] else None


def _is_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) == 2 and tensor.dtype == ir.DataType.FLOAT
