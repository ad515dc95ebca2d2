from pathlib import Path

import numpy as np
import pytest

from sparsecc.analysis.components import find_components
from sparsecc.analysis.magnitude_distribution import SparsityThreshold
from sparsecc.analysis.sparsity_sweep import SCOPES, TARGETS, sparsity_sweep, unmeasurable
from sparsecc.artifact import Artifact, staged_directory
from sparsecc.compilation import write_sparse_artifact
from sparsecc.evaluation import evaluate
from sparsecc.model_file import load_model
from sparsecc.projections import find_projections
from sparsecc.recipe import ProjectionRecipe, Recipe
from sparsecc.text import TokenWindows, load_tokenizer, shipped_text, token_windows

from .decoders import NEURONS, RELU, random_weights, write_decoder


def test_a_point_is_what_a_compiled_model_with_its_thresholds_does(dense: Artifact, tmp_path: Path):
    """One target in reach of a test: 50 % of what all projections read."""
    windows = token_windows(shipped_text("evaluation"), load_tokenizer(dense.directory), tokens=512, window=256)
    projections = find_projections(load_model(dense.model_path).graph)
    cut = {
        "attention_input": 0.4,
        "o_input": 0.05,
        "ffn_input": 0.5,
        "down_input": 0.1,
        "gate_activation": 0.2,
        "up": 0.3,
    }
    thresholds = [
        SparsityThreshold(part.layer, part.name, 0.5, cut[part.name])
        for part in find_components(projections)
        if part.name in cut
    ]
    points = {(point.scope, point.target_sparsity): point for point in sparsity_sweep(dense, windows, thresholds)}
    assert len(points) == len(SCOPES) * len(TARGETS)
    unchanged = evaluate(dense, windows).perplexity
    assert points["all", 0.0].perplexity == pytest.approx(unchanged, rel=1e-5)
    assert {points[scope, 0.3].perplexity for scope in SCOPES} == {points["all", 0.0].perplexity}

    by_value = {
        part.value: np.array([cut[part.name]], np.float32)
        for part in find_components(projections)
        if part.name in SCOPES["all"]
    }
    entries = [
        ProjectionRecipe(entry.name, entry.layer, entry.kind, "teal", 0.5, 0.5, by_value[entry.input])
        for entry in projections
    ]
    with staged_directory(tmp_path / "sparse", overwrite=False) as staging:
        sparse = write_sparse_artifact(dense, Recipe("teal", 0.5, tuple(entries)), staging)
        expected = evaluate(sparse, windows)
    point = points["all", 0.5]
    assert point.perplexity == pytest.approx(expected.perplexity, rel=5e-3)
    assert point.perplexity > 1.01 * unchanged
    assert point.weights_not_read == pytest.approx(expected.sparsity, abs=2e-3)
    assert points["ffn", 0.5].weights_not_read < point.weights_not_read
    assert points["ffn_neurons", 0.5].perplexity > 1.01 * unchanged


def test_natural_zeros_count_as_weights_not_read(tmp_path: Path):
    relu = write_decoder(tmp_path / "relu", RELU, random_weights())
    windows = TokenWindows(np.random.default_rng(0).integers(0, 8192, (2, 50)), "0" * 64)
    thresholds = [SparsityThreshold(0, "down_input", target, 0.0) for target in TARGETS]
    x = random_weights()["embedding"][windows.ids.ravel()]
    zeros = np.count_nonzero(x @ random_weights()["w_up"] <= 0) / (100 * NEURONS)
    for point in sparsity_sweep(relu, windows, thresholds):
        assert point.weights_not_read == pytest.approx(zeros / 2)
        assert point.achieved_sparsity == pytest.approx(zeros if point.scope == "ffn_neurons" else zeros * 16 / 24)
        assert point.tokens == 100


def test_a_model_that_is_not_finite_has_points_without_numbers():
    points = list(unmeasurable(TokenWindows(np.zeros((1, 9), np.int64), "0" * 64)))
    assert len(points) == len(SCOPES) * len(TARGETS)
    assert all(np.isnan([point.perplexity, point.achieved_sparsity, point.weights_not_read]).all() for point in points)
