"""Perplexity, divergence and agreement against float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.token_scores import TokenScores, log_softmax


def exact_log_softmax(logits):
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(1, 300),
    vocabulary=st.integers(2, 500),
    scale=st.floats(0.01, 30),
    pieces=st.integers(1, 4),
)
def test_scores_agree_with_float64(seed, tokens, vocabulary, scale, pieces):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(tokens, vocabulary)) * scale).astype(np.float32)
    reference = (logits + rng.normal(size=logits.shape)).astype(np.float32)
    targets = rng.integers(0, vocabulary, tokens)
    scores = TokenScores()
    for chosen in np.array_split(np.arange(tokens), pieces):
        scores.add(logits[chosen], targets[chosen], reference[chosen])
    p, q = exact_log_softmax(reference), exact_log_softmax(logits)
    assert scores.tokens == tokens
    assert scores.mean_divergence == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-5, abs=1e-5)
    assert math.log(scores.perplexity) == pytest.approx(-q[np.arange(tokens), targets].mean(), rel=1e-5, abs=1e-5)
    assert scores.agreement == np.mean(p.argmax(axis=1) == q.argmax(axis=1))


def test_a_model_diverges_from_itself_by_nothing():
    logits = np.random.default_rng(0).normal(size=(200, 100)).astype(np.float32)
    scores = TokenScores()
    scores.add(logits, np.zeros(200, np.int64), log_softmax(logits))
    assert abs(scores.mean_divergence) < 1e-6
    assert scores.agreement == 1


def test_tokens_that_both_models_rule_out_add_nothing():
    logits = np.array([[0.0, 1.0, -np.inf]], np.float32)
    scores = TokenScores()
    scores.add(logits, np.array([1]), logits)
    assert scores.divergence == 0


def test_a_token_that_only_the_model_rules_out_is_infinitely_far():
    scores = TokenScores()
    scores.add(np.array([[0.0, -np.inf]], np.float32), np.array([0]), np.array([[0.0, 0.0]], np.float32))
    assert scores.mean_divergence == math.inf


def test_more_logits_than_targets_are_left_alone():
    logits = np.zeros((3, 4), np.float32)
    scores = TokenScores()
    scores.add(logits, np.array([0, 1]), logits)
    assert scores.tokens == 2
    assert scores.perplexity == pytest.approx(4)
