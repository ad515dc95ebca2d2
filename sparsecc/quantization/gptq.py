"""GPTQ (Frantar et al., arXiv 2210.17323): rounding that makes later input channels pay for the errors of earlier ones.

It minimizes trace(E^T H E), the error of the product over the calibrated inputs, where E = W - quantized W and H is the
second moment of the inputs. Written as LDLQ, which QuIP (arXiv 2307.13304, theorem 6) shows to be the same: with
H = (M + I) D (M + I)^T, M strictly upper triangular, channel k is rounded from

    W_k + sum over j < k of M_jk E_j

so H is decomposed and never inverted. A channel is a row with scales of its own, so the order of the channels is free;
those with the largest inputs come first, while there are others left to pay for them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecc.quantization.block_scales import block_scales, rounded
from sparsecc.quantization.quantized_weight import QuantizedWeight, by_column

DAMPING = 0.01
"""What is added to the diagonal of H, relative to its mean: the paper's choice."""
_CHANNELS_AT_ONCE = 16
"""Channels whose errors reach the later ones by one matrix product."""


class ErrorFeedback:
    """How the error of each input channel of a covariance float32 [K, K] is passed on; serves several weights.

    Attributes:
        order: int64 [K], the channels in the order in which they are rounded.
        shares: float32 [K, K], M + I in that order.
    """

    def __init__(self, covariance: NDArray[np.float32]) -> None:
        power = covariance.diagonal().astype(np.float64)
        self.order = np.argsort(-power, kind="stable")
        damped = covariance[np.ix_(self.order, self.order)].astype(np.float64)
        damped[np.diag_indices_from(damped)] += DAMPING * power.mean() or 1.0
        # numpy factors into lower triangles from the first row on; the upper one starts at the last.
        upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        self.shares = (upper / upper.diagonal()).astype(np.float32)


def gptq(weight: NDArray[np.float32], feedback: ErrorFeedback, bits: int, block_size: int) -> QuantizedWeight:
    """Quantize a finite weight [K, N] for inputs of the covariance that ``feedback`` was made from.

    The scales of some channels are chosen together, before the errors of the first of them are known.
    """
    rows, columns = weight.shape
    integers = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, -(-columns // block_size)), np.float16)
    errors = np.empty_like(weight)
    for start in range(0, rows, _CHANNELS_AT_ONCE):
        end = min(start + _CHANNELS_AT_ONCE, rows)
        channels = feedback.order[start:end]
        targets = weight[channels] + feedback.shares[:start, start:end].T @ errors[:start]
        scales[channels] = block_scales(targets, bits, block_size)
        steps = by_column(scales[channels], columns, block_size)
        within = feedback.shares[start:end, start:end]
        for index, channel in enumerate(channels):
            target = targets[index] + np.einsum("j,jn->n", within[:index, index], errors[start : start + index])
            row = rounded(target, steps[index], bits)
            integers[channel] = row
            errors[start + index] = weight[channel] - row * steps[index]
    return QuantizedWeight(bits, integers, scales, block_size)


def gptq_by_output(weight: NDArray[np.float32], feedback: ErrorFeedback, bits: int, block_size: int) -> QuantizedWeight:
    """As :func:`gptq`, for a weight [K, N] that is stored as [N, K], in blocks along K.

    Blocks hold channels that are rounded at different times, so their scales are chosen before any is.
    """
    rows, columns = weight.shape
    scales = block_scales(np.ascontiguousarray(weight.T), bits, block_size)
    steps = by_column(scales, rows, block_size)
    integers = np.empty((columns, rows), np.int8)
    errors = np.empty_like(weight)
    for start in range(0, rows, _CHANNELS_AT_ONCE):
        end = min(start + _CHANNELS_AT_ONCE, rows)
        channels = feedback.order[start:end]
        targets = weight[channels] + feedback.shares[:start, start:end].T @ errors[:start]
        within = feedback.shares[start:end, start:end]
        for index, channel in enumerate(channels):
            target = targets[index] + np.einsum("j,jn->n", within[:index, index], errors[start : start + index])
            row = rounded(target, steps[:, channel], bits)
            integers[:, channel] = row
            errors[start + index] = weight[channel] - row * steps[:, channel]
    return QuantizedWeight(bits, integers, scales, block_size)
