"""What thresholds take away from the inputs of projections on a text, and how it varies together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.hidden_states import hidden_states_on
from sparsecc.projections import Projection
from sparsecc.quantization.input_covariance import memory_groups
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
        states = {name: str(by_name[name].input.name) for name in names}
        tapped = list(dict.fromkeys(states.values()))
        for piece in hidden_states_on(dense, tapped, windows, "reading what thresholds drop", threads=threads):
            for name in names:
                hidden = piece[states[name]]
                dropped = np.where(np.abs(hidden) < thresholds[name], hidden, np.float32(0))
                covariances[name] += dropped.T @ dropped
        for name in names:
            yield by_name[name], covariances.pop(name)
