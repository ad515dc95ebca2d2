"""WINA, weight-informed neuron activation (Chen et al., arXiv 2505.19427)."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from sparsecc.calibration_statistics import ProjectionStatistics
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.projections import Projection
from sparsecc.recipe import ProjectionRecipe, Recipe


def wina(model: CalibratedModel, sparsity: float) -> Recipe:
    """Keep channel k where abs(x_k) * norm2(w_k) >= t, with t the ``sparsity`` quantile of that score.

    The paper keeps the top scores of each token; a calibrated t keeps the same share on average and needs no sorting.
    The norm is folded into a threshold per channel, T_k = t / norm2(w_k).
    """
    entries = []
    for projection in model.projections:
        seen = model.statistics.projections[projection.name]
        entries.append(norm_weighted_threshold(projection, "wina", sparsity, seen))
    return Recipe("wina", sparsity, tuple(entries), model.statistics.calibration)


def norm_weighted_threshold(
    projection: Projection, method: str, sparsity: float, seen: ProjectionStatistics
) -> ProjectionRecipe:
    """WINA's threshold for one projection, from what calibration saw of it."""
    entry = calibrated_threshold(projection, method, sparsity, seen.weighted_magnitudes)
    return dataclasses.replace(entry, threshold=_per_channel(entry.threshold, seen.row_norms))


def _per_channel(threshold: NDArray[np.float32], row_norms: NDArray[np.float32]) -> NDArray[np.float32]:
    """A row of zeros adds nothing whatever its channel holds, so its threshold is infinite; t = 0 keeps all, once."""
    if threshold[0] == 0:
        return threshold
    with np.errstate(divide="ignore"):
        return threshold / row_norms
