"""Thresholds by Fisher information on the trained model, against their formula in float64, and their budget."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsecc import calibration
from sparsecc.calibration import require_projections
from sparsecc.compilation import compile_model, write_sparse_artifact
from sparsecc.errors import MisfitError
from sparsecc.evaluation import evaluate
from sparsecc.hidden_state_gradients import hidden_state_gradients
from sparsecc.methods import METHODS, CalibratedModel
from sparsecc.methods.fisher import _thresholds, outputs_behind
from sparsecc.model_file import load_model
from sparsecc.projections import projections_and_head
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from .conftest import THREADS

SPARSITY = 0.5
TOKENS, WINDOW = 1024, 256


@pytest.fixture(scope="module")
def windows(dense):
    return token_windows(shipped_text("calibration"), load_tokenizer(dense.directory), tokens=TOKENS, window=WINDOW)


@pytest.fixture(scope="module")
def model(dense, statistics):
    """Books-16m, calibrated on little text."""
    projections = require_projections(load_model(dense.model_path), dense.model_path)
    short = dataclasses.replace(statistics.calibration, tokens=TOKENS, window=WINDOW)
    return CalibratedModel(
        dense,
        projections,
        dataclasses.replace(statistics, calibration=short),
        shipped_text("calibration"),
        threads=THREADS,
    )


@pytest.fixture(scope="module")
def projections(model):
    return projections_and_head(load_model(model.dense.model_path).graph)


@pytest.fixture(scope="module")
def recipe(model):
    return METHODS["fisher"](model, SPARSITY)


def test_gradients_are_those_of_transformers(dense, checkpoint, windows):
    """The loss depends on what is drawn, so what is drawn here is drawn as there: by the same generator."""
    hidden = "/model/layers.5/post_attention_layernorm/output_0"
    (observed,) = hidden_state_gradients(dense, [hidden], windows.first(1))
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    seen = []

    def keep(_module, _inputs, output):
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    reference.model.layers[5].post_attention_layernorm.register_forward_hook(keep)
    logits = reference(torch.from_numpy(windows.ids[:1])).logits[0]
    drawn = torch.multinomial(torch.softmax(logits.detach(), -1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, drawn, reduction="sum"), seen)
    np.testing.assert_allclose(observed[hidden][0], seen[0][0].detach(), atol=1e-3)
    np.testing.assert_allclose(observed[hidden][1], gradient[0], atol=1e-3 * gradient.abs().max().item())


def test_one_level_of_divergence_per_weight_decides_everywhere(recipe, model, projections, windows):
    outputs = outputs_behind(projections)
    names = list(outputs)
    fisher = dict.fromkeys(names, 0.0)
    for observed in hidden_state_gradients(model.dense, names, windows):
        for name in names:
            fisher[name] = fisher[name] + observed[name][1].double().square().sum(0).numpy() / TOKENS
    levels = {}
    for entry, projection in zip(recipe.projections, projections, strict=True):
        name = str(projection.input.name)
        levels[entry.name] = entry.threshold.astype(np.float64) ** 2 * fisher[name] / outputs[name]
    level = levels[recipe.projections[0].name][0]
    for name, found in levels.items():
        np.testing.assert_allclose(found, level, rtol=2e-3, err_msg=name)


@pytest.mark.parametrize(("root_of_level", "kept_from"), [(0.0, 0.0), (0.5, 2.0)])
def test_a_channel_that_nothing_depends_on_is_never_kept(model, root_of_level, kept_from):
    """Also at level 0, where all others are."""
    few = model.projections[:1]
    name = str(few[0].input.name)
    thresholds = _thresholds(root_of_level, {name: np.array([0, 0.25], np.float32)}, few)
    np.testing.assert_array_equal(thresholds[few[0].name], np.array([np.inf, kept_from], np.float32))


def test_the_model_skips_what_was_asked_for_while_it_is_thresholded(recipe, model, projections, windows, tmp_path):
    seen = evaluate(write_sparse_artifact(model.dense, recipe, tmp_path), windows, threads=THREADS)
    assert seen.sparsity == pytest.approx(SPARSITY, abs=2e-3)
    weights = [projection.weight_count for projection in projections]
    calibrated = np.average([entry.calibrated_sparsity for entry in recipe.projections], weights=weights)
    assert calibrated == pytest.approx(seen.sparsity, abs=1e-3)


@pytest.mark.slow
def test_the_rotated_model_skips_what_was_asked_for_on_text_that_its_rotation_was_not_learned_on(
    model, windows, tmp_path
):
    """Of four windows the first two."""
    recipe = METHODS["rotated-fisher"](model, SPARSITY)
    seen = evaluate(write_sparse_artifact(model.dense, recipe, tmp_path), windows.first(2), threads=THREADS)
    assert seen.sparsity == pytest.approx(SPARSITY, abs=3e-3)


def test_a_single_window_is_too_little_for_a_rotation(model):
    calibration = dataclasses.replace(model.statistics.calibration, tokens=WINDOW)
    short = dataclasses.replace(model, statistics=dataclasses.replace(model.statistics, calibration=calibration))
    with pytest.raises(MisfitError, match=r"calibrate on 512 tokens or more"):
        METHODS["rotated-fisher"](short, SPARSITY)


@pytest.mark.parametrize("method", ["fisher", "rotated-fisher"])
def test_at_sparsity_zero_every_channel_is_kept(model, method):
    recipe = METHODS[method](model, 0.0)
    assert all(entry.threshold == 0 for entry in recipe.projections)
    assert recipe.rotations is None


def test_a_sparsity_that_is_missed_is_refused(model, monkeypatch):
    class SkipsHalf:
        def __init__(self, *_given, **_options):
            pass

        def idle_shares(self, thresholds):
            return dict.fromkeys(thresholds, 0.5)

    monkeypatch.setattr(sys.modules["sparsecc.methods.fisher"], "ThresholdSession", SkipsHalf)
    with pytest.raises(MisfitError, match=r"method fisher can skip 50.0% of .* and sparsity 0.6 is to skip more"):
        METHODS["fisher"](model, 0.6)


def test_no_statistics_are_gathered_to_compile(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "_calibrate_once", pytest.fail)
    made = compile_model(dense.directory, tmp_path / "sparse", method="fisher", tokens=TOKENS, measure=False)
    assert made.recipe.calibration.tokens == TOKENS
