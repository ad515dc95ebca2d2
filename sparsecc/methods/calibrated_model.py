from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.calibration_statistics import Statistics, StatisticsOnDemand
from sparsecc.errors import MisfitError
from sparsecc.projections import Projection
from sparsecc.quantization.block_size import block_size
from sparsecc.session import PIECE_TOKENS
from sparsecc.text import TokenWindows, load_tokenizer, token_windows


@dataclasses.dataclass(frozen=True)
class CalibratedModel:
    """A dense model and what is known of it: all that a method decides by.

    Attributes:
        dense: the model, for methods that run it.
        projections: those of its layers.
        statistics: what calibration learned of them.
        text: the text to run the model on, the one that was calibrated on. Where statistics were read from a file it is
            sparsecc's own, which may be another.
        threads: the size of the intra-op pool to run it with.
        scratch: a directory for files as large as the model; the system's own for temporary files where None.
        weights: what the projections will be stored as, one of :data:`sparsecc.recipe.WEIGHTS`.
    """

    dense: Artifact
    projections: Sequence[Projection]
    statistics: Statistics | StatisticsOnDemand
    text: Path
    threads: int = 0
    scratch: Path | None = None
    weights: str = "fp32"

    def magnitudes(self, projection: Projection) -> NDArray[np.int64]:
        """The calibrated histogram of abs(x) for what a projection reads, int64 [histogram.BINS]."""
        return self.statistics.hidden_states[str(projection.input.name)].magnitudes

    @property
    def cost_of_added_weight(self) -> float:
        """The bytes of a weight that a method adds over those of a projection's: what is added has 16 bits or more."""
        count = sum(projection.weight_count for projection in self.projections)
        int8, int4 = (bits / 8 + 2 / block_size(bits, count) for bits in (8, 4))
        stored = {"fp32": 4.0, "fp16": 2.0, "int8": int8, "int4": int4}[self.weights]
        return max(2.0, stored) / stored

    @property
    def calibration_windows(self) -> TokenWindows:
        """The text as statistics were gathered on it: as many tokens, in windows as long."""
        calibration = self.statistics.calibration
        return self.windows(calibration.tokens, calibration.window)

    def pieces(self, tokens: int) -> TokenWindows:
        """The first tokens of the text, in windows that are run at once."""
        return self.windows(tokens, min(PIECE_TOKENS, tokens, self.dense.window))

    def windows(self, tokens: int, window: int) -> TokenWindows:
        """The first tokens of the text.

        Raises:
            SparseccError: the text is shorter than a window.
            MisfitError: it is not the one that was calibrated on.
        """
        windows = token_windows(self.text, load_tokenizer(self.dense.directory), tokens=tokens, window=window)
        if windows.text_sha256 != self.statistics.calibration.text_sha256:
            raise MisfitError(
                f"the method runs the model on the calibration text, and statistics of another text than {self.text} "
                "were given; give the text itself as --calibration, or choose --method teal or wina"
            )
        return windows
