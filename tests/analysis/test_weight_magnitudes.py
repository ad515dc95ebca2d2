"""The histogram of weights is numpy's."""

from pathlib import Path

import numpy as np
import pytest

from sparsecc.analysis.weight_magnitudes import BINS, WeightMagnitudes, weight_magnitudes
from sparsecc.model_file import load_model
from sparsecc.projections import find_projections

from .decoders import GATED, random_weights, write_decoder


def histogram_of(directory: Path, weights: dict[str, np.ndarray]) -> dict[str, list[WeightMagnitudes]]:
    """The rows of each projection, by kind."""
    decoder = write_decoder(directory / "decoder", GATED, weights)
    rows = list(weight_magnitudes(find_projections(load_model(decoder.model_path).graph)))
    return {kind: [row for row in rows if row.kind == kind] for kind in ("gate", "up", "down")}


def test_bins_are_those_of_numpy_up_to_the_largest_of_all_weights(tmp_path: Path):
    weights = random_weights()
    weights["w_down"][3, 2] = -5
    for kind, rows in histogram_of(tmp_path, weights).items():
        counts, edges = np.histogram(np.abs(weights[f"w_{kind}"]), bins=BINS, range=(0, 5))
        assert [row.count for row in rows] == counts.tolist()
        assert [row.lower for row in rows] == pytest.approx(edges[:-1])
        assert [row.upper for row in rows] == pytest.approx(edges[1:])
        assert {row.layer for row in rows} == {0}


def test_weights_that_are_not_finite_have_a_row_of_their_own(tmp_path: Path):
    weights = random_weights()
    weights["w_up"][:3, 0] = np.nan, np.inf, -np.inf
    rows = histogram_of(tmp_path, weights)
    *bins, lost = rows["up"]
    assert len(bins) == len(rows["gate"]) == BINS
    assert np.isnan([lost.lower, lost.upper]).all()
    assert (lost.count, sum(row.count for row in bins)) == (3, weights["w_up"].size - 3)


def test_weights_that_are_all_zero_are_in_the_first_bin(tmp_path: Path):
    zeros = {name: np.zeros_like(array) for name, array in random_weights().items()}
    first, *others = histogram_of(tmp_path, zeros)["down"]
    assert (first.lower, first.count) == (0, zeros["w_down"].size)
    assert not any(row.count for row in others)
