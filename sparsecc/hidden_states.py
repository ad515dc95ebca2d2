"""The hidden states of a dense model on a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
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
    """
    model = load_model(dense.model_path)
    TapValuesPass(list(names))(model)
    session = open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=threads)
    for window in track(windows.ids, activity, len(windows.ids)):
        for piece in run_prompt(session, window, list(names), **dense.cache_shape):
            yield {name: hidden.reshape(-1, hidden.shape[-1]) for name, hidden in zip(names, piece, strict=True)}
