"""Choose the scale of each block of weights so that rounding to integers costs the least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecc.quantization.quantized_weight import LARGEST_INTEGER, SMALLEST_INTEGER

LARGEST_WEIGHT_BECOMES = {
    2: np.array([-2.5, -2, -1.75, -1.5, -1.25, -1, 1, 1.25, 1.5], np.float32),
    3: np.array([-4.5, -4, -3.75, -3.5, -3.25, -3, -2.5, 2.5, 3, 3.25, 3.5], np.float32),
    4: np.array([-8.5, -8, -7.5, -7, -6.5, -6, -5.5, 6, 6.5, 7, 7.5], np.float32),
    8: np.array([127], np.float32),
}
"""What the largest weight of a block, with its sign, is tried to be scaled to. -8 has no positive twin, so scales of
both signs are tried; beyond the range it is clipped, which may pay for the rest of the block."""
_LARGEST_SCALE = np.finfo(np.float16).max
_WEIGHTS_AT_ONCE = 1 << 14
"""So that what is tried for them stays in the cache."""


def block_scales(rows: NDArray[np.float32], bits: int, block_size: int) -> NDArray[np.float16]:
    """The scales float16 [R, ceil(N / block_size)] with which the blocks of finite rows [R, N] are rounded best.

    Of those tried, each as float16 holds it, a block gets the one with the least squared error.
    """
    count, columns = rows.shape
    blocks = -(-columns // block_size)
    scales = np.empty((count, blocks), np.float16)
    at_once = max(1, _WEIGHTS_AT_ONCE // columns)
    for start in range(0, count, at_once):
        piece = rows[start : start + at_once]
        padded = np.zeros((len(piece), blocks * block_size), np.float32)
        padded[:, :columns] = piece
        scales[start : start + at_once] = _best_scales(padded.reshape(-1, block_size), bits).reshape(-1, blocks)
    return scales


def _best_scales(blocks: NDArray[np.float32], bits: int) -> NDArray[np.float16]:
    """The scale [B] of each block [B, block_size]."""
    highest, lowest = blocks.max(axis=1), blocks.min(axis=1)
    largest = np.where(highest > -lowest, highest, lowest)
    tried = np.clip(largest / LARGEST_WEIGHT_BECOMES[bits][:, None], -_LARGEST_SCALE, _LARGEST_SCALE).astype(np.float16)
    if len(tried) == 1:
        only: NDArray[np.float16] = tried[0]
        return only
    scales = tried.astype(np.float32)[:, :, None]
    errors = rounded(blocks, scales, bits) * scales
    errors -= blocks
    best: NDArray[np.float16] = tried[np.einsum("tbi,tbi->tb", errors, errors).argmin(axis=0), np.arange(len(blocks))]
    return best


def rounded(weights: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The nearest integers in range; 0 where the scale is 0, as that of weights too small for float16 is."""
    integers = weights * np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    np.rint(integers, out=integers)
    return np.clip(integers, SMALLEST_INTEGER[bits], LARGEST_INTEGER[bits], out=integers)
