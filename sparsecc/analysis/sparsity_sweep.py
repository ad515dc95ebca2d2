"""What enforced sparsity costs in perplexity (figure 8 of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses

FILE = "sparsity_sweep.csv"
TARGETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclasses.dataclass(frozen=True)
class SparsityPoint:
    """Perplexity with activations under a threshold set to zero in every token.

    Attributes:
        scope: which activations: a name of :data:`SCOPES`.
        target_sparsity: of :data:`TARGETS`; the quantile that each component's threshold is.
        achieved_sparsity: the share of those components' activations that were zero while the text ran.
        weights_not_read: the share of all projection weights whose input channel was zero.
        perplexity: NaN where it is not finite.
        tokens: of the text.
    """

    scope: str
    target_sparsity: float
    achieved_sparsity: float
    weights_not_read: float
    perplexity: float
    tokens: int
