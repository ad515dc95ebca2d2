"""How the magnitudes of weights are distributed (figure 2 of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses

FILE = "weight_magnitudes.csv"
BINS = 64


@dataclasses.dataclass(frozen=True)
class WeightMagnitudes:
    """A bin of the histogram of a projection's weights: ``count`` of them have lower <= abs(w) < upper.

    Bins are equally wide and the same for all kinds, :data:`BINS` from 0 to the largest weight, which is in the last.
    Weights that are not finite are counted in a row of their own, whose bounds are NaN.

    Attributes:
        layer: the decoder layer.
        kind: the projection: q, k, v (or qkv), o, gate, up (or gate_up), down.
    """

    layer: int
    kind: str
    lower: float
    upper: float
    count: int
