import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.passes import TapValuesPass

from ..graphs import block_output, run, serialized


def outputs(model: ir.Model) -> list[str | None]:
    return [value.name for value in model.graph.outputs]


def test_the_named_values_follow_the_outputs_in_the_order_given(model: ir.Model):
    assert TapValuesPass(["gated", "attended"])(model).modified
    assert outputs(model) == ["y", "gated", "attended"]


def test_what_is_an_output_already_stays_where_it_is(model: ir.Model):
    assert TapValuesPass(["gated", "y"])(model).modified
    assert outputs(model) == ["y", "gated"]


def test_a_value_named_twice_is_one_output(model: ir.Model):
    TapValuesPass(["gated", "gated"])(model)
    assert outputs(model) == ["y", "gated"]


def test_a_tapped_value_is_what_the_graph_computes_there(model: ir.Model, weights: dict[str, np.ndarray]):
    TapValuesPass(["gated", "r"])(model)
    x = np.random.default_rng(1).standard_normal((1, 5, 8)).astype(np.float32)
    y, gated, residual = run(model, x=x)
    np.testing.assert_allclose(y, block_output(x, weights), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(residual + gated @ weights["w_down"] + weights["b_down"], y, rtol=1e-4, atol=1e-4)


def test_tapping_the_outputs_there_are_changes_nothing(model: ir.Model):
    before = serialized(model)
    assert not TapValuesPass(["y"])(model).modified
    assert serialized(model) == before


@pytest.mark.parametrize("name", ["nowhere", "", "x", "w_q"], ids=["unknown", "empty", "graph input", "initializer"])
def test_a_value_that_no_node_computes_is_refused(model: ir.Model, name: str):
    with pytest.raises(ir.passes.PreconditionError, match="no value named"):
        TapValuesPass(["gated", name])(model)
    assert outputs(model) == ["y"]


def test_every_hidden_state_of_a_decoder_can_be_tapped(dense_model: ir.Model):
    names = [f"/model/layers.{layer}/mlp/Mul/output_0" for layer in range(8)]
    before = outputs(dense_model)
    TapValuesPass(names)(dense_model)
    assert outputs(dense_model) == before + names
