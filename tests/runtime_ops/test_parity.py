"""Each operator against float64 NumPy, stock onnxruntime and the reference evaluator running its function body."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .one_op import LIBRARY, REFERENCE, STOCK, Arrays, cached_session, run

PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALL_WAYS = (LIBRARY, STOCK, REFERENCE)
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38]


@pytest.fixture(params=["fastest", "portable"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test once with each set of kernels."""
    monkeypatch.setenv("SPARSECC_KERNELS", request.param)
    cached_session.cache_clear()
    yield
    cached_session.cache_clear()


def sizes(largest: int) -> st.SearchStrategy[int]:
    """Odd sizes and those around the width of vectors and cache lines."""
    return st.integers(1, largest) | st.sampled_from([n for n in (7, 8, 9, 15, 16, 17, 64, 128) if n <= largest])


@st.composite
def hidden_states(draw: st.DrawFn, special: bool = True) -> np.ndarray:
    """A tensor [..., K] of rank 1 to 4, with some zeros and some of the values that need care."""
    shape = (*draw(st.lists(st.integers(1, 4), max_size=3)), draw(sizes(70)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_normal(shape).astype(np.float32)
    x[rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))] = 0
    if special:
        chosen = rng.random(shape) < 0.1
        x[chosen] = rng.choice(np.array(SPECIAL, np.float32), size=int(chosen.sum()))
    return x


@st.composite
def products(draw: st.DrawFn) -> Arrays:
    """Inputs of SparseMatMul: any sizes, a random selection of channels, with or without a bias."""
    channels, columns = draw(sizes(150)), draw(sizes(150))
    leading = draw(st.sampled_from([(), (1,), (1, 1), (2,), (16,), (17,), (64,), (5, 19), (2, 1, 9), (0,), (2, 0)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    fraction = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    indices = np.flatnonzero(rng.random(channels) < fraction)
    feeds: Arrays = {
        "values": rng.standard_normal((*leading, len(indices))).astype(np.float32),
        "indices": indices,
        "W": rng.standard_normal((channels, columns)).astype(np.float32),
    }
    if draw(st.booleans()):
        feeds["bias"] = rng.standard_normal(columns).astype(np.float32)
    return feeds


def exact_product(feeds: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64, and the natural scale of its rounding errors: the sum of absolute terms."""
    values, rows = feeds["values"].astype(np.float64), feeds["W"][feeds["indices"]].astype(np.float64)
    bias = feeds.get("bias", np.zeros(feeds["W"].shape[1])).astype(np.float64)
    return values @ rows + bias, np.abs(values) @ np.abs(rows) + np.abs(bias)


def assert_product(product: np.ndarray, feeds: Arrays) -> None:
    expected, scale = exact_product(feeds)
    assert product.shape == expected.shape
    assert product.dtype == np.float32
    assert np.all(np.abs(product - expected) <= 1e-5 * scale)


@PROPERTY
@given(hidden_states(), st.sampled_from([0.0, 0.5, 1.0, 99.0, np.inf, np.nan]), st.booleans(), st.integers(-1, 9))
def test_threshold(x: np.ndarray, threshold: float, by_channel: bool, max_sparse_rows: int) -> None:
    t = np.full(x.shape[-1] if by_channel else 1, threshold, np.float32)
    if by_channel and np.isfinite(threshold):
        t *= np.random.default_rng(0).random(t.shape).astype(np.float32)
    is_dense = 0 < max_sparse_rows < x.size // x.shape[-1]
    expected = x if is_dense else np.where(np.abs(x) >= t, x, np.float32(0))
    for how in ALL_WAYS:
        (y,) = run("Threshold", {"X": x, "T": t}, how, max_sparse_rows=max_sparse_rows)
        np.testing.assert_array_equal(y, expected, how)


@PROPERTY
@given(hidden_states())
def test_gather_active(y: np.ndarray) -> None:
    flat = y.reshape(-1, y.shape[-1])
    expected = np.flatnonzero((flat != 0).any(axis=0))
    for how in ALL_WAYS:
        values, indices = run("GatherActive", {"Y": y}, how)
        assert indices.dtype == np.int64
        np.testing.assert_array_equal(indices, expected, how)
        np.testing.assert_array_equal(values, y[..., expected], how)


@pytest.mark.usefixtures("kernels")
@PROPERTY
@given(feeds=products(), threads=st.sampled_from([1, 2]))
def test_sparse_matmul(feeds: Arrays, threads: int) -> None:
    assert_product(run("SparseMatMul", feeds, LIBRARY, threads)[0], feeds)


@PROPERTY
@given(products())
def test_sparse_matmul_is_its_function(feeds: Arrays) -> None:
    expected = run("SparseMatMul", feeds, STOCK)[0]
    product = run("SparseMatMul", feeds)[0]
    assert product.shape == expected.shape
    _, scale = exact_product(feeds)
    assert np.all(np.abs(product - expected) <= 1e-5 * scale)
    if feeds["values"].size > 0:  # the reference evaluator cannot flatten an empty tensor
        (reference,) = run("SparseMatMul", feeds, REFERENCE)
        assert np.all(np.abs(reference - expected) <= 1e-5 * scale)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64, 100])
@pytest.mark.parametrize("active", [0, 1, 37, 700, 1000, 1001])
def test_sparse_matmul_row_counts(rows: int, active: int) -> None:
    rng = np.random.default_rng(rows)
    feeds: Arrays = {
        "values": rng.standard_normal((rows, active)).astype(np.float32),
        "indices": np.sort(rng.permutation(1001)[:active]),
        "W": rng.standard_normal((1001, 533)).astype(np.float32),
    }
    one, two = (run("SparseMatMul", feeds, LIBRARY, threads)[0] for threads in (1, 2))
    assert_product(one, feeds)
    if rows <= 50:  # beyond, the product may be onnxruntime's own
        np.testing.assert_array_equal(one, two)
    assert_product(two, feeds)


@pytest.mark.parametrize("rows", [1, 2, 17, 100])
def test_indices_in_any_order(rows: int) -> None:
    rng = np.random.default_rng(0)
    feeds: Arrays = {
        "values": rng.standard_normal((rows, 5)).astype(np.float32),
        "indices": np.array([3, 0, 3, 2, 1]),
        "W": rng.standard_normal((5, 9)).astype(np.float32),
    }
    assert_product(run("SparseMatMul", feeds)[0], feeds)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rows", [1, 2, 17, 100])
@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_inactive_weights_have_no_effect(rows: int, weight: float) -> None:
    """Not even where they are not numbers: 0 times infinity would be NaN."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 40)).astype(np.float32)
    weights[5] = weight
    feeds: Arrays = {
        "values": rng.standard_normal((rows, 7)).astype(np.float32),
        "indices": np.array([0, 1, 2, 3, 4, 6, 7]),
        "W": weights,
        "bias": rng.standard_normal(40).astype(np.float32),
    }
    assert_product(run("SparseMatMul", feeds)[0], feeds)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rows", [1, 3, 17, 200])
@pytest.mark.parametrize("columns", [1, 8, 23])
def test_values_that_are_not_finite(rows: int, columns: int) -> None:
    """Each gives what IEEE arithmetic gives, and only in its own row and column."""
    rng = np.random.default_rng(0)
    values = np.abs(rng.standard_normal((rows, 12))).astype(np.float32)
    weights = np.abs(rng.standard_normal((16, columns))).astype(np.float32)
    values[0, 3], weights[10, 0] = np.inf, np.nan
    feeds: Arrays = {"values": values, "indices": np.arange(1, 13), "W": weights}
    for how in ALL_WAYS:
        (product,) = run("SparseMatMul", feeds, how)
        assert np.isnan(product[:, 0]).all(), how
        assert np.isposinf(product[0, 1:]).all(), how
        assert np.isfinite(product[1:, 1:]).all(), how


def test_no_rows() -> None:
    """A prompt of no tokens: nothing is active, and the product is empty."""
    x = np.zeros((2, 0, 6), np.float32)
    (y,) = run("Threshold", {"X": x, "T": np.ones(1, np.float32)})
    values, indices = run("GatherActive", {"Y": y})
    (product,) = run("SparseMatMul", {"values": values, "indices": indices, "W": np.ones((6, 4), np.float32)})
    assert (y.shape, values.shape, indices.shape, product.shape) == ((2, 0, 6), (2, 0, 0), (0,), (2, 0, 4))


def test_attribute_may_be_absent() -> None:
    x = np.array([[0.1, 2.0], [3.0, 0.2]], np.float32)
    (y,) = run("Threshold", {"X": x, "T": np.ones(1, np.float32)})
    np.testing.assert_array_equal(y, [[0, 2], [3, 0]])
