"""Thresholds that are tried in one session do what they do in a compiled model."""

import dataclasses

import numpy as np
import pytest

from sparsecc.compilation import write_sparse_artifact
from sparsecc.evaluation import evaluate
from sparsecc.model_file import load_model
from sparsecc.text import load_tokenizer, shipped_text, token_windows
from sparsecc.threshold_session import ThresholdSession

from .conftest import THREADS
from .graphs import recipe_for


@pytest.fixture(scope="module")
def windows(dense):
    return token_windows(shipped_text("evaluation"), load_tokenizer(dense.directory), tokens=1024, window=512)


@pytest.fixture(scope="module")
def session(dense, windows):
    return ThresholdSession(dense, windows, threads=THREADS)


def test_a_candidate_measures_as_the_compiled_model_does(session, dense, windows, tmp_path):
    recipe = recipe_for(load_model(dense.model_path), 0.1)
    tried = session.evaluate({entry.name: entry.threshold for entry in recipe.projections})
    measured = evaluate(write_sparse_artifact(dense, recipe, tmp_path), windows, reference=dense, threads=THREADS)
    assert tried.perplexity == pytest.approx(measured.perplexity, rel=0.005)
    assert tried.kl_divergence == pytest.approx(measured.kl_divergence, rel=0.03)
    assert tried.top1_agreement == pytest.approx(measured.top1_agreement, abs=0.02)
    assert tried.sparsity == pytest.approx(measured.sparsity, abs=1e-3)
    assert tried.bytes_per_token == pytest.approx(measured.bytes_per_token, rel=1e-3)
    assert (tried.tokens, tried.window) == (1024, 512)


def test_without_thresholds_it_is_the_dense_model(session, dense, windows):
    tried = session.evaluate({})
    assert tried.perplexity == pytest.approx(evaluate(dense, windows, threads=THREADS).perplexity, rel=1e-4)
    assert abs(tried.kl_divergence) < 1e-6
    assert tried.sparsity == pytest.approx(0, abs=1e-6)  # an entry may be zero
    assert tried.top1_agreement == 1


def test_one_projection_can_be_sparse_alone(session):
    down = session.projections[-2]  # the head is the last
    tried = session.evaluate({down.name: np.full(down.channels, np.inf, np.float32)})
    expected = {kind: 1 / 8 if kind == down.kind else 0 for kind in tried.sparsity_by_kind}
    assert tried.sparsity_by_kind == pytest.approx(expected, abs=1e-6)
    assert tried.kl_divergence > 0.01


def test_windows_are_seen_one_by_one(session, dense, windows):
    down = session.projections[-2]  # the head is the last
    thresholds = {down.name: np.array([np.inf], np.float32)}
    seen = list(session.evaluate_by_window(thresholds))
    assert [evaluation.tokens for evaluation in seen] == [512, 1024]
    assert seen[-1] == session.evaluate(thresholds)
    first = dataclasses.replace(windows, ids=windows.ids[:1])
    alone = ThresholdSession(dense, first, threads=THREADS).evaluate(thresholds)
    assert seen[0].kl_divergence == pytest.approx(alone.kl_divergence, rel=1e-6)


@pytest.mark.parametrize("name", ["nothing", None])
def test_thresholds_that_do_not_fit_are_refused(session, name):
    with pytest.raises(ValueError, match="no threshold of shape"):
        session.evaluate({name or session.projections[0].name: np.ones(2, np.float32)})
