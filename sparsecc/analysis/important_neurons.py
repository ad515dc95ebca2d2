"""Which neurons matter: those above a percentile of all magnitudes (equations 3 to 6 of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses

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
