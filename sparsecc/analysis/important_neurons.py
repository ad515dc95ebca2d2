"""Which neurons matter: those above a percentile of all magnitudes (equations 3 to 6 of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sparsecc.analysis.collection import Activations
from sparsecc.analysis.magnitude_distribution import magnitude_quantiles
from sparsecc.errors import SparseccError

FILE = "important_neurons.csv"
FREQUENCY_FILE = "neuron_frequency.h5"
HOT_SHARE = 0.8
"""Hot neurons are the fewest that hold this share of all importances, as PowerInfer (arXiv 2312.12456) splits them."""


@dataclasses.dataclass(frozen=True)
class ImportantNeurons:
    """How importance is spread over a component's neurons.

    ``neuron_frequency.h5`` has, at ``/layers/LAYER/COMPONENT``, float32 [neurons]: the share of sampled tokens in which
    each neuron is important. The counts here follow from it.

    Attributes:
        layer, component: see :mod:`sparsecc.analysis.components`.
        sparsity: the percentile, as a share.
        threshold: that quantile of abs(x) over all sampled tokens and neurons; an activation is important where
            abs(x) > threshold. NaN where no activation is finite.
        important_share: of all activations, those that are important.
        neurons: how many there are.
        hot_neurons: the fewest that hold :data:`HOT_SHARE` of all important activations.
        never_important: how many are important in no sampled token.
    """

    layer: int
    component: str
    sparsity: float
    threshold: float
    important_share: float
    neurons: int
    hot_neurons: int
    never_important: int


Frequencies = Mapping[tuple[int, str], NDArray[np.float32]]
"""By layer and component, float32 [neurons]."""


def important_neurons(activations: Activations, sparsity: float) -> tuple[list[ImportantNeurons], Frequencies]:
    """Which activations lie above the ``sparsity`` quantile, and how often each neuron's does."""
    found, frequencies = [], {}
    for layer, component in activations.components:
        values = activations.of(layer, component)
        (threshold,) = magnitude_quantiles(values, [sparsity])
        counts = np.count_nonzero(is_important(values, threshold), axis=0)
        frequencies[layer, component] = (counts / len(values)).astype(np.float32)
        found.append(
            ImportantNeurons(
                layer=layer,
                component=component,
                sparsity=sparsity,
                threshold=threshold,
                important_share=int(counts.sum()) / values.size,
                neurons=counts.size,
                hot_neurons=_hot_neurons(counts),
                never_important=int(np.count_nonzero(counts == 0)),
            )
        )
    return found, frequencies


def is_important(values: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Equation 6 of the paper: where a magnitude exceeds the threshold. NaN does not, and nothing exceeds NaN.

    The threshold is not rounded to float32, so that the same comes out wherever it is read from a table. Where it is 0,
    as it is behind a ReLU that zeroes more than the percentile, every activation that is not zero is important.
    """
    important: NDArray[np.bool_] = np.abs(values) > np.float64(threshold)
    return important


def write_frequencies(path: Path, frequencies: Frequencies) -> None:
    """Write ``neuron_frequency.h5``, made in memory first: the HDF5 library crashes when the disk is full."""
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        for (layer, component), frequency in frequencies.items():
            file[f"layers/{layer}/{component}"] = frequency
    path.write_bytes(content.getbuffer())


def read_frequencies(path: Path) -> Frequencies:
    """Read what :func:`write_frequencies` wrote.

    Raises:
        SparseccError: the file is missing, damaged, or something else.
    """
    try:
        with h5py.File(path, "r") as file:
            return {
                (int(layer), component): np.asarray(dataset[...], np.float32)
                for layer, components in file["layers"].items()
                for component, dataset in components.items()
            }
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SparseccError(f"{path} holds no readable frequencies ({reason}); run `sparsecc analyze` again") from error


def _hot_neurons(counts: NDArray[np.int64]) -> int:
    cumulative = np.cumsum(np.sort(counts)[::-1])
    total = int(cumulative[-1])
    return int(np.searchsorted(cumulative, HOT_SHARE * total)) + 1 if total else 0
