"""Scaled thresholds meet a budget exactly, by what numpy counts on the dense model's hidden states."""

import dataclasses

import numpy as np
import pytest

from sparsecc.errors import SparseccError
from sparsecc.hidden_states import hidden_states_on
from sparsecc.model_file import load_model
from sparsecc.projections import find_projections
from sparsecc.scaled_recipe import ScaledRecipe
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from .graphs import recipe_for


@pytest.fixture(scope="module")
def model(dense):
    return load_model(dense.model_path)


@pytest.fixture(scope="module")
def windows(dense):
    return token_windows(shipped_text("calibration"), load_tokenizer(dense.directory), tokens=128, window=128)


@pytest.fixture(scope="module")
def states(dense, model, windows):
    names = dict.fromkeys(str(projection.input.name) for projection in find_projections(model.graph))
    (piece,) = hidden_states_on(dense, list(names), windows, "")
    return piece


@pytest.fixture(scope="module")
def scaled(dense, model, windows):
    return ScaledRecipe(recipe_for(model, 0.1), dense, find_projections(model.graph), windows)


def shares(recipe, model, states):
    """Of each projection, the share of entries that its thresholds zero, and its number of weights."""
    entries = {entry.name: entry for entry in recipe.projections}
    found = []
    for projection in find_projections(model.graph):
        magnitudes = np.abs(states[str(projection.input.name)].astype(np.float64))
        entry = entries.get(projection.name)
        skipped = np.mean(magnitudes < entry.threshold) if entry else 0.0
        found.append((skipped, projection.channels * projection.outputs, entry))
    return found


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
def test_the_budget_is_met_whatever_the_scales(scaled, model, states, sparsity):
    scales = np.random.default_rng(0).uniform(0.5, 2, len(scaled.groups))
    counted = shares(scaled.within_budget(scales, sparsity), model, states)
    total = sum(weights for _, weights, _ in counted)
    assert sum(skipped * weights for skipped, weights, _ in counted) / total == pytest.approx(sparsity, abs=2e-3)
    for skipped, _, entry in counted:
        assert entry.calibrated_sparsity == entry.target_sparsity == pytest.approx(skipped, abs=5e-3)


def test_projections_that_share_a_threshold_keep_sharing_it(scaled):
    assert [group.kind for group in scaled.groups[:4]] == ["q+k+v", "o", "gate+up", "down"]
    entries = scaled.within_budget(np.linspace(0.5, 2, len(scaled.groups)), 0.5).projections
    assert entries[0].threshold == entries[1].threshold == entries[2].threshold != entries[3].threshold


def test_a_scale_counts_against_the_others(scaled):
    scales = np.ones(len(scaled.groups))
    scales[3] = 2
    q, _, _, o, _, _, down, *_ = scaled.within_budget(scales, 0.5).projections
    assert down.threshold / q.threshold == pytest.approx(2, rel=1e-5)
    assert o.threshold == pytest.approx(q.threshold)


def test_thresholds_by_channel_may_be_zero_or_infinite(dense, model, windows, states):
    recipe = recipe_for(model, 0.1)
    channels = {projection.name: projection.channels for projection in find_projections(model.graph)}
    entries = []
    for entry in recipe.projections:
        by_channel = np.full(channels[entry.name], 0.1, np.float32)
        by_channel[0], by_channel[1] = 0, np.inf
        entries.append(dataclasses.replace(entry, threshold=by_channel))
    several = dataclasses.replace(recipe, projections=tuple(entries))
    scaled = ScaledRecipe(several, dense, find_projections(model.graph), windows)
    counted = shares(scaled.within_budget(np.ones(len(scaled.groups)), 0.5), model, states)
    total = sum(weights for _, weights, _ in counted)
    assert sum(skipped * weights for skipped, weights, _ in counted) / total == pytest.approx(0.5, abs=2e-3)
    assert all(entry.threshold[0] == 0 and np.isposinf(entry.threshold[1]) for _, _, entry in counted)


def test_a_budget_that_too_few_projections_meet_is_refused(dense, model, windows):
    recipe = recipe_for(model, 0.1)
    only_down = tuple(entry for entry in recipe.projections if entry.kind == "down")
    scaled = ScaledRecipe(
        dataclasses.replace(recipe, projections=only_down), dense, find_projections(model.graph), windows
    )
    scaled.within_budget(np.ones(8), 0.2)
    with pytest.raises(SparseccError, match=r"skip 90.0% of the model's weights: they can skip 0.0% to 25"):
        scaled.within_budget(np.ones(8), 0.9)


def test_zeros_are_skipped_under_a_threshold_of_zero(dense, model, windows, states):
    """Which ReLU leaves: no scale changes what such a threshold skips, and the others make up for the rest."""
    thresholds = dict.fromkeys(("q", "k", "v", "o", "gate", "up"), np.ones(1, np.float32))
    recipe = recipe_for(model, {"down": np.zeros(1, np.float32), **thresholds})
    downs = [str(projection.input.name) for projection in find_projections(model.graph) if projection.kind == "down"]
    zeroed = {
        key: np.where(np.arange(piece.shape[-1]) % 10, 0, piece) if key in downs else piece
        for key, piece in states.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsecc.scaled_recipe.hidden_states_on", lambda *_given, **_options: iter([zeroed]))
        scaled = ScaledRecipe(recipe, dense, find_projections(model.graph), windows)
    for sparsity in (0.4, 0.6):
        counted = shares(scaled.within_budget(np.ones(len(scaled.groups)), sparsity), model, zeroed)
        zeros = [np.mean(zeroed[key] == 0) for key in downs]
        total = sum(weights for _, weights, _ in counted)
        skipped = sum(
            (zeros[entry.layer] if entry.kind == "down" else share) * weights for share, weights, entry in counted
        )
        assert skipped / total == pytest.approx(sparsity, abs=2e-3)
    with pytest.raises(SparseccError, match=r"skip 99\.9% of the model's weights"):
        scaled.within_budget(np.ones(len(scaled.groups)), 0.999)


@pytest.mark.parametrize("more", [{"kept": 3}, {"selected_by": "gate"}, {"branch": np.eye(1, 384, dtype=np.float32)}])
def test_a_recipe_that_does_more_than_to_threshold_is_refused(dense, model, windows, more):
    recipe = recipe_for(model, 0.1)
    entries = tuple(dataclasses.replace(entry, **more) for entry in recipe.projections)
    with pytest.raises(SparseccError, match="more than to threshold"):
        ScaledRecipe(dataclasses.replace(recipe, projections=entries), dense, find_projections(model.graph), windows)
