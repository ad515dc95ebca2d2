"""Histograms of magnitudes, fine enough that a quantile read from one is the exact quantile to 0.1 %."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MANTISSA_BITS = 10
"""Bits of the fraction that tell two bins apart: neighbouring edges differ by at most 2^-10 < 0.1 %."""
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = -40, 24
_SHIFT = np.uint32(23 - _MANTISSA_BITS)
_FIRST_BIN = np.int64((_SMALLEST_EXPONENT + 127) << _MANTISSA_BITS)
_REGULAR_BINS = (_LARGEST_EXPONENT - _SMALLEST_EXPONENT) << _MANTISSA_BITS

BINS = _REGULAR_BINS + 2
"""One bin for magnitudes below 2^-40 (zero among them), the regular ones, and one for 2^24 and above."""


def bin_counts(magnitudes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count non-negative float32 magnitudes of any shape into int64 [BINS].

    The bit pattern of a non-negative float grows with its value, so its leading bits are a logarithmic bin number.
    """
    bits = np.ascontiguousarray(magnitudes, np.float32).reshape(-1).view(np.uint32)
    bins = (bits >> _SHIFT).astype(np.int64)
    bins -= _FIRST_BIN - 1
    np.clip(bins, 0, BINS - 1, out=bins)
    return np.bincount(bins, minlength=BINS)


def quantile(counts: NDArray[np.int64], share: float) -> float:
    """The magnitude below which ``share`` of the counted ones lie, to a relative error under 2^-10.

    Follows numpy.quantile: the value at rank share * (count - 1), here interpolated evenly within its bin.
    """
    total = int(counts.sum())
    if total == 0:
        raise ValueError("an empty histogram has no quantile")
    rank = share * (total - 1)
    cumulative = np.cumsum(counts)
    index = int(np.searchsorted(cumulative, rank, side="right"))
    before = float(cumulative[index - 1]) if index else 0.0
    low, high = _edges(index)
    return low + (high - low) * (rank - before) / float(counts[index])


def share_below(counts: NDArray[np.int64], magnitude: float) -> float:
    """The share of the counted magnitudes that are smaller than ``magnitude``; the inverse of :func:`quantile`.

    What lies in the first bin is taken for zero, which is smaller than any ``magnitude`` but zero; what lies in the
    last for infinity.
    """
    index = int(np.argmax(bin_counts(np.array([magnitude], np.float32))))
    low, high = _edges(index)
    of_open_bins = {0: float(magnitude > 0), BINS - 1: 0.0}
    within = float(counts[index]) * of_open_bins.get(index, (magnitude - low) / (high - low))
    return (float(counts[:index].sum()) + within) / float(counts.sum())


def _edges(index: int) -> tuple[float, float]:
    return _lower_edge(index), _lower_edge(index + 1)


def _lower_edge(index: int) -> float:
    if index == 0:
        return 0.0
    bits = np.array([index - 1 + int(_FIRST_BIN)], np.uint32) << _SHIFT
    return float(bits.view(np.float32)[0])
