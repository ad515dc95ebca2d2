"""What selects channels against NumPy, stock onnxruntime and the reference evaluator running its function body."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .one_op import LIBRARY, REFERENCE, STOCK, run

PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALL_WAYS = (LIBRARY, STOCK, REFERENCE)
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38]


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


def largest_of_each_row(x: np.ndarray, k: int) -> np.ndarray:
    """By sorting: the largest magnitudes first, of equal ones the first channels; NaN is 0."""
    rows = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf).reshape(-1, x.shape[-1])
    kept = np.argsort(-np.abs(rows), axis=1, kind="stable")[:, :k]
    expected = np.zeros_like(rows)
    np.put_along_axis(expected, kept, np.take_along_axis(rows, kept, axis=1), axis=1)
    return expected.reshape(x.shape)


@PROPERTY
@given(hidden_states(), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 2.0]), st.booleans(), st.integers(-1, 9))
def test_keep_largest(x: np.ndarray, share: float, has_ties: bool, max_sparse_rows: int) -> None:
    x = np.round(x) if has_ties else x
    k = int(share * x.shape[-1])
    is_dense = 0 < max_sparse_rows < x.size // x.shape[-1]
    expected = x if is_dense else largest_of_each_row(x, k)
    for how in ALL_WAYS:
        (y,) = run("KeepLargest", {"X": x}, how, k=k, max_sparse_rows=max_sparse_rows)
        np.testing.assert_array_equal(y, expected, how)


def test_keep_largest_on_several_threads() -> None:
    x = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    (y,) = run("KeepLargest", {"X": x}, k=1000)
    np.testing.assert_array_equal(y, largest_of_each_row(x, 1000))


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


@PROPERTY
@given(hidden_states(), st.sampled_from([0.1, 1.0, 30.0, 1000.0]))
def test_swiglu(x: np.ndarray, magnitude: float) -> None:
    """Against float64: NaN for a gate of minus infinity, where 0 is multiplied by it."""
    up = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    with np.errstate(all="ignore"):
        gate = x * np.float32(magnitude)
        wide = gate.astype(np.float64)
        expected = (wide / (1 + np.exp(-wide)) * up).astype(np.float32)
    (y,) = run("SwiGLU", {"X": np.concatenate([gate, up], axis=-1)})
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-34)


@PROPERTY
@given(hidden_states(special=False))
def test_swiglu_as_defined(x: np.ndarray) -> None:
    both = np.concatenate([x, np.flip(x)], axis=-1)
    (y,) = run("SwiGLU", {"X": both})
    for how in (STOCK, REFERENCE):
        np.testing.assert_allclose(y, run("SwiGLU", {"X": both}, how)[0], 1e-5, 1e-6, err_msg=how)


def test_swiglu_on_several_threads() -> None:
    x = np.random.default_rng(0).standard_normal((64, 4098)).astype(np.float32)
    gate, up = np.split(x.astype(np.float64), 2, axis=-1)
    (y,) = run("SwiGLU", {"X": x})
    np.testing.assert_allclose(y, gate / (1 + np.exp(-gate)) * up, 1e-6, 1e-30)


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
