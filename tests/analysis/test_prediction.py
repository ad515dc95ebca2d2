"""Predictors of active sets, on activations whose dependence on an earlier state is known."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparsecc.analysis.collection import Activations, Provenance
from sparsecc.analysis.important_neurons import important_neurons
from sparsecc.analysis.prediction import f1, highest, predict_active_sets, recall_and_precision
from sparsecc.analysis.predictor_export import torch_scores, write_predictor

ROWS, WINDOW, CHANNELS, NEURONS = 1600, 100, 12, 40


@pytest.fixture
def file(tmp_path: Path) -> Iterator[h5py.File]:
    """Two layers. What ``down`` reads in the second follows from the first layer's state, with some noise."""
    random = np.random.default_rng(0)
    state = random.standard_normal((ROWS, CHANNELS)).astype(np.float32)
    mixed = state @ random.standard_normal((CHANNELS, NEURONS)).astype(np.float32)
    with h5py.File(tmp_path / "activations.h5", "w") as opened:
        opened["tokens/position"] = np.arange(ROWS)
        opened["layers/0/ffn_input"] = state
        opened["layers/0/down_input"] = random.standard_normal((ROWS, NEURONS)).astype(np.float32)
        opened["layers/1/ffn_input"] = random.standard_normal((ROWS, CHANNELS)).astype(np.float32)
        opened["layers/1/down_input"] = np.maximum(mixed + random.standard_normal(mixed.shape) / 2, 0).astype(
            np.float32
        )
        yield opened


def activations_of(file: h5py.File) -> Activations:
    places = [(int(layer), name) for layer in sorted(file["layers"]) for name in file["layers"][layer]]
    provenance = Provenance("0" * 64, "0" * 64, ROWS, WINDOW, len(file["tokens/position"]), 0, "{}")
    return Activations(provenance, places, file)


def predicted(file: h5py.File, seed: int = 0):
    activations = activations_of(file)
    important, _ = important_neurons(activations, 0.5)
    return list(predict_active_sets(activations, important, seed=seed))


def qualities(file: h5py.File):
    """What the first layer's predictor says of each target."""
    return {(row.layer, row.component): row for row in predicted(file)[0][1]}


def test_what_follows_from_the_state_is_found_and_what_does_not_is_not(file: h5py.File):
    rows = qualities(file)
    follows, noise = rows[1, "down_input"], rows[0, "down_input"]
    assert follows.recall > 0.8 > follows.hot_recall
    assert follows.precision > 0.8 > follows.hot_precision
    assert (follows.distance, follows.tokens) == (1, 396)
    assert noise.recall == pytest.approx(noise.predicted_share, abs=0.03)
    assert noise.previous_recall == pytest.approx(noise.active_share, abs=0.03)
    for row in rows.values():
        assert row.predicted_share == row.active_share
        assert row.recall == row.precision


def test_as_many_are_predicted_as_are_active_where_that_is_not_as_many_as_were_trained_on(file: h5py.File):
    file["layers/1/down_input"][1500:] += 1
    row = qualities(file)[1, "down_input"]
    held_out = np.arange(ROWS) // WINDOW % 4 == 3
    values = np.abs(file["layers/1/down_input"][...])
    active = values > np.quantile(values, 0.5)
    assert row.active_share == pytest.approx(active[held_out & (np.arange(ROWS) % WINDOW > 0)].mean())
    assert row.active_share > active[~held_out].mean() + 0.1
    assert row.predicted_share == row.active_share


def test_the_same_seed_gives_the_same_predictor(file: h5py.File):
    first, again, other = (predicted(file, seed)[0][0].network for seed in (0, 0, 1))
    for name, weights in vars(first).items():
        np.testing.assert_array_equal(weights, getattr(again, name))
    assert not np.array_equal(first.first_weight, other.first_weight)


def test_only_whole_windows_are_held_out(file: h5py.File):
    """The last quarter of windows is noise of its own; were it trained on, hot neurons would be others."""
    positions = np.arange(ROWS)
    held_out = positions // WINDOW % 4 == 3
    active = np.zeros((ROWS, NEURONS), np.float32)
    active[held_out, : NEURONS // 2] = 1
    active[~held_out, NEURONS // 2 :] = 1
    file["layers/1/down_input"][...] = active
    row = qualities(file)[1, "down_input"]
    assert (row.hot_recall, row.hot_precision) == (0, 0)


def test_a_component_that_is_all_zero_has_nothing_to_find(file: h5py.File):
    file["layers/1/down_input"][...] = 0
    row = qualities(file)[1, "down_input"]
    assert row.active_share == row.predicted_share == 0
    assert np.isnan([row.recall, row.precision, row.hot_recall, row.previous_precision]).all()


def test_tokens_whose_state_is_not_finite_are_left_out(file: h5py.File):
    file["layers/0/ffn_input"][::2, 3] = np.nan
    row = qualities(file)[1, "down_input"]
    assert row.tokens == 200
    assert row.recall > 0.7


def test_baselines_are_what_numpy_counts(file: h5py.File):
    """Neurons differ in how often they are active, and a token's set has half of the one before."""
    random = np.random.default_rng(1)
    values = random.standard_normal((ROWS, NEURONS)) + np.linspace(-1, 1, NEURONS)
    values[1::2] += values[::2]
    file["layers/1/down_input"][...] = values
    position = np.flatnonzero(random.random(2 * ROWS) < 0.5)[:ROWS]
    position = np.concatenate([position, 2 * ROWS + np.arange(ROWS - len(position))])
    del file["tokens/position"]
    file["tokens/position"] = position
    row = qualities(file)[1, "down_input"]

    magnitudes = np.abs(file["layers/1/down_input"][...])
    active = magnitudes > np.quantile(magnitudes, 0.5)
    window = np.unique(position // WINDOW, return_inverse=True)[1]
    held_out = window % 4 == 3
    judged = [i for i in np.flatnonzero(held_out) if position[i] - position[i - 1] == 1 and window[i] == window[i - 1]]
    assert row.tokens == len(judged) < held_out.sum()
    actual, before = active[judged], active[[i - 1 for i in judged]]
    assert row.active_share == pytest.approx(actual.mean())
    assert row.previous_recall == pytest.approx(before[actual].mean())
    assert row.previous_precision == pytest.approx(actual[before].mean())
    hottest = np.argsort(active[~held_out].mean(axis=0))[-round(actual.sum(axis=1).mean()) :]
    assert row.hot_recall == pytest.approx(actual[:, hottest].sum() / actual.sum())
    assert row.hot_precision == pytest.approx(actual[:, hottest].mean())
    assert len({row.previous_recall, row.previous_precision, row.hot_recall, row.hot_precision}) == 4


def test_where_no_tokens_follow_each_other_all_are_judged_without_previous_sets(file: h5py.File):
    del file["tokens/position"]
    file["tokens/position"] = np.arange(ROWS) * 2
    row = qualities(file)[1, "down_input"]
    assert row.tokens == 400
    assert row.recall > 0.8
    assert np.isnan([row.previous_recall, row.previous_precision]).all()


def test_one_window_gives_no_predictor(file: h5py.File):
    del file["tokens/position"]
    for layer in "01":
        for name, dataset in list(file[f"layers/{layer}"].items()):
            rows = dataset[:50]
            del file[f"layers/{layer}/{name}"]
            file[f"layers/{layer}/{name}"] = rows
    file["tokens/position"] = np.arange(50)
    assert predicted(file) == []


def test_the_exported_predictor_computes_what_torch_computes(file: h5py.File, tmp_path: Path):
    predictor, _ = predicted(file)[0]
    path = tmp_path / "predictor.onnx"
    write_predictor(path, predictor, model_sha256="f" * 64)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {"source": '[0, "ffn_input"]', "model_sha256": "f" * 64}.items() <= {
        entry.key: entry.value for entry in model.metadata_props
    }.items()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    states = file["layers/0/ffn_input"][:100]
    scores = session.run(None, {"ffn_input": states})
    assert [(output.name, part.shape) for output, part in zip(session.get_outputs(), scores, strict=False)] == [
        ("layers.0.down_input", (100, NEURONS)),
        ("layers.1.down_input", (100, NEURONS)),
        ("layers.1.ffn_input", (100, CHANNELS)),
    ]
    np.testing.assert_allclose(np.concatenate(scores, axis=1), torch_scores(predictor.network, states), atol=1e-4)


sets = arrays(np.bool_, (7, 5))


@given(active=sets, guessed=sets)
def test_recall_and_precision_are_their_definitions(active: np.ndarray, guessed: np.ndarray):
    pairs = [(bool(a), bool(g)) for a, g in zip(active.ravel(), guessed.ravel(), strict=True)]
    both = pairs.count((True, True))
    recall, precision = recall_and_precision(active, guessed)
    assert np.isnan(recall) if not active.any() else recall == both / sum(a for a, _ in pairs)
    assert np.isnan(precision) if not guessed.any() else precision == both / sum(g for _, g in pairs)


@given(active=sets, guessed=sets)
def test_f1_is_twice_what_both_have_of_all_that_each_has(active: np.ndarray, guessed: np.ndarray):
    measured = f1(*recall_and_precision(active, guessed))
    if active.any():
        assert measured == pytest.approx(2 * (active & guessed).sum() / (active.sum() + guessed.sum()))
    else:
        assert np.isnan(measured)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50), st.data())
def test_the_highest_are_as_many_as_are_asked_for(values: list[float], data: st.DataObject):
    count = data.draw(st.integers(0, len(values)))
    scores = np.array(values, np.float32)
    chosen = highest(scores, count)
    assert chosen.sum() == count
    assert scores[chosen].min(initial=1) >= scores[~chosen].max(initial=0)
