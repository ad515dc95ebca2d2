from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, VERSION
from sparsecc.quantization.half_tensor import half_matrix, transposed_half_matrix
from sparsecc.vocabulary import Embedding, find_dense_head, find_embedding


class HalveVocabularyPass(ir.passes.InPlacePass):
    """Store a language-model head without a threshold, and the embedding, in float16, when the model is written.

    The head becomes a GatherActive and a SparseMatMul, which multiply by float16, without a threshold: every channel
    is read. The two want different orders of one matrix, so they are stored apart also where they were tied.

    Raises:
        SparseccError: a weight is beyond the range of float16.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        head, embedding = find_dense_head(model.graph), find_embedding(model.graph)
        if embedding is not None:
            _halve_embedding(model.graph, embedding)
        if head is not None:
            _halve_head(model.graph, head)
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, head is not None or embedding is not None)

    def ensures(self, model: ir.Model) -> None:
        if find_dense_head(model.graph) is not None or find_embedding(model.graph) is not None:
            raise ir.passes.PostconditionError("the head or the embedding is float32")


def _halve_embedding(graph: ir.Graph, embedding: Embedding) -> None:
    node, (found,) = embedding.node, embedding.node.outputs
    name = (node.name or "embed_tokens").removesuffix("/Gather")
    matrix = embedding.weight.const_value
    assert matrix is not None
    table = (transposed_half_matrix if embedding.is_transposed else half_matrix)(matrix, f"{name}/weight_fp16")
    graph.register_initializer(table)
    gather = ir.node("Gather", [table, node.inputs[1]], name=f"{name}/Gather")
    whole = ir.Value(name=found.name, shape=found.shape, type=found.type)
    cast = ir.node("Cast", gather.outputs, {"to": ir.DataType.FLOAT}, name=f"{name}/Cast", outputs=[whole])
    ir.convenience.replace_nodes_and_values(graph, node, [node], [gather, cast], [found], [whole])


def _halve_head(graph: ir.Graph, head: ir.Node) -> None:
    hidden, weight = head.inputs
    assert weight is not None
    assert weight.const_value is not None
    name = (head.name or "lm_head").removesuffix("/MatMul")
    half = half_matrix(weight.const_value, f"{name}/weight_fp16")
    graph.register_initializer(half)
    values = ir.Value(name=f"{name}/GatherActive/values", type=hidden.type if hidden else None)
    indices = ir.Value(name=f"{name}/GatherActive/indices", type=ir.TensorType(ir.DataType.INT64))
    gather = ir.node("GatherActive", [hidden], domain=DOMAIN, name=f"{name}/GatherActive", outputs=[values, indices])
    logits = head.outputs[0]
    product = ir.Value(name=logits.name, shape=logits.shape, type=logits.type)
    inputs = [values, indices, half, None]
    notes = {"calibrated_sparsity": "0.0000"}
    node = ir.node(
        "SparseMatMul", inputs, domain=DOMAIN, name=f"{name}/SparseMatMul", outputs=[product], metadata_props=notes
    )
    ir.convenience.replace_nodes_and_values(graph, head, [head], [gather, node], [logits], [product])
