"""Products with values, scales and weights at the ends of their ranges, and beyond: infinite, or not a number."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .one_op import LIBRARY, STOCK
from .sparse_product import (
    CHANNELS_OF_A_TILE,
    LARGEST_MULTIPLIER,
    QUANTIZED,
    ROWS_OF_A_GROUP,
    WEIGHT_TYPES,
    SparseProduct,
    random_product,
    random_weights,
)

PROPERTY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPECIAL_VALUES = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e30, -1e30, 1e-38, 1e-30], np.float32)
SPECIAL_WEIGHTS = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 65504, 6e-8, -6e-5], np.float32)  # of float16 as well

any_weight_type = pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
quantized_weight_type = pytest.mark.parametrize("weight_type", QUANTIZED)


def scatter(rng: np.random.Generator, array: np.ndarray, chosen: list[float], count: int) -> np.ndarray:
    """A copy with some of the chosen numbers in `count` random places."""
    copy = array.copy()
    if chosen and copy.size > 0:
        copy.flat[rng.integers(0, copy.size, count)] = np.array(rng.choice(chosen, count), copy.dtype)
    return copy


def special(numbers: np.ndarray) -> st.SearchStrategy[list[float]]:
    """Some of the numbers, so that there are also products without a NaN."""
    return st.lists(st.sampled_from(numbers.tolist()), max_size=3)


@quantized_weight_type
def test_an_outlier_changes_places_with_a_row_of_another_group(weight_type: str, kernels: str):
    """That row shares its unit with a larger value then, whose own weights are 0."""
    rng = np.random.default_rng(0)
    product = random_product(rng, weight_type, leading=(1,), channels=40, columns=64, active=34)
    product.weights[product.indices[32:]] = 0
    product.values[:] = 0.15
    product.values[0, 32:] = 6, 100
    product.check(product.run(), kernels)


@PROPERTY
@given(
    seed=st.integers(0, 2**32),
    weight_type=st.sampled_from(list(WEIGHT_TYPES)),
    sizes=st.tuples(st.sampled_from([1, 2, 3, 6, 7, 70]), st.integers(1, 70), st.sampled_from([1, 23, 64, 100, 320])),
    block=st.sampled_from([16, 32, 48, 64]),
    values=special(SPECIAL_VALUES),
    weights=special(SPECIAL_WEIGHTS),
)
def test_special_numbers(
    *,
    seed: int,
    weight_type: str,
    sizes: tuple[int, int, int],
    block: int,
    values: list[float],
    weights: list[float],
    kernels: str,
) -> None:
    """Each gives what IEEE arithmetic gives, in its own row of values and in the columns of its weight or block."""
    rng = np.random.default_rng(seed)
    rows, active, columns = sizes
    product = random_product(
        rng, weight_type, leading=(rows,), channels=80, columns=columns, active=active, block=block
    )
    product = replace(product, values=scatter(rng, product.values, values, 3))
    if product.scales is None:
        product = replace(product, weights=scatter(rng, product.weights, weights, 5))
    else:
        product = replace(product, scales=scatter(rng, product.scales, weights, 5))
    one, two = product.run(threads=1), product.run(threads=2)
    np.testing.assert_array_equal(one.view(np.uint32), two.view(np.uint32))
    product.check(one, kernels)


@any_weight_type
@pytest.mark.parametrize("rows", [1, 2, 7, 200])
def test_a_number_that_is_not_finite_stays_where_it_is(weight_type: str, rows: int, kernels: str) -> None:
    """An infinite value makes its own row infinite, a NaN in the weights its own column or block."""
    rng = np.random.default_rng(0)
    weights, scales = random_weights(rng, weight_type, 16, 96)
    positive = np.maximum(np.abs(weights.astype(np.float32)), 1).clip(max=7).astype(weights.dtype)
    values = np.abs(rng.standard_normal((rows, 12))).astype(np.float32)
    values[0, 3] = np.inf
    if scales is None:
        positive[10, 32:64] = np.nan
    else:
        scales = np.abs(scales) + np.float16(0.01)
        scales[10, 1] = np.nan
    product = SparseProduct(weight_type, values, np.arange(1, 13), positive, scales, 32)
    for how in (LIBRARY, STOCK):
        outputs = product.run(how)
        product.check(outputs, kernels)
        assert np.isnan(outputs[:, 32:64]).all(), how
        finite_columns = np.delete(outputs, np.arange(32, 64), axis=1)
        assert np.isposinf(finite_columns[0]).all(), how
        assert np.isfinite(finite_columns[1:]).all(), how


@any_weight_type
@pytest.mark.parametrize("rows", [1, 2, 7, 200])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_inactive_weights_have_no_effect(weight_type: str, rows: int, number: float, kernels: str) -> None:
    """Not even where they are not numbers: 0 times infinity would be NaN."""
    rng = np.random.default_rng(0)
    product = random_product(rng, weight_type, leading=(rows,), channels=90, columns=160, active=45)
    inactive = np.setdiff1d(np.arange(90), product.indices)
    (product.weights if product.scales is None else product.scales)[inactive] = number
    outputs = product.run()
    assert np.isfinite(outputs).all()
    product.check(outputs, kernels)


@quantized_weight_type
def test_values_of_zero_times_an_infinite_scale(weight_type: str, kernels: str) -> None:
    rng = np.random.default_rng(0)
    for rows in (1, 6, 7):
        product = random_product(rng, weight_type, leading=(rows,), channels=40, columns=128, active=40)
        assert product.scales is not None
        product.scales[5, 1] = np.inf
        product = replace(product, values=np.zeros_like(product.values))
        outputs = product.run()
        product.check(outputs, kernels)
        assert np.isnan(outputs[:, 32:64]).all()


@quantized_weight_type
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("value", [1e-38, 1e-20, 1e-3, 1.0, 1e4, 1e20])
def test_values_of_one_magnitude(weight_type: str, value: float, rows: int, kernels: str) -> None:
    """Large and small ones are as exact, with scales from the smallest float16 to the largest."""
    rng = np.random.default_rng(0)
    for scale in (6e-8, 6e-5, 1.0, 65504.0):
        product = random_product(rng, weight_type, leading=(rows,), channels=90, columns=256, active=70, has_bias=False)
        assert product.scales is not None
        scales = (scale * np.sign(product.scales)).astype(np.float16)
        product = replace(product, values=(value * product.values).astype(np.float32), scales=scales)
        product.check(product.run(), kernels)


@quantized_weight_type
def test_a_large_number_is_felt_in_its_own_group_only(weight_type: str, kernels: str) -> None:
    """The unit of rounding is that of 32 active channels in a block, and a large value has one of its own."""
    rng = np.random.default_rng(0)
    product = random_product(rng, weight_type, leading=(1,), channels=288, columns=1024, active=288)
    assert product.scales is not None
    product.values[0, 150] = 1e6
    product.weights[150] = 0
    product.scales[200, 1] = 1e4
    product.weights[192:225, 32:64] = 0
    assert np.all(product.tolerance(kernels) < 0.1 * product.sum_of_absolute_terms())
    product.check(product.run(), kernels)


@quantized_weight_type
@pytest.mark.parametrize("large", [1, 2, 5])
def test_large_values_among_many_rows(weight_type: str, large: int, kernels: str) -> None:
    """As the first token's massive activations: what rounding costs stays small beside their rows' outputs."""
    rng = np.random.default_rng(0)
    product = random_product(rng, weight_type, leading=(16,), channels=600, columns=192, active=600, has_bias=False)
    product.values[2, 150 : 150 + large] = 1e5
    outputs = product.run()
    error = np.sqrt(np.square(outputs - product.exact()).mean(axis=1))
    assert np.all(error < 2e-4 * np.sqrt(np.square(product.exact()).mean(axis=1)))
    product.check(outputs, kernels)


@quantized_weight_type
@pytest.mark.parametrize(("rows", "active"), [(6, 1), (6, 31), (6, 32), (6, 33), (6, 64), (6, 96), (8, 255), (8, 256)])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_extreme_weights(weight_type: str, rows: int, active: int, block: int) -> None:
    """All weights the lowest or the highest, all multipliers the largest and of one sign: the integers do not overflow.

    Values and scales are many different ones, but equal over the channels. So every multiplier is the largest, if
    rounding does not make one larger, and the sum of integers is as far from 0 as it can be. The product would then be
    exact but for the rounding of floats, and an overflow would change it by more than its own size.
    """
    rng = np.random.default_rng(active)
    low, high = QUANTIZED[weight_type]
    bits = 16 if weight_type == "int4" else 32
    assert ROWS_OF_A_GROUP * -low * LARGEST_MULTIPLIER[weight_type] < 2 ** (bits - 1)
    assert CHANNELS_OF_A_TILE * 128 * 32767 < 2**31
    columns = 2048
    for weight in (low, high):
        for sign in (-1, 1):
            scales = np.tile(rng.uniform(0.01, 60000, columns // block).astype(np.float16), (active, 1))
            values = np.repeat(rng.uniform(0.1, 1000, (rows, 1)) * sign, active, axis=1).astype(np.float32)
            weights = np.full((active, columns), weight, WEIGHT_TYPES[weight_type])
            product = SparseProduct(weight_type, values, np.arange(active), weights, scales, block)
            np.testing.assert_allclose(product.run(), product.exact(), rtol=5e-6)
            signs = rng.choice([-1, 1], active).astype(np.float32)
            mixed = replace(product, values=values * signs)
            error = np.abs(mixed.run() - mixed.exact())
            assert np.all(error <= 5e-6 * mixed.sum_of_absolute_terms())
