"""Methods for feed-forward networks: a target over the whole model, met where they may skip weights, in float64."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.artifact import Artifact
from sparsecc.calibration_statistics import HiddenStateStatistics, ProjectionStatistics, Statistics
from sparsecc.errors import SparseccError
from sparsecc.gated_networks import find_gated_networks
from sparsecc.histogram import bin_counts
from sparsecc.methods import METHODS, CalibratedModel
from sparsecc.methods.cats import thresholded_gates
from sparsecc.projections import find_projections
from sparsecc.recipe import Calibration

from .graphs import BLOCK_SHAPES, FEED_FORWARD, FEED_FORWARD_SHAPES, block, model_of, random_arrays, serialized

TOKENS = 4000
CALIBRATION = Calibration("ab" * 32, "cd" * 32, TOKENS, 1000)
FEED_FORWARD_SHARE = 3 * 8 * 16 / (3 * 8 * 16 + 2 * 8 * 8 + 2 * 8 * 4)
UP_AND_DOWN_SHARE = FEED_FORWARD_SHARE * 2 / 3
WEIGHTS = random_arrays(FEED_FORWARD_SHAPES)


def calibrated(model, states):
    """What calibration learns of a model whose projections of a kind are given these hidden states."""
    projections = find_projections(model.graph)
    by_state, by_projection = {}, {}
    for projection in projections:
        hidden = states[projection.kind]
        state = HiddenStateStatistics.empty(projection.channels)
        state.add(hidden, np.abs(hidden))
        by_state[str(projection.input.name)] = state
        by_projection[projection.name] = ProjectionStatistics.empty(projection)
        by_projection[projection.name].add(np.abs(hidden))
    nowhere = Path("nowhere")
    statistics = Statistics(CALIBRATION, by_state, by_projection)
    return CalibratedModel(Artifact(nowhere, {}), projections, statistics, nowhere)


@pytest.fixture(scope="module")
def block_states():
    """Hidden states for a decoder layer; those that projections share are the same."""
    rng = np.random.default_rng(1)
    x, attended, r = (rng.laplace(size=(TOKENS, 8)).astype(np.float32) for _ in range(3))
    inner = (rng.normal(size=(TOKENS, 16)) ** 3).astype(np.float32)
    return {"q": x, "k": x, "v": x, "o": attended, "gate": r, "up": r, "down": inner}


@pytest.fixture(scope="module")
def relu_states():
    """x, and what a ReLU between ``up`` and ``down`` makes of it."""
    x = np.random.default_rng(2).normal(size=(TOKENS, 8)).astype(np.float32)
    return {"up": x, "down": np.maximum(x @ WEIGHTS["w_up"] - 1, 0)}


def skipped(states, recipe, model):
    """The share of all projections' weights whose input lies below the threshold, in float64."""
    sizes = {projection.kind: projection.channels * projection.outputs for projection in find_projections(model.graph)}
    zeroed = {
        entry.kind: np.mean(
            (np.abs(states[entry.kind].astype(np.float64)) < entry.threshold) | (states[entry.kind] == 0)
        )
        for entry in recipe.projections
    }
    return sum(sizes[kind] * zeroed[kind] for kind in sizes) / sum(sizes.values())


@settings(max_examples=20, deadline=None)
@given(sparsity=st.floats(0.01, 0.99 * FEED_FORWARD_SHARE))
def test_ffn_threshold_meets_the_models_target_in_the_feed_forward_network(block_states, sparsity):
    model = block(random_arrays(BLOCK_SHAPES))
    recipe = METHODS["ffn-threshold"](calibrated(model, block_states), sparsity)
    assert skipped(block_states, recipe, model) == pytest.approx(sparsity, abs=0.003)
    for entry in recipe.projections:
        if entry.kind in ("gate", "up", "down"):
            percentile = np.quantile(np.abs(block_states[entry.kind].astype(np.float64)), sparsity / FEED_FORWARD_SHARE)
            np.testing.assert_allclose(entry.threshold, [percentile], rtol=2e-3, atol=1e-5)  # between few values near 0
        else:
            np.testing.assert_array_equal(entry.threshold, [0])


def test_ffn_threshold_says_how_much_it_could_skip(block_states):
    model = block(random_arrays(BLOCK_SHAPES))
    with pytest.raises(SparseccError, match=r"can skip 66.7% of this model's projection weights at most"):
        METHODS["ffn-threshold"](calibrated(model, block_states), 0.7)


@settings(max_examples=20, deadline=None)
@given(sparsity=st.floats(0, 0.99))
def test_relu_thresholds_only_as_far_as_its_zeros_fall_short(relu_states, sparsity):
    model = model_of(FEED_FORWARD, WEIGHTS)
    recipe = METHODS["relu"](calibrated(model, relu_states), sparsity)
    zeros = np.mean(relu_states["down"] == 0)
    assert skipped(relu_states, recipe, model) == pytest.approx(max(sparsity, zeros / 2), abs=0.003)
    up, down = recipe.projections
    share = sparsity if sparsity > zeros else max(0, 2 * sparsity - zeros)
    np.testing.assert_allclose(up.threshold, [np.quantile(np.abs(relu_states["up"]), share)], rtol=5e-3, atol=5e-3)
    assert (down.threshold[0] > 0) == (sparsity > zeros), "zeros need no threshold"


def test_relu_at_sparsity_zero_computes_what_the_dense_model_does(relu_states):
    recipe = METHODS["relu"](calibrated(model_of(FEED_FORWARD, WEIGHTS), relu_states), 0.0)
    assert [entry.threshold[0] for entry in recipe.projections] == [0, 0]
    assert recipe.projections[1].calibrated_sparsity == pytest.approx(np.mean(relu_states["down"] == 0))


def test_relu_wants_a_relu(block_states):
    with pytest.raises(SparseccError, match="needs a model whose feed-forward networks have ReLU"):
        METHODS["relu"](calibrated(block(random_arrays(BLOCK_SHAPES)), block_states), 0.5)


@pytest.fixture(scope="module")
def gates():
    """The activated gate of the decoder layer on its hidden states, in float64."""
    weights = random_arrays(BLOCK_SHAPES)
    r = np.random.default_rng(3).laplace(size=(TOKENS, 8))
    gate = r @ weights["w_gate"].astype(np.float64)
    return gate / (1 + np.exp(-gate))


@settings(max_examples=20, deadline=None)
@given(sparsity=st.floats(0.01, 0.99 * UP_AND_DOWN_SHARE))
def test_cats_thresholds_the_activated_gate_at_its_quantile(block_states, gates, sparsity):
    """CATS, equation 2: t is the quantile of abs(SiLU(x W_gate)); what it zeroes is the model's target in bytes."""
    model = block(random_arrays(BLOCK_SHAPES))
    networks = find_gated_networks(model.graph)
    histograms = {str(networks[0].activated.name): bin_counts(np.abs(gates).astype(np.float32))}
    recipe = thresholded_gates(calibrated(model, block_states), sparsity, networks, histograms)
    exact = np.quantile(np.abs(gates), sparsity / UP_AND_DOWN_SHARE)
    for entry in recipe.projections:
        assert entry.selected_by == ("gate" if entry.kind in ("up", "down") else "input")
        threshold = exact if entry.kind in ("up", "down") else 0
        np.testing.assert_allclose(entry.threshold, [threshold], rtol=2e-3)
    zeroed = np.mean(np.abs(gates) < recipe.projections[-1].threshold)
    assert zeroed * UP_AND_DOWN_SHARE == pytest.approx(sparsity, abs=0.003)


def test_cats_wants_a_gate(tmp_path, relu_states):
    model = model_of(FEED_FORWARD, WEIGHTS)
    (tmp_path / "model.onnx").write_bytes(serialized(model))
    dense = Artifact(tmp_path, {"model": {"decoder": {"filename": "model.onnx"}}})
    with pytest.raises(SparseccError, match="method cats needs feed-forward networks with a gate"):
        METHODS["cats"](dataclasses.replace(calibrated(model, relu_states), dense=dense), 0.2)


def test_cats_says_how_much_it_could_skip(block_states, gates):
    model = block(random_arrays(BLOCK_SHAPES))
    networks = find_gated_networks(model.graph)
    histograms = {str(networks[0].activated.name): bin_counts(np.abs(gates).astype(np.float32))}
    with pytest.raises(SparseccError, match=r"method cats can skip 44.4% of this model's projection weights at most"):
        thresholded_gates(calibrated(model, block_states), 0.5, networks, histograms)
