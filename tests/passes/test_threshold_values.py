import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc.passes import CountActivePass, ShipFunctionsPass, ThresholdValuesPass, threshold_input_name

from ..graphs import block_output, run, serialized

KEEP_ALL, KEEP_NONE = np.zeros(1, np.float32), np.full(1, np.inf, np.float32)


def feeds(x: np.ndarray, **thresholds: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": x, **{threshold_input_name(name): threshold for name, threshold in thresholds.items()}}


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 5, 8)).astype(np.float32)


def test_thresholds_are_inputs_and_change_what_the_graph_computes(
    model: ir.Model, weights: dict[str, np.ndarray], x: np.ndarray
):
    assert ThresholdValuesPass(["gated", "r"])(model).modified
    ShipFunctionsPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    at = dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), KEEP_ALL)
    (y,) = run(model, **feeds(x, gated=KEEP_ALL, r=KEEP_ALL))
    np.testing.assert_allclose(y, block_output(x, weights), rtol=1e-4, atol=1e-4)
    (y,) = run(model, **feeds(x, gated=np.full(1, 0.5, np.float32), r=KEEP_ALL))
    expected = block_output(x, weights, {**at, "down": np.full(1, 0.5, np.float32)})
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_all_that_reads_a_value_reads_it_thresholded(model: ir.Model, weights: dict[str, np.ndarray], x: np.ndarray):
    """The residual is read by gate, by up and by the sum at the end: without it only the bias is left."""
    ThresholdValuesPass(["r"])(model)
    ShipFunctionsPass()(model)
    (y,) = run(model, **feeds(x, r=KEEP_NONE))
    np.testing.assert_allclose(y, np.broadcast_to(weights["b_down"], y.shape), atol=1e-6)


def test_each_threshold_can_be_counted(model: ir.Model, x: np.ndarray):
    ThresholdValuesPass(["gate", "up", "gated"])(model)
    CountActivePass()(model)
    ShipFunctionsPass()(model)
    _, *counts = run(model, **feeds(x, gate=KEEP_ALL, up=KEEP_NONE, gated=KEEP_ALL))
    assert sorted(int(count) for count in counts) == [0, 0, 5 * 16]


def test_an_output_of_the_graph_keeps_its_value(model: ir.Model, weights: dict[str, np.ndarray], x: np.ndarray):
    ThresholdValuesPass(["y"])(model)
    ShipFunctionsPass()(model)
    (y,) = run(model, **feeds(x, y=KEEP_NONE))
    np.testing.assert_allclose(y, block_output(x, weights), rtol=1e-4, atol=1e-4)


def test_a_value_named_twice_and_a_second_call_add_one_threshold(model: ir.Model):
    assert ThresholdValuesPass(["gated", "gated"])(model).modified
    once = serialized(model)
    assert not ThresholdValuesPass(["gated"])(model).modified
    assert serialized(model) == once
    assert [value.name for value in model.graph.inputs] == ["x", "gated/Threshold/T"]


@pytest.mark.parametrize("name", ["nowhere", "", "x", "w_q"], ids=["unknown", "empty", "graph input", "initializer"])
def test_a_value_that_no_node_computes_is_refused(model: ir.Model, name: str):
    with pytest.raises(ir.passes.PreconditionError, match="no value named"):
        ThresholdValuesPass(["gated", name])(model)


def test_a_value_without_threshold_would_be_caught(model: ir.Model):
    with pytest.raises(ir.passes.PostconditionError, match="gated has no Threshold"):
        ThresholdValuesPass(["gated"]).ensures(model)
