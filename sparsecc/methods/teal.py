"""TEAL with uniform sparsity (Liu et al., arXiv 2408.14690)."""

from __future__ import annotations

from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.recipe import Recipe


def teal(model: CalibratedModel, sparsity: float) -> Recipe:
    """Keep channel k where abs(x_k) >= t, with t the ``sparsity`` quantile of a hidden state (equation 3)."""
    entries = []
    for projection in model.projections:
        entries.append(calibrated_threshold(projection, "teal", sparsity, model.magnitudes(projection)))
    return Recipe("teal", sparsity, tuple(entries), model.statistics.calibration)
