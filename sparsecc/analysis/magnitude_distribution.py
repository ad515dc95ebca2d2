"""How the magnitudes of activations are distributed (figures 5 to 7 of arXiv 2412.12178), and what to cut them at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecc.analysis.collection import Activations

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


def magnitude_distribution(activations: Activations) -> tuple[list[MagnitudeQuantile], list[SparsityThreshold]]:
    """The distribution of each component, and the thresholds that are read from it."""
    distribution: list[MagnitudeQuantile] = []
    thresholds: list[SparsityThreshold] = []
    for layer, component in activations.components:
        quantiles = magnitude_quantiles(activations.of(layer, component), [*SHARES, *SPARSITIES])
        at_shares, at_sparsities = quantiles[: len(SHARES)], quantiles[len(SHARES) :]
        distribution += [MagnitudeQuantile(layer, component, *point) for point in zip(SHARES, at_shares, strict=True)]
        thresholds += [
            SparsityThreshold(layer, component, *point) for point in zip(SPARSITIES, at_sparsities, strict=True)
        ]
    return distribution, thresholds


def magnitude_quantiles(values: NDArray[np.float32], shares: Sequence[float]) -> list[float]:
    """Equation 5 of the paper: percentiles, as shares, of the magnitudes; NaN where there are none."""
    magnitudes = finite_magnitudes(values)
    if not magnitudes.size:
        return [np.nan] * len(shares)
    quantiles: list[float] = np.quantile(np.sort(magnitudes), np.asarray(shares)).tolist()
    return quantiles


def finite_magnitudes(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Equations 3 and 4 of the paper: the activations flattened, and their absolute values. Finite ones only."""
    magnitudes: NDArray[np.float32] = np.abs(values[np.isfinite(values)])
    return magnitudes
