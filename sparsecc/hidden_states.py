"""The hidden states of a dense model on a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc import histogram
from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model
from sparsecc.passes import TapValuesPass
from sparsecc.progress import track
from sparsecc.session import open_session, run_prompt
from sparsecc.text import TokenWindows


def hidden_states_on(
    dense: Artifact, names: Sequence[str], windows: TokenWindows, activity: str, *, threads: int = 0
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    """Values of a dense model by name, each float32 [T, K], for a few hundred tokens of a text at a time.

    ``activity`` is what the progress bar says.

    Raises:
        SparseccError: one of them is NaN or infinite.
    """
    model = load_model(dense.model_path)
    TapValuesPass(list(names))(model)
    session = open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=threads)
    for window in track(windows.ids, activity, len(windows.ids)):
        for piece in run_prompt(session, window, list(names), **dense.cache_shape):
            states = {name: hidden.reshape(-1, hidden.shape[-1]) for name, hidden in zip(names, piece, strict=True)}
            for name, hidden in states.items():
                if not np.isfinite(hidden).all():
                    raise SparseccError(f"the dense model computes NaN or infinity in {name}; check the checkpoint")
            yield states


def weighted_magnitudes(
    dense: Artifact,
    weights: Mapping[str, NDArray[np.float32] | np.float32],
    windows: TokenWindows,
    activity: str,
    *,
    threads: int = 0,
) -> dict[str, NDArray[np.int64]]:
    """For each named value x the histogram of abs(x_k) * its weight, float32 [K] or one, on a text: int64 [BINS]."""
    counts = {name: np.zeros(histogram.BINS, np.int64) for name in weights}
    for piece in hidden_states_on(dense, list(weights), windows, activity, threads=threads):
        for name, hidden in piece.items():
            counts[name] += histogram.bin_counts(np.abs(hidden) * weights[name])
    return counts
