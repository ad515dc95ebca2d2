"""How the magnitudes of weights are distributed (figure 2 of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.projections import Projection

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


def weight_magnitudes(projections: Sequence[Projection]) -> Iterator[WeightMagnitudes]:
    """A row for each projection and bin. Weights are read one matrix at a time."""
    largest = max((_largest(projection) for projection in projections), default=0.0)
    edges = np.linspace(0.0, largest or 1.0, BINS + 1)
    for projection in projections:
        magnitudes, not_finite = _magnitudes(projection)
        counts, _ = np.histogram(magnitudes, edges)
        for index, count in enumerate(counts.tolist()):
            lower, upper = edges[index : index + 2].tolist()
            yield WeightMagnitudes(projection.layer, projection.kind, lower, upper, count)
        if not_finite:
            yield WeightMagnitudes(projection.layer, projection.kind, np.nan, np.nan, not_finite)


def _largest(projection: Projection) -> float:
    magnitudes, _ = _magnitudes(projection)
    return float(magnitudes.max(initial=0.0))


def _magnitudes(projection: Projection) -> tuple[NDArray[np.float32], int]:
    """The magnitudes of the finite weights, and how many others there are."""
    tensor = projection.weight.const_value
    assert tensor is not None
    weights = np.abs(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()  # else the whole model stays mapped, and counts as this process's memory
    finite = weights[np.isfinite(weights)]
    return finite, weights.size - finite.size
