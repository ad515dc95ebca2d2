"""A weight in blocks of small integers, as ``ai.sparsecc.SparseMatMulNBits`` takes it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 32
"""Consecutive weights of an input channel that share a scale."""

SMALLEST_INTEGER = {4: -8, 8: -127}
LARGEST_INTEGER = {4: 7, 8: 127}


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """W[k, n] = integers[k, n] * scales[k, n // BLOCK_SIZE].

    Attributes:
        bits: 4 or 8; the integers lie in -8..7 or -127..127.
        integers: int8 [K, N].
        scales: float16 [K, ceil(N / BLOCK_SIZE)], of either sign.
    """

    bits: int
    integers: NDArray[np.int8]
    scales: NDArray[np.float16]

    def dequantized(self) -> NDArray[np.float32]:
        """float32 [K, N]."""
        return self.integers * by_column(self.scales, self.integers.shape[1])


def by_column(scales: NDArray[np.float16], columns: int) -> NDArray[np.float32]:
    """The scale float32 [K, N] of each weight, from those of the blocks [K, ceil(N / BLOCK_SIZE)]."""
    return np.repeat(scales.astype(np.float32), BLOCK_SIZE, axis=1)[:, :columns]
