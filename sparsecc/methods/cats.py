"""CATS, contextually aware thresholding for sparsity (Lee et al., arXiv 2404.08763)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecc import histogram
from sparsecc.errors import SparseccError
from sparsecc.gated_networks import GatedNetwork, find_gated_networks
from sparsecc.hidden_states import hidden_states_on
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.methods.model_budget import skipped_share
from sparsecc.model_file import load_model
from sparsecc.recipe import Recipe
from sparsecc.text import load_tokenizer, token_windows


def cats(model: CalibratedModel, sparsity: float) -> Recipe:
    """Keep entry i of the activated gate where abs(a_i) >= t, with a = SiLU(x W_gate); t is a quantile of abs(a).

    down(CATS_t(a) * up(x)) then needs only the kept output channels of ``up`` and the kept input channels of ``down``.
    The quantile is the same in every network: ``sparsity`` x all projections' weights / the weights of up and down.
    Everything else stays dense.

    Raises:
        SparseccError: the model has no gated networks, or too few weights in them.
    """
    networks = find_gated_networks(load_model(model.dense.model_path).graph)
    if not networks:
        raise SparseccError(
            "method cats needs feed-forward networks with a gate, in a matrix of its own, and an up projection without "
            "a bias; choose another method"
        )
    return thresholded_gates(model, sparsity, networks, _gate_magnitudes(model, networks))


def thresholded_gates(
    model: CalibratedModel,
    sparsity: float,
    networks: Sequence[GatedNetwork],
    magnitudes: Mapping[str, NDArray[np.int64]],
) -> Recipe:
    """The recipe, given the histograms int64 [histogram.BINS] of abs(a) by the names of the activated gates."""
    gates = {
        projection.name: magnitudes[str(network.activated.name)]
        for network in networks
        for projection in (network.up, network.down)
    }
    gated = [projection for projection in model.projections if projection.name in gates]
    share = skipped_share("cats", sparsity, model.projections, gated)
    entries = []
    for projection in model.projections:
        if projection.name in gates:
            entry = calibrated_threshold(projection, "cats", share, gates[projection.name])
            entries.append(dataclasses.replace(entry, selected_by="gate"))
        else:
            hidden_state = model.statistics.hidden_states[str(projection.input.name)]
            entries.append(calibrated_threshold(projection, "cats", 0.0, hidden_state.magnitudes))
    return Recipe("cats", sparsity, tuple(entries), model.statistics.calibration)


def _gate_magnitudes(model: CalibratedModel, networks: Sequence[GatedNetwork]) -> dict[str, NDArray[np.int64]]:
    """The histogram of each activated gate's magnitudes on as much text as the model was calibrated on."""
    seen = {str(network.activated.name): np.zeros(histogram.BINS, np.int64) for network in networks}
    calibration = model.statistics.calibration
    tokenizer = load_tokenizer(model.dense.directory)
    windows = token_windows(model.text, tokenizer, tokens=calibration.tokens, window=calibration.window)
    pieces = hidden_states_on(model.dense, list(seen), windows, "calibrating gates", threads=model.threads)
    for piece in pieces:
        for name, activated in piece.items():
            seen[name] += histogram.bin_counts(np.abs(activated))
    return seen
