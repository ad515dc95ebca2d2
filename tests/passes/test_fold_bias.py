import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.passes import FoldBiasPass, ShipFunctionsPass
from sparsecc.sparsify import sparsify

from ..graphs import Array, model_of, named, operators, random_arrays, recipe_for, run

SHAPES = {"w": (8, 4), "b": (4,), "square": (4, 4), "one": (1,), "row": (1, 4), "six": (6,)}


def product_and(rest: str, outputs: str = "float[s, 4] y") -> ir.Model:
    text = f"""
    sparse (float[s, 8] x, float[4] given) => ({outputs}) {{
      v, i = ai.sparsecc.GatherActive(x)
      ["up/SparseMatMul"] p = ai.sparsecc.SparseMatMul(v, i, w, "")
      {rest}
    }}"""
    return model_of(text, SHAPES)


def output(model: ir.Model) -> Array:
    ShipFunctionsPass()(model)
    return run(model, x=random_arrays({"x": (3, 8)}, seed=1)["x"], given=np.ones(4, np.float32))[0]


@pytest.mark.parametrize("add", ["Add(p, b)", "Add(b, p)"])
def test_the_bias_becomes_an_input_of_the_product(add: str):
    expected = output(product_and(f"y = {add}"))
    model = product_and(f"y = {add}")
    assert FoldBiasPass()(model).modified
    assert operators(model) == ["GatherActive", "SparseMatMul"]
    assert named(model, "up/SparseMatMul").inputs[3] is model.graph.initializers["b"]
    np.testing.assert_allclose(output(model), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rest", ["y = Add(p, b)", "h = Add(p, b)  y = Relu(h)"], ids=["output", "inner value"])
def test_the_product_takes_the_name_of_the_sum(rest: str):
    model = product_and(rest)
    FoldBiasPass()(model)
    assert named(model, "up/SparseMatMul").outputs[0].name == ("y" if "Relu" not in rest else "h")
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_sum_that_is_a_graph_output_keeps_its_type_and_shape():
    model = product_and("y = Add(p, b)")
    FoldBiasPass()(model)
    (result,) = model.graph.outputs
    assert result.type == ir.TensorType(ir.DataType.FLOAT)
    assert result.shape == ir.Shape(["s", 4])


def test_everything_that_reads_the_sum_reads_the_product():
    model = product_and("h = Add(p, b)  q = Relu(h)  y = Add(h, q)")
    FoldBiasPass()(model)
    assert operators(model) == ["GatherActive", "SparseMatMul", "Relu", "Add"]
    assert len(named(model, "up/SparseMatMul").outputs[0].consumers()) == 2


@pytest.mark.parametrize(
    ("rest", "outputs"),
    [
        ("y = Add(p, b)  z = Relu(p)", "float[s, 4] y, float[s, 4] z"),
        ("y = Add(p, b)", "float[s, 4] y, float[s, 4] p"),
        ("y = Add(p, given)", "float[s, 4] y"),
        ("y = Add(p, p)", "float[s, 4] y"),
        ("y = Sub(p, b)", "float[s, 4] y"),
        ("y = com.microsoft.Add(p, b)", "float[s, 4] y"),
        ("y = Add(p, square)", "float[4, 4] y"),
        ("y = Add(p, one)", "float[s, 4] y"),
        ("y = Add(p, row)", "float[s, 4] y"),
    ],
    ids=[
        "product read elsewhere",
        "product is an output",
        "not constant",
        "itself",
        "difference",
        "other domain",
        "matrix",
        "scalar",
        "row",
    ],
)
def test_what_is_no_bias_of_this_product_alone_stays(rest: str, outputs: str):
    model = product_and(rest, outputs)
    before = operators(model)
    assert not FoldBiasPass()(model).modified
    assert operators(model) == before


def test_a_second_sum_stays():
    model = product_and("h = Add(p, b)  y = Add(h, b)")
    FoldBiasPass()(model)
    assert operators(model) == ["GatherActive", "SparseMatMul", "Add"]


def test_a_bias_may_serve_two_products():
    model = product_and('h = Add(p, b)  ["2"] q = ai.sparsecc.SparseMatMul(v, i, w, "")  k = Add(b, q)  y = Mul(h, k)')
    FoldBiasPass()(model)
    assert operators(model) == ["GatherActive", "SparseMatMul", "SparseMatMul", "Mul"]
    assert named(model, "up/SparseMatMul").inputs[3] is named(model, "2").inputs[3]


def test_a_product_written_without_a_place_for_a_bias_gets_one():
    text = (
        "sparse (float[s, 8] v, int64[8] i) => (float[s, 4] y) { p = ai.sparsecc.SparseMatMul(v, i, w) y = Add(p, b) }"
    )
    model = model_of(text, {"w": (8, 4), "b": (4,)})
    assert FoldBiasPass()(model).modified
    assert [value.name for value in model.graph[0].inputs] == ["v", "i", "w", "b"]


def test_a_product_with_a_bias_keeps_it():
    model = product_and("h = Add(p, b)  y = Add(h, b)")
    assert FoldBiasPass()(model).modified
    assert not FoldBiasPass()(model).modified


def test_the_biases_of_a_layer_are_folded_and_its_residuals_are_not(model: ir.Model):
    sparsify(model, recipe_for(model))
    assert operators(model).count("Add") == 2
    with_bias = {node.name for node in model.graph if node.op_type == "SparseMatMul" and node.inputs[3] is not None}
    assert with_bias == {
        "/layers.0/attn/q_proj/SparseMatMul",
        "/layers.0/attn/k_proj/SparseMatMul",
        "/layers.0/mlp/down_proj/SparseMatMul",
    }
