from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecc.projections import Projection
from sparsecc.recipe import ProjectionRecipe


def projection_entry(
    projection: Projection,
    method: str,
    target_sparsity: float,
    calibrated_sparsity: float,
    threshold: NDArray[np.float32],
) -> ProjectionRecipe:
    """What a method decided for a projection, with a threshold float32 [1] or [K]."""
    return ProjectionRecipe(
        name=projection.name,
        layer=projection.layer,
        kind=projection.kind,
        method=method,
        target_sparsity=target_sparsity,
        calibrated_sparsity=calibrated_sparsity,
        threshold=threshold,
    )
