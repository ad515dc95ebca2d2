"""A weight in blocks of small integers, as ``ai.sparsecc.SparseMatMulNBits`` takes it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

SMALLEST_INTEGER = {2: -2, 3: -4, 4: -8, 8: -127}
LARGEST_INTEGER = {2: 1, 3: 3, 4: 7, 8: 127}
"""By bits. Graphs store 4 and 8; 2 and 3 are what those are compared with."""


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """W[k, n] = integers[k, n] * scales[k, n // block_size].

    Attributes:
        bits: what the integers could be stored in; they lie in SMALLEST_INTEGER[bits]..LARGEST_INTEGER[bits].
        integers: int8 [K, N].
        scales: float16 [K, ceil(N / block_size)], of either sign.
        block_size: consecutive weights of a row that share a scale.
    """

    bits: int
    integers: NDArray[np.int8]
    scales: NDArray[np.float16]
    block_size: int

    def dequantized(self) -> NDArray[np.float32]:
        """float32 [K, N]."""
        return self.integers * by_column(self.scales, self.integers.shape[1], self.block_size)


def by_column(scales: NDArray[np.float16], columns: int, block_size: int) -> NDArray[np.float32]:
    """The scale float32 [K, N] of each weight, from those of the blocks [K, ceil(N / block_size)]."""
    return np.repeat(scales.astype(np.float32), block_size, axis=1)[:, :columns]
