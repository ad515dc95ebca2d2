import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsecc.quantization.block_scales import LARGEST_WEIGHT_BECOMES, block_scales
from sparsecc.quantization.quantized_weight import LARGEST_INTEGER, SMALLEST_INTEGER
from sparsecc.quantization.round_to_nearest import round_to_nearest

SHAPES = st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 33, 63, 64, 65, 130, 257]))


def random_weight(shape: tuple[int, int], seed: int, spread: float = 1.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape))).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32), bits=st.sampled_from([4, 8]), block=st.sampled_from([32, 64]))
def test_every_weight_is_rounded_to_the_nearest_integer_of_its_block(
    shape: tuple[int, int], seed: int, bits: int, block: int
):
    weight = random_weight(shape, seed)
    quantized = round_to_nearest(weight, bits, block)
    columns = np.arange(shape[1]) // block
    scales = quantized.scales.astype(np.float64)[:, columns]
    expected = np.clip(np.rint(weight / scales), SMALLEST_INTEGER[bits], LARGEST_INTEGER[bits])
    near_a_tie = np.abs(np.abs(weight / scales - np.floor(weight / scales)) - 0.5) < 1e-4
    assert quantized.scales.shape == (shape[0], -(-shape[1] // block))
    np.testing.assert_array_equal(quantized.integers[~near_a_tie], expected[~near_a_tie])
    np.testing.assert_allclose(quantized.dequantized(), quantized.integers * scales, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32))
def test_the_scale_of_a_block_is_the_best_of_those_tried(shape: tuple[int, int], seed: int):
    weight = random_weight(shape, seed, spread=0.5)
    chosen = block_scales(weight, 4, 32)
    for row, block in np.ndindex(chosen.shape):
        entries = weight[row, block * 32 : (block + 1) * 32].astype(np.float64)

        def error(scale: float, entries: NDArray[np.float64] = entries) -> float:
            return float(np.square(np.clip(np.rint(entries / scale), -8, 7) * scale - entries).sum())

        largest = entries[np.abs(entries).argmax()]
        tried = (largest / LARGEST_WEIGHT_BECOMES[4]).astype(np.float16).astype(np.float64)
        assert error(float(chosen[row, block])) <= min(map(error, tried)) * (1 + 1e-4) + 1e-12


def test_int4_loses_less_than_with_the_largest_weight_at_the_end_of_the_range():
    weight = random_weight((64, 256), 0, spread=0.0)
    scales = np.repeat(np.abs(weight).reshape(64, -1, 32).max(axis=2) / 7, 32, axis=1)
    plain = np.linalg.norm(np.rint(weight / scales) * scales - weight)
    assert np.linalg.norm(round_to_nearest(weight, 4, 32).dequantized() - weight) < 0.9 * plain


def test_int8_is_exact_to_half_a_step():
    weight = random_weight((32, 320), 1)
    quantized = round_to_nearest(weight, 8, 64)
    step = np.repeat(np.abs(quantized.scales.astype(np.float32)), 64, axis=1)
    assert np.all(np.abs(quantized.dequantized() - weight) <= 0.57 * step)  # the scale is rounded to float16


def test_blocks_of_zeros_and_of_what_float16_cannot_hold():
    weight = np.zeros((4, 32), np.float32)
    weight[1] = 1e-12
    weight[2] = 1e9
    weight[3, 0] = -3.0
    for bits in (4, 8):
        dequantized = round_to_nearest(weight, bits, 64).dequantized()
        assert np.isfinite(dequantized).all()
        np.testing.assert_array_equal(dequantized[:2], 0)
        assert (dequantized[2] > 0).all()
        np.testing.assert_allclose(dequantized[3], weight[3], rtol=1e-3)
