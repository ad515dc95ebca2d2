from collections import Counter

import onnx_ir as ir

from sparsecc.passes import InsertGatherActivePass, InsertThresholdPass

from ..graphs import model_of, named, operators, recipe_for


def test_each_threshold_before_a_projection_gets_one(dense_model: ir.Model):
    InsertThresholdPass(recipe_for(dense_model))(dense_model)
    before = Counter(operators(dense_model))
    InsertGatherActivePass()(dense_model)
    assert Counter(operators(dense_model)) == before + Counter({"GatherActive": 4 * 8})


def test_it_reads_the_threshold_it_is_named_after(model: ir.Model):
    InsertThresholdPass(recipe_for(model))(model)
    InsertGatherActivePass()(model)
    node = named(model, "/layers.0/mlp/gate_proj/GatherActive")
    assert node.domain == "ai.sparsecc"
    assert node.inputs[0].producer() is named(model, "/layers.0/mlp/gate_proj/Threshold")


def test_nothing_reads_it_yet(model: ir.Model):
    InsertThresholdPass(recipe_for(model))(model)
    InsertGatherActivePass()(model)
    values, indices = named(model, "/layers.0/mlp/gate_proj/GatherActive").outputs
    assert not values.consumers()
    assert not indices.consumers()


def test_values_and_indices_have_types_and_share_their_last_dimension(dense_model: ir.Model):
    InsertThresholdPass(recipe_for(dense_model))(dense_model)
    InsertGatherActivePass()(dense_model)
    for node in dense_model.graph:
        if node.op_type == "GatherActive":
            values, indices = node.outputs
            assert (values.dtype, indices.dtype) == (ir.DataType.FLOAT, ir.DataType.INT64)
            assert [*values.shape][:-1] == [*node.inputs[0].shape][:-1]
            assert values.shape[-1] == indices.shape[0]


def test_a_threshold_that_feeds_no_projection_gets_none():
    text = """
    sparse (float[s, 8] x, float[1] t) => (float[s, 8] y) {
      h = ai.sparsecc.Threshold(x, t)
      y = Relu(h)
    }"""
    model = model_of(text)
    assert not InsertGatherActivePass()(model).modified
    assert operators(model) == ["Threshold", "Relu"]


def test_a_threshold_of_unknown_shape_gets_one():
    text = """
    sparse (float[s, 8] x, float[1] t) => (float[s, 4] y) {
      h = ai.sparsecc.Threshold(x, t)
      y = MatMul(h, w)
    }"""
    model = model_of(text, {"w": (8, 4)})
    assert InsertGatherActivePass()(model).modified
    assert operators(model) == ["Threshold", "GatherActive", "MatMul"]
