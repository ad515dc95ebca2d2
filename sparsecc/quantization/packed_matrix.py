"""Pack integers in the way of onnxruntime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecc.quantization.quantized_weight import QuantizedWeight


def packed_blocks(weight: QuantizedWeight) -> NDArray[np.uint8]:
    """uint8 [V, K / block_size, bytes of a block] of a weight [V, K] whose rows are whole blocks.

    The integers are shifted to be unsigned, since the operators take the middle of the range for 0; of two int4 in a
    byte the first lies in the low half.
    """
    rows, columns = weight.integers.shape
    shifted = (weight.integers.astype(np.int16) + (1 << (weight.bits - 1))).astype(np.uint8)
    if weight.bits == 4:
        shifted = shifted[:, 0::2] | np.left_shift(shifted[:, 1::2], 4, dtype=np.uint8)
    return shifted.reshape(rows, columns // weight.block_size, -1)
