import onnx_ir as ir

from sparsecc.passes import CleanUpPass, ShipFunctionsPass
from sparsecc.sparsify import sparsify

from ..graphs import model_of, operators, recipe_for

UNUSED = """
unused (float[s, 8] x) => (float[s, 4] y) {
  v, i = ai.sparsecc.GatherActive(x)
  y = MatMul(x, w)
  h = Relu(y)
  g = Add(h, b)
}"""


def test_what_nothing_uses_is_removed():
    model = model_of(UNUSED, {"w": (8, 4), "b": (4,)})
    ShipFunctionsPass()(model)
    assert CleanUpPass()(model).modified
    assert operators(model) == ["MatMul"]
    assert set(model.graph.initializers) == {"w"}
    assert not model.functions
    assert set(model.opset_imports) == {""}


def test_an_absent_bias_stays_written(model: ir.Model):
    sparsify(model, recipe_for(model))
    products = [node for node in model.graph if node.op_type == "SparseMatMul"]
    CleanUpPass()(model)
    assert any(node.inputs[3] is None for node in products)
    assert all(len(node.inputs) == 4 for node in products)


def test_inputs_and_outputs_stay_though_nothing_uses_them():
    model = model_of("signature (float[8] x, float[8] unread) => (float[8] y) { y = Relu(x) }")
    CleanUpPass()(model)
    assert [value.name for value in model.graph.inputs] == ["x", "unread"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_sparse_model_holds_nothing_unused(dense_model: ir.Model):
    ir.node("Relu", [dense_model.graph.inputs[0]], graph=dense_model.graph, name="unused")
    sparsify(dense_model, recipe_for(dense_model))
    assert "unused" not in {node.name for node in dense_model.graph}
    assert len(dense_model.functions) == 3
