"""What the inputs of projections look like on a text: how they vary together."""

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

_BYTES_AT_ONCE = 2 << 30
"""Of covariances in memory. A model that has more is run over the text as often as that takes."""


def input_covariances(
    dense: Artifact, channels: Mapping[str, int], windows: TokenWindows, *, threads: int = 0
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The second moment X^T X, float32 [K, K], of each hidden state over a text, in the order of the model.

    ``channels`` gives K for the name of each hidden state X [tokens, K] of the dense model.
    """
    for names in _groups(channels):
        covariances = {name: np.zeros((channels[name], channels[name]), np.float32) for name in names}
        model = load_model(dense.model_path)
        TapValuesPass(names)(model)
        session = open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=threads)
        for window in track(windows.ids, "reading what projections are given", len(windows.ids)):
            for piece in run_prompt(session, window, names, **dense.cache_shape):
                for name, hidden in zip(names, piece, strict=True):
                    rows = hidden.reshape(-1, hidden.shape[-1])
                    covariances[name] += rows.T @ rows
        del session
        for name in names:
            yield name, covariances.pop(name)


def _groups(channels: Mapping[str, int]) -> Iterator[Sequence[str]]:
    """The names, as many together as their covariances fit into memory."""
    group: list[str] = []
    free = _BYTES_AT_ONCE
    for name, count in channels.items():
        size = 4 * count * count
        if group and size > free:
            yield group
            group, free = [], _BYTES_AT_ONCE
        group.append(name)
        free -= size
    if group:
        yield group
