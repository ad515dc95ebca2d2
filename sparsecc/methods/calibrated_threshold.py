from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecc import histogram
from sparsecc.methods.projection_entry import projection_entry
from sparsecc.projections import Projection
from sparsecc.recipe import ProjectionRecipe


def calibrated_threshold(
    projection: Projection, method: str, sparsity: float, scores: NDArray[np.int64]
) -> ProjectionRecipe:
    """Threshold a projection at the ``sparsity`` quantile of its calibrated scores, a histogram int64 [BINS].

    At sparsity 0 the threshold is 0, which keeps every channel of every text, not only of the calibrated one.
    """
    threshold = histogram.quantile(scores, sparsity) if sparsity > 0 else 0.0
    skipped = histogram.share_below(scores, threshold)
    return projection_entry(projection, method, sparsity, skipped, np.array([threshold], np.float32))
