"""How well a model predicts a text, and how far its predictions are from another model's."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 128


@dataclasses.dataclass
class TokenScores:
    """Sums over predicted tokens, to which more are added piece by piece.

    Attributes:
        tokens: how many were predicted.
        negative_log_likelihood: the sum of -log p(token), in nats.
        divergence: the sum of KL(reference || model) over next-token distributions, in nats.
        agreements: how many times the reference found the same token likeliest.
    """

    tokens: int = 0
    negative_log_likelihood: float = 0.0
    divergence: float = 0.0
    agreements: int = 0

    def add(
        self, logits: NDArray[np.float32], targets: NDArray[np.int64], reference: NDArray[np.float32] | None = None
    ) -> None:
        """Take in logits float32 [T, vocabulary], the T tokens that followed, and the reference's logits or log p.

        Differences are taken in float32 and sums in float64, so a mean divergence is exact to about 1e-6 nats.
        """
        for start in range(0, len(targets), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            chosen = targets[rows]
            log_probabilities = log_softmax(logits[rows][: len(chosen)])
            self.tokens += len(chosen)
            predicted = np.take_along_axis(log_probabilities, chosen[:, None], axis=1)
            self.negative_log_likelihood -= float(predicted.sum(dtype=np.float64))
            if reference is not None:
                self._compare(log_probabilities, log_softmax(reference[rows][: len(chosen)]))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; infinite where that overflows."""
        try:
            return math.exp(self.negative_log_likelihood / self.tokens)
        except OverflowError:
            return math.inf

    @property
    def mean_divergence(self) -> float:
        """Nats a token; rounding may have taken the sum below 0, which no divergence is."""
        return max(self.divergence, 0.0) / self.tokens

    @property
    def agreement(self) -> float:
        """The share of tokens, in [0, 1]."""
        return self.agreements / self.tokens

    def _compare(self, log_probabilities: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
        expected = np.exp(reference)
        with np.errstate(invalid="ignore"):  # where both say -inf, nothing is expected
            differences = np.where(expected > 0, reference - log_probabilities, 0)
        self.divergence += float((expected * differences).sum(dtype=np.float64))
        same = log_probabilities.argmax(axis=1) == reference.argmax(axis=1)
        self.agreements += int(np.count_nonzero(same))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """log p of logits float32 [T, vocabulary], along the vocabulary."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_partition = np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64))
    return np.asarray(shifted - log_partition, np.float32)
