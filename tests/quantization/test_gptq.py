import numpy as np
import pytest
from numpy.typing import NDArray

from sparsecc.quantization import gptq as module
from sparsecc.quantization.gptq import DAMPING, ErrorFeedback, gptq, gptq_by_output
from sparsecc.quantization.round_to_nearest import round_to_nearest

ROWS, COLUMNS = 48, 80


@pytest.fixture(params=[32, 64])
def block(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def inputs() -> NDArray[np.float32]:
    """Inputs [T, K] that vary together, some channels more than others."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((500, 12)) @ rng.standard_normal((12, ROWS)) + 0.3 * rng.standard_normal((500, ROWS))
    return (mixed * np.exp(rng.standard_normal(ROWS))).astype(np.float32)


@pytest.fixture
def weight() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def paper(weight: NDArray[np.float64], scales: NDArray[np.float64], covariance: NDArray[np.float64]) -> np.ndarray:
    """Algorithm 1 of arXiv 2210.17323 in float64, channel by channel with the inverse of H, for scales that are given.

    After channel q is rounded, the others are moved by -(w_q - quant(w_q)) / [H^-1]_qq * [H^-1]_q, and q is struck
    from H^-1 (equations 2 and 3).
    """
    remaining = weight.copy()
    integers = np.zeros_like(weight)
    inverse = np.linalg.inv(covariance)
    for q in np.argsort(-covariance.diagonal(), kind="stable"):
        integers[q] = np.clip(np.rint(remaining[q] / scales[q]), -8, 7)
        error = (remaining[q] - integers[q] * scales[q]) / inverse[q, q]
        remaining -= np.outer(inverse[:, q], error)
        inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
        inverse[q], inverse[:, q] = 0, 0
        inverse[q, q] = 1
    return integers


def test_it_rounds_as_the_paper_says(block: int, inputs: NDArray[np.float32], weight: NDArray[np.float32]):
    covariance = inputs.T @ inputs
    quantized = gptq(weight, ErrorFeedback(covariance), 4, block)
    damped = covariance.astype(np.float64) + DAMPING * covariance.diagonal().mean() * np.eye(ROWS)
    scales = np.repeat(quantized.scales.astype(np.float64), quantized.block_size, axis=1)[:, :COLUMNS]
    expected = paper(weight.astype(np.float64), scales, damped)
    assert np.mean(quantized.integers == expected) > 0.99  # the rest lies within float32's rounding of a tie


def test_it_rounds_as_the_paper_says_where_blocks_run_along_the_inputs(
    block: int, inputs: NDArray[np.float32], weight: NDArray[np.float32]
):
    covariance = inputs.T @ inputs
    quantized = gptq_by_output(weight, ErrorFeedback(covariance), 4, block)
    assert quantized.integers.shape == (COLUMNS, ROWS)
    damped = covariance.astype(np.float64) + DAMPING * covariance.diagonal().mean() * np.eye(ROWS)
    scales = np.repeat(quantized.scales.astype(np.float64), quantized.block_size, axis=1)[:, :ROWS].T
    expected = paper(weight.astype(np.float64), scales, damped)
    assert np.mean(expected == quantized.integers.T) > 0.99
    np.testing.assert_array_equal(quantized.scales, round_to_nearest(weight.T, 4, block).scales)


def test_its_product_is_closer_than_that_of_rounding(
    block: int, inputs: NDArray[np.float32], weight: NDArray[np.float32]
):
    feedback = ErrorFeedback(inputs.T @ inputs)
    for bits in (4, 8):
        errors = [
            np.linalg.norm(inputs @ (quantized.dequantized() - weight))
            for quantized in (gptq(weight, feedback, bits, block), round_to_nearest(weight, bits, block))
        ]
        assert errors[0] < 0.5 * errors[1]


def test_uncorrelated_inputs_leave_rounding_to_the_nearest(block: int, weight: NDArray[np.float32]):
    by_gptq = gptq(weight, ErrorFeedback(np.eye(ROWS, dtype=np.float32)), 4, block)
    by_rounding = round_to_nearest(weight, 4, block)
    np.testing.assert_array_equal(by_gptq.integers, by_rounding.integers)
    np.testing.assert_array_equal(by_gptq.scales, by_rounding.scales)


def test_channels_that_are_never_active_are_rounded_to_the_nearest(block: int, weight: NDArray[np.float32]):
    covariance = np.zeros((ROWS, ROWS), np.float32)
    np.testing.assert_array_equal(
        gptq(weight, ErrorFeedback(covariance), 4, block).integers, round_to_nearest(weight, 4, block).integers
    )
    covariance[:8, :8] = 1
    quantized = gptq(weight, ErrorFeedback(covariance), 4, block)
    np.testing.assert_array_equal(quantized.integers[8:], round_to_nearest(weight, 4, block).integers[8:])


def test_how_many_channels_are_taken_at_once_changes_little(
    block: int, monkeypatch: pytest.MonkeyPatch, inputs: NDArray[np.float32], weight: NDArray[np.float32]
):
    feedback = ErrorFeedback(inputs.T @ inputs)
    errors = []
    for at_once in (1, 16, 64):
        monkeypatch.setattr(module, "_CHANNELS_AT_ONCE", at_once)
        errors.append(np.linalg.norm(inputs @ (gptq(weight, feedback, 4, block).dequantized() - weight)))
    assert max(errors) < 1.2 * min(errors)
