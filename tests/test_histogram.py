import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from sparsecc import histogram

TOLERANCE = 1e-3
SMALLEST, LARGEST = 2.0**-40, 2.0**24
SHARES = [0.05, 0.25, 0.4, 0.5, 0.65, 0.8, 0.95, 0.999]
SAMPLES = 200_000

DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=SAMPLES),
    "laplace": lambda rng: rng.laplace(size=SAMPLES),
    "lognormal": lambda rng: rng.lognormal(sigma=2, size=SAMPLES),
    "uniform": lambda rng: rng.uniform(size=SAMPLES),
    "cauchy": lambda rng: rng.standard_cauchy(size=SAMPLES),
    "many zeros": lambda rng: rng.normal(size=SAMPLES) * (rng.random(SAMPLES) < 0.97),
    "few values": lambda rng: rng.integers(1, 5, size=SAMPLES),
    "tiny": lambda rng: rng.normal(scale=1e-9, size=SAMPLES),
    "huge": lambda rng: rng.normal(scale=1e6, size=SAMPLES),
    "two scales": lambda rng: rng.normal(size=SAMPLES) * rng.choice([1e-5, 1e3], size=SAMPLES),
}

MAGNITUDES = st_numpy.arrays(
    np.float32,
    st.integers(1, 50),
    elements=st.just(0.0) | st.floats(2.0**-30, 2.0**20, width=32) | st.floats(0.5, 2, width=32),
)


def sample(name: str) -> np.ndarray:
    return np.abs(DISTRIBUTIONS[name](np.random.default_rng(0))).astype(np.float32)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("share", SHARES)
def test_a_quantile_is_the_exact_one_to_a_thousandth(name: str, share: float):
    magnitudes = sample(name)
    expected = np.quantile(magnitudes.astype(np.float64), share)
    actual = histogram.quantile(histogram.bin_counts(magnitudes), share)
    assert actual == pytest.approx(expected, rel=TOLERANCE, abs=SMALLEST)


@settings(max_examples=200, deadline=None)
@given(magnitudes=MAGNITUDES, share=st.floats(0, 1))
def test_a_quantile_of_few_magnitudes_is_one_of_them(magnitudes: np.ndarray, share: float):
    expected = np.quantile(magnitudes.astype(np.float64), share, method="lower")
    actual = histogram.quantile(histogram.bin_counts(magnitudes), share)
    assert actual == pytest.approx(expected, rel=TOLERANCE, abs=SMALLEST)


@settings(max_examples=100, deadline=None)
@given(magnitudes=MAGNITUDES, shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_quantiles_grow_with_the_share(magnitudes: np.ndarray, shares: tuple[float, float]):
    counts = histogram.bin_counts(magnitudes)
    assert histogram.quantile(counts, min(shares)) <= histogram.quantile(counts, max(shares))


@pytest.mark.parametrize("name", sorted(set(DISTRIBUTIONS) - {"many zeros"}))
@pytest.mark.parametrize("share", SHARES)
def test_the_share_below_a_quantile_is_its_share(name: str, share: float):
    counts = histogram.bin_counts(sample(name))
    assert histogram.share_below(counts, histogram.quantile(counts, share)) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("percentile", [1, 30, 50, 98, 99.9])
def test_a_share_is_the_exact_one_but_for_neighbours_of_the_magnitude(name: str, percentile: float):
    magnitudes = sample(name)
    magnitude = float(np.percentile(magnitudes, percentile))
    share = histogram.share_below(histogram.bin_counts(magnitudes), magnitude)
    assert np.mean(magnitudes < magnitude * (1 - TOLERANCE)) <= share + 1e-9
    assert share - 1e-9 <= np.mean(magnitudes <= magnitude * (1 + TOLERANCE))


def test_nothing_is_below_zero_and_all_zeros_are_below_the_smallest_threshold():
    counts = histogram.bin_counts(np.array([0, 0, 0, 5], np.float32))
    assert histogram.share_below(counts, 0.0) == 0
    assert histogram.share_below(counts, histogram.quantile(counts, 0.5)) == 0.75


@settings(max_examples=100, deadline=None)
@given(x=st_numpy.arrays(np.float32, st_numpy.array_shapes(max_dims=4), elements=st.floats(0, width=32)))
def test_every_magnitude_is_counted_once_whatever_the_shape(x: np.ndarray):
    counts = histogram.bin_counts(x)
    assert counts.shape == (histogram.BINS,)
    assert counts.dtype == np.int64
    assert counts.sum() == x.size
    np.testing.assert_array_equal(counts, histogram.bin_counts(x.reshape(-1)))
    np.testing.assert_array_equal(counts, histogram.bin_counts(np.asfortranarray(x)))


def test_a_view_with_strides_is_counted_like_its_copy():
    x = sample("normal").reshape(400, -1)
    np.testing.assert_array_equal(histogram.bin_counts(x[::3, ::7]), histogram.bin_counts(x[::3, ::7].copy()))


def test_counts_of_parts_add_up():
    x = sample("laplace")
    np.testing.assert_array_equal(
        histogram.bin_counts(x), histogram.bin_counts(x[:1000]) + histogram.bin_counts(x[1000:])
    )


def test_no_magnitudes_count_nothing_and_have_no_quantile():
    counts = histogram.bin_counts(np.zeros((0, 4), np.float32))
    assert counts.sum() == 0
    with pytest.raises(ValueError, match="empty"):
        histogram.quantile(counts, 0.5)


@pytest.mark.parametrize("magnitude", [0, 1e-45, 1e-20, LARGEST, 3e38, np.inf])
def test_magnitudes_beyond_the_range_are_kept_at_its_ends(magnitude: float):
    counts = histogram.bin_counts(np.full(3, magnitude, np.float32))
    quantile = histogram.quantile(counts, 0.5)
    assert quantile < SMALLEST if magnitude < SMALLEST else LARGEST <= quantile < LARGEST * (1 + TOLERANCE)


def test_neighbouring_bins_differ_by_less_than_a_thousandth():
    x = np.geomspace(SMALLEST, LARGEST * 0.999, 50_000).astype(np.float32)
    quantiles = [histogram.quantile(histogram.bin_counts(x[i : i + 1]), 0.5) for i in range(0, len(x), 97)]
    np.testing.assert_allclose(quantiles, x[::97], rtol=TOLERANCE)
