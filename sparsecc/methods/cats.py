"""CATS, contextually aware thresholding for sparsity (Lee et al., arXiv 2404.08763)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecc.errors import SparseccError
from sparsecc.gated_networks import GatedNetwork, find_gated_networks
from sparsecc.hidden_states import weighted_magnitudes
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.methods.model_budget import skipped_share
from sparsecc.model_file import load_model
from sparsecc.recipe import Recipe


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
            entries.append(calibrated_threshold(projection, "cats", 0.0, model.magnitudes(projection)))
    return Recipe("cats", sparsity, tuple(entries), model.statistics.calibration)


def _gate_magnitudes(model: CalibratedModel, networks: Sequence[GatedNetwork]) -> dict[str, NDArray[np.int64]]:
    """The histogram of each activated gate's magnitudes on as much text as the model was calibrated on."""
    weights = {str(network.activated.name): np.float32(1) for network in networks}
    return weighted_magnitudes(
        model.dense, weights, model.calibration_windows, "calibrating gates", threads=model.threads
    )
