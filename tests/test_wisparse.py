"""WiSparse's score, and its two allocations, against float64."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc import histogram
from sparsecc.calibration import calibrate
from sparsecc.hidden_states import hidden_states_on
from sparsecc.methods import CalibratedModel
from sparsecc.methods.wisparse import EXPONENTS, LARGEST_MOVE, evolved_shares, per_channel
from sparsecc.model_file import load_model
from sparsecc.projections import find_projections
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from .conftest import THREADS
from .graphs import FEED_FORWARD, FEED_FORWARD_SHAPES, model_of

wisparse = importlib.import_module("sparsecc.methods.wisparse")  # not the function of that name
TOKENS = 64
SPARSITY = 0.2


@pytest.fixture(scope="module")
def model(dense):
    text = shipped_text("calibration")
    windows = token_windows(text, load_tokenizer(dense.directory), tokens=TOKENS, window=TOKENS)
    projections = find_projections(load_model(dense.model_path).graph)
    return CalibratedModel(dense, projections, calibrate(dense, windows, threads=THREADS), text, THREADS)


@pytest.fixture(scope="module")
def recipe(model):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SCORE_TOKENS", "BLOCK_TOKENS", "SEARCH_TOKENS"):
            patch.setattr(wisparse, name, TOKENS)
        patch.setattr(wisparse, "EXPONENTS", (0.0, 0.5))
        patch.setattr(wisparse, "GENERATIONS", 1)
        patch.setattr(wisparse, "CHILDREN", 2)
        return wisparse.wisparse(model, SPARSITY)


def test_thresholds_are_quantiles_of_magnitude_times_a_power_of_the_norm(model, recipe, dense):
    """The exponent of each projection is told from its thresholds; the quantile is taken of what was run."""
    windows = token_windows(model.text, load_tokenizer(dense.directory), tokens=TOKENS, window=TOKENS)
    names = [str(projection.input.name) for projection in model.projections]
    (piece,) = hidden_states_on(dense, list(dict.fromkeys(names)), windows, "")
    entries = {entry.name: entry for entry in recipe.projections}
    exponents = set()
    for projection in model.projections:
        entry = entries[projection.name]
        if entry.target_sparsity == 0:
            continue
        norms = np.linalg.norm(projection.weight.const_value.numpy().astype(np.float64), axis=1)
        exponent = 0.5 if entry.threshold.size > 1 else 0.0
        exponents.add(exponent)
        scores = np.abs(piece[str(projection.input.name)].astype(np.float64)) * norms**exponent
        exact = np.quantile(scores, entry.target_sparsity)
        threshold = np.broadcast_to(entry.threshold, norms.shape)
        np.testing.assert_allclose(threshold, exact / norms**exponent, rtol=2e-3)
    assert exponents == {0, 0.5}


def test_the_budget_of_the_model_is_met(model, recipe):
    sizes = {projection.name: projection.channels * projection.outputs for projection in model.projections}
    skipped = sum(sizes[entry.name] * entry.target_sparsity for entry in recipe.projections)
    assert [entry.name for entry in recipe.projections] == [projection.name for projection in model.projections]
    assert skipped / sum(sizes.values()) == pytest.approx(SPARSITY, abs=1e-6)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_a_channel_is_kept_where_its_score_reaches_the_threshold(exponent):
    rng = np.random.default_rng(0)
    norms = rng.lognormal(size=50).astype(np.float32)
    x = rng.normal(size=(200, 50))
    scores = np.abs(x) * norms.astype(np.float64) ** exponent
    level = float(np.quantile(scores, 0.5))
    threshold = per_channel(np.array([level], np.float32), norms, exponent)
    assert np.mean((np.abs(x) >= threshold) != (scores >= level)) < 1e-3


class UnevenBlock:
    """A projection by diag(norms) in a block that scales its outputs so that x_k weighs norm_k^a, in float64."""

    def __init__(self, x, norms, exponent):
        self.weighted = x * norms**exponent
        self.magnitudes = np.abs(x)

    def error(self, thresholds):
        (threshold,) = thresholds.values()
        return float(np.linalg.norm(np.where(self.magnitudes >= threshold, 0, self.weighted)))


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_a_projection_takes_the_exponent_that_loses_least_of_its_blocks_output(exponent):
    """Where x_k weighs norm_k^a, what a dropped entry loses is its score with the exponent a, squared."""
    rng = np.random.default_rng(1)
    norms = np.geomspace(0.05, 20, 8)
    x = rng.normal(size=(4000, 8))
    (projection, *_) = find_projections(model_of(FEED_FORWARD, FEED_FORWARD_SHAPES).graph)
    scores = {a: histogram.bin_counts((np.abs(x) * norms**a).astype(np.float32)) for a in EXPONENTS}
    scored = wisparse._Scored(projection, norms.astype(np.float32), scores)
    block = UnevenBlock(x, norms, exponent)
    errors = {a: block.error({"": scored.entry(a, 0.5).threshold}) for a in EXPONENTS}
    assert sorted(errors.values())[1] > 1.02 * errors[exponent], "the best is told apart"
    assert wisparse._best_exponent(block, scored, 0.5) == exponent


def test_a_row_of_zeros_is_never_read():
    threshold = per_channel(np.array([1.0], np.float32), np.array([0.0, 1.0], np.float32), 0.5)
    np.testing.assert_array_equal(threshold, [np.inf, 1])


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.floats(1, 100), min_size=1, max_size=8), target=st.floats(0, 0.95))
def test_evolution_keeps_the_budget(sizes, target):
    shares = evolved_shares(sizes, target, lambda shares: float(shares[0]), generations=3, children=3)
    assert np.all((shares >= -1e-9) & (shares <= 1 + 1e-9))
    assert np.dot(shares, sizes) / np.sum(sizes) == pytest.approx(target, abs=1e-9)


def test_evolution_spares_the_block_that_suffers():
    costs = np.array([10.0, 1.0, 1.0])
    shares = evolved_shares([1, 1, 1], 0.5, lambda shares: float(costs @ shares**2), generations=40)
    assert shares[0] < 0.5 - LARGEST_MOVE
    assert costs @ shares**2 < 0.75 * costs.sum() * 0.25
