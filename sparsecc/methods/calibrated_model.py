from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sparsecc.artifact import Artifact
from sparsecc.calibration_statistics import Statistics
from sparsecc.projections import Projection


@dataclasses.dataclass(frozen=True)
class CalibratedModel:
    """A dense model and what is known of it: all that a method decides by.

    Attributes:
        dense: the model, for methods that run it.
        projections: those of its graph.
        statistics: what calibration learned of them.
        text: the text to run the model on; the one that was calibrated on, unless statistics were read from a file.
        threads: the size of the intra-op pool to run it with.
        scratch: a directory for files as large as the model; the system's own for temporary files where None.
    """

    dense: Artifact
    projections: Sequence[Projection]
    statistics: Statistics
    text: Path
    threads: int = 0
    scratch: Path | None = None
