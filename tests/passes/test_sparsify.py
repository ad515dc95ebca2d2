"""The passes in the order of :func:`sparsecc.sparsify.sparsify`."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc import sparsify as pipeline
from sparsecc.errors import SparseccError
from sparsecc.model_file import save_model
from sparsecc.passes import ShipFunctionsPass
from sparsecc.sparsify import MAX_SPARSE_ROWS, sparsify

from ..graphs import (
    BLOCK_KINDS,
    BLOCK_SHAPES,
    FEED_FORWARD,
    FEED_FORWARD_SHAPES,
    Array,
    block,
    block_output,
    model_of,
    random_arrays,
    recipe_for,
    run,
    serialized,
)

STEPS = [
    "InsertThresholdPass",
    "LimitSparseRowsPass",
    "InsertGatherActivePass",
    "ReplaceMatMulPass",
    "FoldBiasPass",
    "AnnotatePass",
    "ShipFunctionsPass",
    "CleanUpPass",
]


def thresholds_by_kind(per_channel: bool, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    channels = {kind: BLOCK_SHAPES[f"w_{kind}"][0] for kind in BLOCK_KINDS}
    return {k: rng.uniform(0.2, 1.5, channels[k] if per_channel else 1).astype(np.float32) for k in BLOCK_KINDS}


@pytest.mark.parametrize("steps", range(1, len(STEPS) + 1), ids=STEPS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["scalar", "per channel"])
@pytest.mark.parametrize("rows", [1, MAX_SPARSE_ROWS, MAX_SPARSE_ROWS + 1])
def test_each_step_computes_what_the_method_says(
    monkeypatch: pytest.MonkeyPatch, weights: dict[str, Array], steps: int, per_channel: bool, rows: int
):
    model = block(weights)
    thresholds = thresholds_by_kind(per_channel)
    recipe = recipe_for(model, thresholds)
    for step in STEPS[steps:]:
        monkeypatch.setattr(pipeline, step, lambda *_: lambda _: None)
    sparsify(model, recipe)
    ShipFunctionsPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = np.random.default_rng(rows).standard_normal((1, rows, 8)).astype(np.float32)
    is_dense = steps >= 2 and rows > MAX_SPARSE_ROWS
    expected = block_output(x, weights, None if is_dense else thresholds)
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 6), per_channel=st.booleans())
def test_a_sparse_layer_computes_the_thresholded_layer(seed: int, rows: int, per_channel: bool):
    weights = random_arrays(BLOCK_SHAPES, seed)
    thresholds = thresholds_by_kind(per_channel, seed)
    model = block(weights)
    sparsify(model, recipe_for(model, thresholds))
    x = random_arrays({"x": (1, rows, 8)}, seed + 1)["x"]
    expected = block_output(x, weights, None if rows > MAX_SPARSE_ROWS else thresholds)
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-3, atol=1e-3)


def test_thresholds_of_zero_change_nothing(model: ir.Model, weights: dict[str, Array]):
    sparsify(model, recipe_for(model, 0.0))
    x = np.random.default_rng(3).standard_normal((1, 2, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x)[0], block_output(x, weights), rtol=1e-4, atol=1e-4)


def test_infinite_thresholds_leave_only_the_biases_and_the_residual():
    model = model_of(FEED_FORWARD, FEED_FORWARD_SHAPES)
    sparsify(model, recipe_for(model, float("inf")))
    (y,) = run(model, x=np.ones((1, 2, 8), np.float32))
    np.testing.assert_array_equal(y, np.zeros((1, 2, 8)))


def test_a_sparse_model_stays_as_it_is(model: ir.Model):
    recipe = recipe_for(model)
    sparsify(model, recipe)
    once = serialized(model)
    sparsify(model, recipe)
    assert serialized(model) == once


def test_a_recipe_for_another_model_is_refused(model: ir.Model):
    with pytest.raises(SparseccError, match="does not fit the model"):
        sparsify(model_of(FEED_FORWARD, FEED_FORWARD_SHAPES), recipe_for(model))


def test_a_sparse_decoder_is_valid_onnx(dense_model: ir.Model, tmp_path: Path):
    """But for an operator of onnxruntime's own and for shapes of scalars, which are so in the dense export."""
    sparsify(dense_model, recipe_for(dense_model))
    for node in dense_model.graph:
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    save_model(dense_model, tmp_path)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    loaded = onnx.load(tmp_path / "model.onnx")
    assert len(loaded.functions) == 3


def test_sparse_nodes_survive_a_file(model: ir.Model, tmp_path: Path):
    sparsify(model, recipe_for(model))
    save_model(model, tmp_path)
    loaded = ir.load(tmp_path / "model.onnx")
    assert [(n.name, n.op_type, n.metadata_props) for n in loaded.graph] == [
        (n.name, n.op_type, n.metadata_props) for n in model.graph
    ]
