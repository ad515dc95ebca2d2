"""How many activations are zero, or nearly, without anything being done (figures 3 and 4 of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from sparsecc.analysis.collection import Activations
from sparsecc.analysis.magnitude_distribution import finite_magnitudes

FILE = "natural_sparsity.csv"
BOUNDS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
"""Compared as float64: rounded to float32, 0.1 would let in what is larger."""


@dataclasses.dataclass(frozen=True)
class NaturalSparsity:
    """The share of a component's activations, over all sampled tokens and neurons, that are no larger than a bound.

    Attributes:
        layer, component: see :mod:`sparsecc.analysis.components`.
        bound: a magnitude of :data:`BOUNDS`; at 0 the share is that of exact zeros.
        share: of the finite activations, those with abs(x) <= bound; NaN where none is finite.
        not_finite: how many activations are NaN or infinite; they are left out.
    """

    layer: int
    component: str
    bound: float
    share: float
    not_finite: int


def natural_sparsity(activations: Activations) -> Iterator[NaturalSparsity]:
    """A row for each component and bound."""
    for layer, component in activations.components:
        values = activations.of(layer, component)
        magnitudes = finite_magnitudes(values)
        for bound in BOUNDS:
            share = (
                int(np.count_nonzero(magnitudes <= np.float64(bound))) / magnitudes.size if magnitudes.size else np.nan
            )
            yield NaturalSparsity(layer, component, bound, share, values.size - magnitudes.size)
