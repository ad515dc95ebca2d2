"""Quantization that looks at nothing but the weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecc.quantization.block_scales import block_scales, rounded
from sparsecc.quantization.quantized_weight import QuantizedWeight, by_column


def round_to_nearest(weight: NDArray[np.float32], bits: int, block_size: int) -> QuantizedWeight:
    """Round each entry of a finite weight [K, N] to the nearest integer of its block, which runs along N."""
    scales = block_scales(weight, bits, block_size)
    integers = rounded(weight, by_column(scales, weight.shape[1], block_size), bits).astype(np.int8)
    return QuantizedWeight(bits, integers, scales, block_size)
