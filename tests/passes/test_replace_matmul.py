from collections import Counter

import onnx_ir as ir

from sparsecc.passes import InsertGatherActivePass, InsertThresholdPass, ReplaceMatMulPass

from ..graphs import FEED_FORWARD, FEED_FORWARD_SHAPES, model_of, named, operators, recipe_for


def replaced(model: ir.Model) -> ir.Model:
    InsertThresholdPass(recipe_for(model))(model)
    InsertGatherActivePass()(model)
    ReplaceMatMulPass()(model)
    return model


def test_every_projection_and_no_other_product_is_replaced(dense_model: ir.Model):
    before = Counter(operators(dense_model))
    after = Counter(operators(replaced(dense_model)))
    assert after["SparseMatMul"] == 7 * 8
    assert after["MatMul"] == before["MatMul"] - 7 * 8 == 1


def test_it_reads_the_active_channels_and_the_weight_that_was_there(model: ir.Model):
    weight = model.graph.initializers["w_up"]
    node = named(replaced(model), "/layers.0/mlp/up_proj/SparseMatMul")
    gather = named(model, "/layers.0/mlp/gate_proj/GatherActive")
    assert node.domain == "ai.sparsecc"
    assert node.inputs == (*gather.outputs, weight, None)


def test_the_product_keeps_its_name_shape_and_type(dense_model: ir.Model):
    before = {node.name: node.outputs[0] for node in dense_model.graph if node.op_type == "MatMul"}
    for node in replaced(dense_model).graph:
        if node.op_type == "SparseMatMul":
            product = before[node.name.replace("SparseMatMul", "MatMul")]
            assert node.outputs[0].name == product.name
            assert node.outputs[0].shape == product.shape
            assert node.outputs[0].type == product.type


def test_notes_on_the_product_are_kept(model: ir.Model):
    named(model, "/layers.0/mlp/up_proj/MatMul").metadata_props["note"] = "kept"
    assert named(replaced(model), "/layers.0/mlp/up_proj/SparseMatMul").metadata_props["note"] == "kept"


def test_a_product_that_is_a_graph_output_stays_one():
    model = replaced(model_of(FEED_FORWARD, FEED_FORWARD_SHAPES))
    (output,) = model.graph.outputs
    assert output.name == "y"
    assert output.producer().op_type == "SparseMatMul"
    assert output.type == ir.TensorType(ir.DataType.FLOAT)


def test_what_else_reads_the_thresholded_state_is_left_alone():
    text = """
    sparse (float[s, 8] x, float[1] t, float[8, 4] v) => (float[s, 4] y, float[s, 4] z, float[s, 8] r) {
      h = ai.sparsecc.Threshold(x, t)
      c, i = ai.sparsecc.GatherActive(h)
      y = MatMul(h, w)
      z = MatMul(h, v)
      r = Relu(h)
    }"""
    model = model_of(text, {"w": (8, 4)})
    ReplaceMatMulPass()(model)
    assert operators(model) == ["Threshold", "GatherActive", "SparseMatMul", "MatMul", "Relu"]


def test_two_lists_of_one_state_replace_a_product_once():
    text = """
    sparse (float[s, 8] x) => (float[s, 4] y) {
      c, i = ai.sparsecc.GatherActive(x)
      d, j = ai.sparsecc.GatherActive(x)
      y = MatMul(x, w)
    }"""
    model = model_of(text, {"w": (8, 4)})
    ReplaceMatMulPass()(model)
    assert operators(model) == ["GatherActive", "GatherActive", "SparseMatMul"]


def test_one_weight_may_serve_two_projections():
    text = """
    tied (float[1, s, 8] x) => (float[1, s, 8] y) {
      ["gate/MatMul"] g = MatMul(x, w)
      ["up/MatMul"] u = MatMul(x, w)
      s = Sigmoid(g)
      h = Mul(s, u)
      ["down/MatMul"] y = MatMul(h, v)
    }"""
    model = replaced(model_of(text, {"w": (8, 16), "v": (16, 8)}))
    assert named(model, "gate/SparseMatMul").inputs[2] is named(model, "up/SparseMatMul").inputs[2]
