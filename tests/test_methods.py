from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.calibration_statistics import HiddenStateStatistics, ProjectionStatistics, Statistics
from sparsecc.methods import METHODS, CalibratedModel
from sparsecc.methods.teal import teal
from sparsecc.methods.wina import wina
from sparsecc.projections import find_projections
from sparsecc.recipe import Calibration, Recipe

from .graphs import Array, model_of

TOKENS, CHANNELS, INNER = 3000, 24, 32
CALIBRATION = Calibration("ab" * 32, "cd" * 32, TOKENS, 1000)
TOLERANCE = 0.002
GATED = """
gated (float[1, s, 24] x) => (float[1, s, 24] y) {
  ["gate/MatMul"] g = MatMul(x, w_gate)
  ["up/MatMul"] u = MatMul(x, w_up)
  a = Sigmoid(g)
  h = Mul(a, u)
  ["down/MatMul"] y = MatMul(h, w_down)
}
"""


def row_norms(weight: Array) -> NDArray[np.float64]:
    return np.sqrt((weight.astype(np.float64) ** 2).sum(axis=1))


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    scales = {"w_gate": (CHANNELS, INNER), "w_up": (CHANNELS, INNER), "w_down": (INNER, CHANNELS)}
    return {
        name: (rng.normal(size=shape) * rng.lognormal(sigma=0.5, size=(shape[0], 1))).astype(np.float32)
        for name, shape in scales.items()
    }


@pytest.fixture(scope="module")
def states() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    x = rng.laplace(size=(TOKENS, CHANNELS)) * np.geomspace(0.1, 3, CHANNELS)
    h = rng.normal(size=(TOKENS, INNER)) ** 3
    return {"gate": x.astype(np.float32), "up": x.astype(np.float32), "down": h.astype(np.float32)}


def observed(weights: dict[str, Array], states: dict[str, Array]) -> CalibratedModel:
    """A gated network and what calibration on these hidden states learns of its projections; no file is behind it."""
    projections = find_projections(model_of(GATED, weights).graph)
    by_state, by_projection = {}, {}
    for projection in projections:
        hidden = states[projection.name]
        state = HiddenStateStatistics.empty(projection.channels)
        state.add(hidden, np.abs(hidden))
        by_state[str(projection.input.name)] = state
        by_projection[projection.name] = ProjectionStatistics.empty(projection)
        by_projection[projection.name].add(np.abs(hidden))
    nowhere = Path("nowhere")
    return CalibratedModel(
        Artifact(nowhere, {}), projections, Statistics(CALIBRATION, by_state, by_projection), nowhere
    )


def sparsity_of(hidden: Array, threshold: Array) -> float:
    return float(np.mean(np.abs(hidden) < threshold))


def test_teal_thresholds_at_the_quantile_of_the_pooled_magnitudes(weights: dict[str, Array], states: dict[str, Array]):
    recipe = teal(observed(weights, states), 0.4)
    assert [entry.name for entry in recipe.projections] == ["gate", "up", "down"]
    for entry in recipe.projections:
        exact = np.quantile(np.abs(states[entry.name].astype(np.float64)), 0.4)
        np.testing.assert_allclose(entry.threshold, [exact], rtol=1e-3)
        assert entry.threshold.dtype == np.float32


def test_teal_gives_projections_of_one_hidden_state_one_threshold(weights: dict[str, Array], states: dict[str, Array]):
    gate, up, _ = teal(observed(weights, states), 0.4).projections
    np.testing.assert_array_equal(gate.threshold, up.threshold)


def test_wina_thresholds_at_the_quantile_of_magnitude_times_row_norm(
    weights: dict[str, Array], states: dict[str, Array]
):
    for entry in wina(observed(weights, states), 0.4).projections:
        norms = row_norms(weights[f"w_{entry.name}"])
        exact = np.quantile(np.abs(states[entry.name].astype(np.float64)) * norms, 0.4)
        np.testing.assert_allclose(entry.threshold, exact / norms, rtol=1e-3)
        assert entry.threshold.dtype == np.float32


def test_wina_keeps_the_channels_that_the_formula_keeps(weights: dict[str, Array], states: dict[str, Array]):
    for entry in wina(observed(weights, states), 0.5).projections:
        scores = np.abs(states[entry.name].astype(np.float64)) * row_norms(weights[f"w_{entry.name}"])
        expected = scores >= np.quantile(scores, 0.5)
        assert np.mean((np.abs(states[entry.name]) >= entry.threshold) != expected) < 1e-3


def test_wina_gives_gate_and_up_thresholds_of_their_own(weights: dict[str, Array], states: dict[str, Array]):
    gate, up, _ = wina(observed(weights, states), 0.4).projections
    assert not np.array_equal(gate.threshold, up.threshold)


@pytest.mark.parametrize("method", ["teal", "wina"])
@settings(max_examples=20, deadline=None)
@given(sparsity=st.floats(0.01, 0.99))
def test_the_target_is_met_on_the_calibration_text(
    weights: dict[str, Array], states: dict[str, Array], method: str, sparsity: float
):
    recipe = METHODS[method](observed(weights, states), sparsity)
    assert (recipe.method, recipe.target_sparsity, recipe.calibration) == (method, sparsity, CALIBRATION)
    for entry in recipe.projections:
        assert (entry.method, entry.target_sparsity) == (method, sparsity)
        assert entry.calibrated_sparsity == pytest.approx(sparsity, abs=TOLERANCE)
        assert sparsity_of(states[entry.name], entry.threshold) == pytest.approx(sparsity, abs=TOLERANCE)


@pytest.mark.parametrize("method", ["teal", "wina"])
def test_sparsity_zero_keeps_every_channel(weights: dict[str, Array], states: dict[str, Array], method: str):
    recipe: Recipe = METHODS[method](observed(weights, states), 0.0)
    for entry in recipe.projections:
        np.testing.assert_array_equal(entry.threshold, np.zeros(1, np.float32))
        assert entry.calibrated_sparsity == 0


@pytest.mark.parametrize("method", ["teal", "wina"])
def test_channels_that_are_mostly_zero_count_as_skipped(
    weights: dict[str, Array], states: dict[str, Array], method: str
):
    mask = np.random.default_rng(2).random((TOKENS, INNER)) < 0.1
    sparse = {**states, "down": states["down"] * mask}
    down = METHODS[method](observed(weights, sparse), 0.5).projections[-1]
    assert down.calibrated_sparsity == pytest.approx(0.9, abs=0.01)
    assert sparsity_of(sparse["down"][mask], np.broadcast_to(down.threshold, mask.shape)[mask]) < 1e-3


@pytest.mark.parametrize("zero_rows", [1, CHANNELS // 4, CHANNELS - 1, CHANNELS])
def test_wina_skips_rows_of_zeros_always(weights: dict[str, Array], states: dict[str, Array], zero_rows: int):
    w_up = weights["w_up"].copy()
    w_up[:zero_rows] = 0
    up = wina(observed({**weights, "w_up": w_up}, states), 0.5).projections[1]
    assert not np.isnan(up.threshold).any()
    assert np.isposinf(up.threshold[:zero_rows]).all()
    assert np.isfinite(up.threshold[zero_rows:]).all()
    assert up.calibrated_sparsity == pytest.approx(sparsity_of(states["up"], up.threshold), abs=TOLERANCE)


def test_wina_keeps_rows_of_zeros_at_sparsity_zero_without_nan(weights: dict[str, Array], states: dict[str, Array]):
    w_up = np.zeros_like(weights["w_up"])
    up = wina(observed({**weights, "w_up": w_up}, states), 0.0).projections[1]
    np.testing.assert_array_equal(up.threshold, np.zeros(1, np.float32))
