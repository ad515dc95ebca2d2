import dataclasses
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.passes import InsertThresholdPass, ShipFunctionsPass
from sparsecc.projections import find_projections
from sparsecc.recipe import Recipe

from ..graphs import FEED_FORWARD, model_of, named, operators, recipe_for, run


def thresholds(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Threshold"]


def test_equal_thresholds_on_one_hidden_state_are_one_node(dense_model: ir.Model):
    InsertThresholdPass(recipe_for(dense_model))(dense_model)
    assert len(thresholds(dense_model)) == 4 * 8
    gate, up = (projection for projection in find_projections(dense_model.graph)[4:6])
    assert gate.threshold is up.threshold is named(dense_model, "/model/layers.0/mlp/gate_proj/Threshold")


def test_a_threshold_for_each_channel_and_projection_is_a_node_each(dense_model: ir.Model):
    recipe = recipe_for(dense_model)
    channels = {projection.name: projection.channels for projection in find_projections(dense_model.graph)}
    entries = [
        dataclasses.replace(entry, threshold=np.full(channels[entry.name], 1 + index, np.float32))
        for index, entry in enumerate(recipe.projections)
    ]
    InsertThresholdPass(dataclasses.replace(recipe, projections=tuple(entries)))(dense_model)
    assert len(thresholds(dense_model)) == 7 * 8
    gate, up = (projection for projection in find_projections(dense_model.graph)[4:6])
    assert gate.threshold is not up.threshold
    assert gate.input is up.input


def test_nodes_and_thresholds_are_named_after_the_projection(model: ir.Model):
    InsertThresholdPass(recipe_for(model, 0.25))(model)
    node = named(model, "/layers.0/mlp/down_proj/Threshold")
    assert (node.domain, node.op_type) == ("ai.sparsecc", "Threshold")
    assert [value.name for value in node.inputs] == ["gated", "/layers.0/mlp/down_proj/Threshold/T"]
    threshold = model.graph.initializers["/layers.0/mlp/down_proj/Threshold/T"].const_value
    np.testing.assert_array_equal(threshold.numpy(), np.array([0.25], np.float32))


def test_a_threshold_keeps_the_shape_and_type_of_the_hidden_state(dense_model: ir.Model):
    InsertThresholdPass(recipe_for(dense_model))(dense_model)
    for node in thresholds(dense_model):
        assert node.outputs[0].shape == node.inputs[0].shape
        assert node.outputs[0].type == node.inputs[0].type


def test_the_products_and_what_else_reads_the_hidden_state_stay(model: ir.Model):
    before = Counter(operators(model))
    InsertThresholdPass(recipe_for(model))(model)
    assert Counter(operators(model)) == before + Counter({"Threshold": 4})
    assert [value.name for value in named(model, "/layers.0/residual/Add").inputs] == ["x", "o"]


def test_only_the_projections_of_the_recipe_are_thresholded(model: ir.Model):
    recipe = recipe_for(model)
    InsertThresholdPass(dataclasses.replace(recipe, projections=recipe.projections[-1:]))(model)
    assert [node.name for node in thresholds(model)] == ["/layers.0/mlp/down_proj/Threshold"]
    assert [p.threshold is None for p in find_projections(model.graph)] == [True] * 6 + [False]


def test_the_order_of_the_recipe_does_not_matter(model: ir.Model):
    recipe = recipe_for(model)
    InsertThresholdPass(dataclasses.replace(recipe, projections=recipe.projections[::-1]))(model)
    assert set(named(model, "/layers.0/attn/q_proj/Threshold").outputs[0].consumers()) == {
        named(model, f"/layers.0/attn/{kind}_proj/MatMul") for kind in "qkv"
    }
    defined = {*model.graph.inputs, *model.graph.initializers.values()}
    for node in model.graph:
        assert defined.issuperset(node.inputs)
        defined.update(node.outputs)


def test_a_second_recipe_adds_only_what_the_first_left_out(model: ir.Model):
    recipe = recipe_for(model)
    first = InsertThresholdPass(dataclasses.replace(recipe, projections=recipe.projections[:1]))
    assert first(model).modified
    assert InsertThresholdPass(recipe)(model).modified
    assert all(projection.threshold is not None for projection in find_projections(model.graph))


def test_a_projection_that_the_model_has_not_is_refused_and_nothing_changed(model: ir.Model):
    recipe = recipe_for(model)
    unknown = dataclasses.replace(recipe.projections[0], name="/layers.9/attn/q_proj")
    with pytest.raises(ir.passes.PreconditionError, match=r"/layers\.9/attn/q_proj"):
        InsertThresholdPass(dataclasses.replace(recipe, projections=(*recipe.projections, unknown)))(model)
    assert not thresholds(model)


@pytest.mark.parametrize("shape", [(7,), (9,), (0,), (1, 8), ()])
def test_a_threshold_of_the_wrong_shape_is_refused(model: ir.Model, shape: tuple[int, ...]):
    entry = dataclasses.replace(recipe_for(model).projections[0], threshold=np.ones(shape, np.float32))
    with pytest.raises(ir.passes.PreconditionError, match="q_proj"):
        InsertThresholdPass(Recipe("teal", 0.5, (entry,)))(model)
    assert not thresholds(model)


def test_thresholding_alone_has_the_numerical_effect():
    arrays = {"w_up": np.eye(8, dtype=np.float32), "w_down": np.eye(8, dtype=np.float32)}
    model = model_of(FEED_FORWARD, arrays)
    InsertThresholdPass(recipe_for(model, {"up": np.array([2], np.float32), "down": np.array([3], np.float32)}))(model)
    ShipFunctionsPass()(model)
    x = np.arange(8, dtype=np.float32).reshape(1, 1, 8)
    np.testing.assert_array_equal(run(model, x=x)[0][0, 0], [0, 0, 0, 3, 4, 5, 6, 7])
