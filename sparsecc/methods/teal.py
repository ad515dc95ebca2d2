"""TEAL with uniform sparsity (Liu et al., arXiv 2408.14690)."""

from __future__ import annotations

from collections.abc import Sequence

from sparsecc.calibration_statistics import Statistics
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.projections import Projection
from sparsecc.recipe import Recipe


def teal(projections: Sequence[Projection], statistics: Statistics, sparsity: float) -> Recipe:
    """Keep channel k where abs(x_k) >= t, with t the ``sparsity`` quantile of a hidden state (equation 3)."""
    entries = []
    for projection in projections:
        magnitudes = statistics.hidden_states[str(projection.input.name)].magnitudes
        entries.append(calibrated_threshold(projection, "teal", sparsity, magnitudes))
    return Recipe("teal", sparsity, tuple(entries), statistics.calibration)
