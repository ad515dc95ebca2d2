import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc.passes import ExposeThresholdsPass, InsertThresholdPass, ShipFunctionsPass, threshold_input_name
from sparsecc.projections import find_projections

from ..graphs import (
    BLOCK_KINDS,
    BLOCK_SHAPES,
    block,
    block_output,
    model_of,
    random_arrays,
    recipe_for,
    run,
    serialized,
)

X = np.random.default_rng(3).standard_normal((1, 5, 8)).astype(np.float32)


def exposed(weights=None) -> ir.Model:
    model = block(weights)
    ExposeThresholdsPass()(model)
    ShipFunctionsPass()(model)
    return model


def inputs_for(model, thresholds):
    return {
        threshold_input_name(projection.name): thresholds[projection.kind]
        for projection in find_projections(model.graph)
    }


def test_thresholds_are_inputs_of_the_graph():
    weights = random_arrays(BLOCK_SHAPES)
    rng = np.random.default_rng(4)
    sizes = {"down": 16}
    thresholds = {kind: rng.random(sizes.get(kind, 8)).astype(np.float32) for kind in BLOCK_KINDS}
    thresholds["o"] = np.array([0.3], np.float32)
    model = exposed(weights)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (y,) = run(model, x=X, **inputs_for(model, thresholds))
    np.testing.assert_allclose(y, block_output(X, weights, thresholds), rtol=1e-4, atol=1e-4)


def test_each_projection_has_a_threshold_of_its_own():
    thresholds = [projection.threshold for projection in find_projections(exposed().graph)]
    assert len(set(thresholds)) == len(BLOCK_KINDS)


def test_a_second_call_does_nothing():
    model = exposed()
    once = serialized(model)
    assert not ExposeThresholdsPass()(model).modified
    assert serialized(model) == once


def test_a_threshold_that_is_there_stays():
    model = block()
    InsertThresholdPass(recipe_for(model))(model)
    assert not ExposeThresholdsPass()(model).modified


def test_a_graph_without_projections_stays_as_it_is():
    model = model_of("identity (float[n] x) => (float[n] y) { y = Identity(x) }")
    before = serialized(model)
    assert not ExposeThresholdsPass()(model).modified
    assert serialized(model) == before


def test_a_projection_that_was_left_out_would_be_caught():
    with pytest.raises(ir.passes.PostconditionError, match="has no Threshold"):
        ExposeThresholdsPass().ensures(block())
