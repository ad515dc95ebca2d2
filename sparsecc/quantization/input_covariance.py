"""What the inputs of projections look like on a text: how they vary together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.hidden_states import hidden_states_on
from sparsecc.text import TokenWindows

_BYTES_AT_ONCE = 2 << 30
"""Of covariances in memory. A model that has more is run over the text as often as that takes."""


def input_covariances(
    dense: Artifact, channels: Mapping[str, int], windows: TokenWindows, *, threads: int = 0
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The second moment X^T X, float32 [K, K], of each hidden state over a text, in the order of the model.

    ``channels`` gives K for the name of each hidden state X [tokens, K] of the dense model.
    """
    for names in memory_groups(channels):
        covariances = {name: np.zeros((channels[name], channels[name]), np.float32) for name in names}
        for piece in hidden_states_on(dense, names, windows, "reading what projections are given", threads=threads):
            for name, hidden in piece.items():
                covariances[name] += hidden.T @ hidden
        for name in names:
            yield name, covariances.pop(name)


def memory_groups(channels: Mapping[str, int]) -> Iterator[Sequence[str]]:
    """The names, as many together as their covariances [K, K] fit into memory; ``channels`` gives each its K."""
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
