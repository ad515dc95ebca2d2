"""Quantization that looks at nothing but the weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecc.quantization.block_scales import quantize_rows
from sparsecc.quantization.quantized_weight import BLOCK_SIZE, QuantizedWeight

_WEIGHTS_AT_ONCE = 1 << 14
"""So that what is tried for them stays in the cache."""


def round_to_nearest(weight: NDArray[np.float32], bits: int) -> QuantizedWeight:
    """Round each entry of a finite weight [K, N] to the nearest integer of its block."""
    rows, columns = weight.shape
    integers = np.empty((rows, columns), np.int8)
    scales = np.empty((rows, -(-columns // BLOCK_SIZE)), np.float16)
    at_once = max(1, _WEIGHTS_AT_ONCE // columns)
    for start in range(0, rows, at_once):
        piece = slice(start, start + at_once)
        integers[piece], scales[piece] = quantize_rows(weight[piece], bits)
    return QuantizedWeight(bits, integers, scales)
