import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from sparsecc.passes import CountActivePass, LimitSparseRowsPass, ShipFunctionsPass, active_count_name
from sparsecc.sparsify import sparsify

from ..graphs import model_of, named, recipe_for, run

THRESHOLD = """
sparse (float[b, s, 4] x, float[t] t) => (float[b, s, 4] y) { ["up/Threshold"] y = ai.sparsecc.Threshold(x, t) }
"""
HIDDEN = st_numpy.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 5), st.just(4)))


def counting_model() -> ir.Model:
    model = model_of(THRESHOLD)
    LimitSparseRowsPass(0)(model)
    CountActivePass()(model)
    ShipFunctionsPass()(model)
    return model


def test_each_threshold_gets_an_output_named_after_it(dense_model: ir.Model):
    sparsify(dense_model, recipe_for(dense_model))
    before = [value.name for value in dense_model.graph.outputs]
    CountActivePass()(dense_model)
    counts = [value.name for value in dense_model.graph.outputs][len(before) :]
    assert counts == [active_count_name(node) for node in dense_model.graph if node.op_type == "Threshold"]
    assert len(counts) == 4 * 8
    assert counts[0] == "/model/layers.0/attn/q_proj/Threshold/active_count"


def test_thresholds_that_share_a_name_are_refused(model: ir.Model):
    sparsify(model, recipe_for(model))
    for node in model.graph:
        node.name = "same"
    with pytest.raises(ir.passes.PreconditionError, match="one name"):
        CountActivePass()(model)


def test_a_count_is_an_integer_scalar(model: ir.Model):
    sparsify(model, recipe_for(model))
    CountActivePass()(model)
    for output in model.graph.outputs[1:]:
        assert (output.dtype, output.shape) == (ir.DataType.INT64, ir.Shape([]))


@settings(max_examples=60, deadline=None)
@given(x=HIDDEN, t=st.floats(0, 10, width=32))
def test_a_count_is_the_number_of_entries_that_the_threshold_kept(x: np.ndarray, t: float):
    threshold = np.array([t], np.float32)
    y, count = run(counting_model(), x=x, t=threshold)
    assert count == np.count_nonzero((np.abs(x) >= threshold) & (x != 0)) == np.count_nonzero(y)


def test_nan_below_any_threshold_does_not_count_and_nan_that_passed_does():
    x = np.array([[[np.nan, 0, -0.0, 2]]], np.float32)
    assert run(counting_model(), x=x, t=np.ones(1, np.float32))[1] == 1
    dense = counting_model()
    LimitSparseRowsPass(1)(dense)
    assert run(dense, x=np.repeat(x, 2, axis=1), t=np.ones(1, np.float32))[1] == 4


def test_huge_and_tiny_entries_count_once_each():
    x = np.array([[[np.inf, -np.inf, 1e-45, 3e38]]], np.float32)
    assert run(counting_model(), x=x, t=np.zeros(1, np.float32))[1] == 4


def test_a_threshold_for_each_channel_is_counted():
    x = np.ones((2, 3, 4), np.float32)
    assert run(counting_model(), x=x, t=np.array([0, 1, 2, np.inf], np.float32))[1] == 12


def test_counting_leaves_the_outputs_as_they_were(model: ir.Model):
    sparsify(model, recipe_for(model))
    x = np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32)
    (expected,) = run(model, x=x)
    CountActivePass()(model)
    y, *counts = run(model, x=x)
    np.testing.assert_array_equal(y, expected)
    assert counts[0] == np.count_nonzero(np.abs(x) >= 0.5)
    assert named(model, "/layers.0/attn/q_proj/Threshold").outputs[0].name is not None
