"""Natural sparsity, distributions of magnitudes and important neurons: all that is counted in collected activations."""

from pathlib import Path

import h5py
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.analysis.collection import Activations, Provenance, collect, open_activations
from sparsecc.analysis.important_neurons import important_neurons, is_important, read_frequencies, write_frequencies
from sparsecc.analysis.magnitude_distribution import (
    SHARES,
    SPARSITIES,
    finite_magnitudes,
    magnitude_distribution,
    magnitude_quantiles,
)
from sparsecc.analysis.natural_sparsity import BOUNDS, natural_sparsity
from sparsecc.errors import SparseccError
from sparsecc.text import TokenWindows

from .decoders import GATED, NEURONS, RELU, random_weights, write_decoder

ANY_FLOATS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 20), st.integers(1, 6)), elements=st.floats(width=32, allow_subnormal=False)
)


@pytest.fixture
def activations_of(tmp_path: Path):
    """A function from a decoder to its opened activations on 200 tokens."""
    opened = []

    def collected(text: str, **changed: np.ndarray) -> Activations:
        decoder = write_decoder(tmp_path / "decoder", text, {**random_weights(), **changed})
        windows = TokenWindows(np.random.default_rng(0).integers(0, 8192, (4, 50)), "0" * 64)
        context = open_activations(collect(decoder, windows, tmp_path, sampled_tokens=200))
        opened.append(context)
        return context.__enter__()

    yield collected
    for context in opened:
        context.__exit__(None, None, None)


@settings(deadline=None)
@given(values=ANY_FLOATS, share=st.floats(0, 1))
def test_quantiles_are_those_of_the_finite_magnitudes(values: np.ndarray, share: float):
    magnitudes = np.abs(values[np.isfinite(values)]).astype(np.float64)
    (quantile,) = magnitude_quantiles(values, [share])
    if not magnitudes.size:
        assert np.isnan(quantile)
        return
    below, above = (np.quantile(magnitudes, share, method=method) for method in ("lower", "higher"))
    assert below * (1 - 1e-6) <= quantile <= above * (1 + 1e-6)
    assert finite_magnitudes(values).size == magnitudes.size


@pytest.mark.parametrize("bound", [0.1, 0.01, 1 / 3])
def test_bounds_and_thresholds_are_not_rounded(bound: float, tmp_path: Path):
    """The next float32 to 0.1 is larger than 0.1, the next to 1/3 larger than that, the next to 0.01 smaller."""
    near = np.float32(bound)
    assert is_important(np.array([[near]]), bound) == (float(near) > bound)
    with h5py.File(tmp_path / "activations.h5", "w") as file:
        file["layers/0/up"] = np.array([[near]])
        activations = Activations(Provenance("", "", 1, 1, 1, 0, "{}"), [(0, "up")], file)
        shares = {row.bound: row.share for row in natural_sparsity(activations)}
    for told, share in shares.items():
        assert share == (float(near) <= told)


@settings(deadline=None)
@given(values=ANY_FLOATS, threshold=st.floats(0, width=32) | st.just(float("nan")))
def test_what_exceeds_the_threshold_is_important(values: np.ndarray, threshold: float):
    expected = [[not np.isnan(value) and abs(value) > threshold for value in row] for row in values.tolist()]
    np.testing.assert_array_equal(is_important(values, threshold), expected)


def test_a_gated_network_has_no_zeros_and_one_with_relu_has_half(activations_of):
    rows = {(row.component, row.bound): row for row in natural_sparsity(activations_of(GATED))}
    assert rows["down_input", 0.0].share == 0
    shares = [rows["down_input", bound].share for bound in BOUNDS]
    assert shares == sorted(shares)


def test_relu_has_as_many_zeros_as_negative_inputs(activations_of):
    activations = activations_of(RELU)
    rows = {(row.component, row.bound): row for row in natural_sparsity(activations)}
    negative = np.count_nonzero(activations.of(0, "pre_activation") <= 0) / (200 * NEURONS)
    assert rows["down_input", 0.0].share == negative
    assert 0.3 < negative < 0.7
    assert rows["pre_activation", 0.0].share == 0


def test_distributions_and_thresholds_are_the_quantiles_of_what_was_collected(activations_of):
    activations = activations_of(GATED)
    distribution, thresholds = magnitude_distribution(activations)
    assert len(distribution) == len(SHARES) * 5
    assert len(thresholds) == len(SPARSITIES) * 5
    points = [(point.component, point.share, point.magnitude) for point in distribution]
    points += [(point.component, point.sparsity, point.threshold) for point in thresholds]
    for _, component in activations.components:
        shares, magnitudes = np.array([point[1:] for point in points if point[0] == component]).T
        expected = np.quantile(np.abs(activations.of(0, component)).astype(np.float64), shares)
        np.testing.assert_allclose(magnitudes, expected, rtol=1e-5)


def test_frequencies_hot_and_idle_neurons(activations_of, tmp_path: Path):
    weights = random_weights()["w_up"].copy()
    weights[:, 3], weights[:, 5] = 0, 100
    activations = activations_of(RELU, w_up=weights)
    (*_, found), frequencies = important_neurons(activations, 0.5)
    values = np.abs(activations.of(0, "down_input").astype(np.float64))
    assert found.threshold == pytest.approx(np.quantile(values, 0.5), rel=1e-5)
    important = values > found.threshold
    assert found.important_share == pytest.approx(important.mean())
    counts = np.sort(important.sum(axis=0))[::-1]
    assert found.never_important >= 1
    assert found.never_important == np.count_nonzero(counts == 0)
    assert counts[: found.hot_neurons].sum() >= 0.8 * counts.sum() > counts[: found.hot_neurons - 1].sum()
    write_frequencies(tmp_path / "frequency.h5", frequencies)
    with h5py.File(tmp_path / "frequency.h5", "r") as file:
        np.testing.assert_allclose(file["layers/0/down_input"][...], important.mean(axis=0), rtol=1e-6)
    found_again = read_frequencies(tmp_path / "frequency.h5")
    assert found_again.keys() == frequencies.keys()
    np.testing.assert_array_equal(found_again[0, "down_input"], frequencies[0, "down_input"])


@pytest.mark.parametrize("content", [None, b"text"], ids=["missing", "something else"])
def test_frequencies_that_cannot_be_read_are_told_in_one_line(tmp_path: Path, content: bytes | None):
    path = tmp_path / "frequency.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SparseccError, match=r"no readable frequencies .*; run `sparsecc analyze` again") as raised:
        read_frequencies(path)
    assert "\n" not in str(raised.value)


def test_a_layer_that_is_all_zero(activations_of):
    activations = activations_of(GATED, w_up=np.zeros((8, NEURONS), np.float32))
    rows = {(row.component, row.bound): row.share for row in natural_sparsity(activations)}
    assert rows["down_input", 0.0] == rows["up", 0.0] == 1
    *_, found = important_neurons(activations, 0.5)[0]
    assert (found.threshold, found.important_share, found.hot_neurons) == (0, 0, 0)
    assert found.never_important == found.neurons == NEURONS
    distribution, _ = magnitude_distribution(activations)
    assert {point.magnitude for point in distribution if point.component == "up"} == {0}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted_and_left_out(activations_of, poison: float):
    weights = random_weights()["w_up"].copy()
    weights[0, 2] = poison
    activations = activations_of(GATED, w_up=weights)
    rows = {(row.component, row.bound): row for row in natural_sparsity(activations)}
    assert rows["gate_activation", 0.0].not_finite == 0
    assert rows["up", 0.0].not_finite == 200
    rest = np.abs(np.delete(activations.of(0, "up"), 2, axis=1))
    assert rows["up", 0.1].share == pytest.approx((rest <= 0.1).mean())
    up = next(entry for entry in important_neurons(activations, 0.5)[0] if entry.component == "up")
    assert up.threshold == pytest.approx(np.quantile(rest, 0.5), rel=1e-5)


def test_nothing_finite_gives_nan(activations_of):
    activations = activations_of(GATED, w_up=np.full((8, NEURONS), np.nan, np.float32))
    rows = {(row.component, row.bound): row for row in natural_sparsity(activations)}
    assert np.isnan(rows["up", 0.0].share)
    up = next(entry for entry in important_neurons(activations, 0.5)[0] if entry.component == "up")
    assert np.isnan(up.threshold)
    assert (up.important_share, up.hot_neurons, up.never_important) == (0, 0, NEURONS)
    _, thresholds = magnitude_distribution(activations)
    assert all(np.isnan(entry.threshold) for entry in thresholds if entry.component == "up")
