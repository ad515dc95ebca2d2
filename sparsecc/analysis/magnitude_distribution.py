"""How the magnitudes of activations are distributed (figures 5 to 7 of arXiv 2412.12178), and what to cut them at."""

from __future__ import annotations

import dataclasses

FILE = "magnitude_distribution.csv"
THRESHOLDS_FILE = "thresholds.csv"
SHARES = (*(percent / 100 for percent in range(100)), 0.995, 0.999, 0.9999, 1.0)
SPARSITIES = tuple(percent / 100 for percent in range(5, 100, 5))


@dataclasses.dataclass(frozen=True)
class MagnitudeQuantile:
    """A point of a component's cumulative distribution: ``share`` of abs(x) lies at or below ``magnitude``.

    ``magnitude`` is the exact quantile, interpolated as numpy.quantile does, over the finite activations of all
    sampled tokens and neurons; NaN where none is finite. ``share`` goes through :data:`SHARES`.
    """

    layer: int
    component: str
    share: float
    magnitude: float


@dataclasses.dataclass(frozen=True)
class SparsityThreshold:
    """What zeroes ``sparsity`` of a component's activations: the quantile of :class:`MagnitudeQuantile` at that share.

    This is equation 5 of the paper. ``sparsity`` goes through :data:`SPARSITIES`.
    """

    layer: int
    component: str
    sparsity: float
    threshold: float
