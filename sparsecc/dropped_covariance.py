"""What thresholds take away from the inputs of projections on a text, and how it varies together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.model_file import load_model
from sparsecc.passes import TapValuesPass
from sparsecc.progress import track
from sparsecc.projections import Projection
from sparsecc.quantization.input_covariance import memory_groups
from sparsecc.session import open_session, run_prompt
from sparsecc.text import TokenWindows


def dropped_covariances(
    dense: Artifact,
    projections: Sequence[Projection],
    thresholds: Mapping[str, NDArray[np.float32]],
    windows: TokenWindows,
    *,
    threads: int = 0,
) -> Iterator[tuple[Projection, NDArray[np.float32]]]:
    """The second moment D^T D, float32 [K, K], of what each projection's threshold drops of its input on a text.

    D = X where abs(X) < T, else 0, on the dense model's hidden states X [tokens, K].
    """
    by_name = {projection.name: projection for projection in projections}
    for names in memory_groups({name: projection.channels for name, projection in by_name.items()}):
        covariances = {name: np.zeros((by_name[name].channels,) * 2, np.float32) for name in names}
        hidden_states = {name: str(by_name[name].input.name) for name in names}
        tapped = list(dict.fromkeys(hidden_states.values()))
        model = load_model(dense.model_path)
        TapValuesPass(tapped)(model)
        session = open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=threads)
        for window in track(windows.ids, "reading what thresholds drop", len(windows.ids)):
            for piece in run_prompt(session, window, tapped, **dense.cache_shape):
                rows = {name: hidden.reshape(-1, hidden.shape[-1]) for name, hidden in zip(tapped, piece, strict=True)}
                for name in names:
                    hidden = rows[hidden_states[name]]
                    dropped = np.where(np.abs(hidden) < thresholds[name], hidden, np.float32(0))
                    covariances[name] += dropped.T @ dropped
        del session
        for name in names:
            yield by_name[name], covariances.pop(name)
