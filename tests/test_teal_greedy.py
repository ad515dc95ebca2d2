"""TEAL's algorithm 1 against its formula in float64, on one block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.errors import SparseccError
from sparsecc.methods.teal_greedy import greedy_levels

from .graphs import BLOCK_KINDS, BLOCK_SHAPES, block_output, random_arrays

WEIGHTS = [int(np.prod(BLOCK_SHAPES[f"w_{kind}"])) for kind in BLOCK_KINDS]
TOTAL = sum(WEIGHTS)


def quantile_thresholds(levels, inputs):
    return {kind: np.quantile(np.abs(inputs[kind]), p) for kind, p in zip(BLOCK_KINDS, levels, strict=True)}


@pytest.fixture(scope="module")
def error():
    """The error of a block's output when each projection is thresholded at a quantile, in float64."""
    weights = random_arrays(BLOCK_SHAPES)
    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 40, 8)).astype(np.float32)
    inputs = {kind: rng.standard_normal(500) for kind in BLOCK_KINDS}
    dense = block_output(x, weights)

    def of(levels):
        sparse = block_output(x, weights, quantile_thresholds(levels, inputs))
        return float(np.linalg.norm(sparse.astype(np.float64) - dense))

    return of


def test_steps_of_one_size_go_where_the_error_is_least(error):
    """The paper's loop, word by word: delta_i = alpha * F / f_i, the projection with the least error moves."""
    alpha, levels = 0.02, np.zeros(7)
    for _ in range(10):
        deltas = alpha * TOTAL / np.array(WEIGHTS)
        errors = [error(levels + delta * np.eye(7)[index]) for index, delta in enumerate(deltas)]
        chosen = int(np.argmin(errors))
        levels[chosen] += deltas[chosen]
    found = greedy_levels(WEIGHTS, 10 * alpha, error, step=alpha, largest_rise=1.0)
    assert found == pytest.approx(levels)


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=7),
    target=st.floats(0, 0.99),
    slopes=st.lists(st.floats(0.01, 100), min_size=7, max_size=7),
)
def test_the_target_is_met_exactly(weights, target, slopes):
    levels = greedy_levels(weights, target, lambda at: sum(s * p for s, p in zip(slopes, at, strict=False)))
    assert all(0 <= level <= 1 + 1e-9 for level in levels)
    assert np.dot(levels, weights) / sum(weights) == pytest.approx(target, abs=1e-6)


def test_a_projection_that_costs_nothing_is_skipped_first():
    levels = greedy_levels([50, 50], 0.4, lambda at: at[1])
    assert levels == pytest.approx([0.8, 0])


def test_no_small_projection_is_skipped_at_once():
    levels = greedy_levels([1000, 10], 0.05, lambda at: at[1] ** 2 + 100 * at[0], step=0.05)
    assert levels[1] > 0
    assert levels[0] > 0


def test_sparsity_zero_skips_nothing():
    assert greedy_levels([3, 4], 0.0, lambda _: pytest.fail("nothing to try")) == [0, 0]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_refused(wrong):
    with pytest.raises(SparseccError, match="a block of the model computes NaN or infinity; check the checkpoint"):
        greedy_levels([3, 4], 0.5, lambda _: wrong)
