"""Choose the scale of each block of weights so that rounding to integers costs the least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsecc.quantization.quantized_weight import BLOCK_SIZE, LARGEST_INTEGER, SMALLEST_INTEGER

_LARGEST_SCALE = np.float32(np.finfo(np.float16).max)

LARGEST_WEIGHT_BECOMES = {
    4: np.array([-8.5, -8, -7.5, -7, -6.5, -6, -5.5, 6, 6.5, 7, 7.5], np.float32),
    8: np.array([127], np.float32),
}
"""What the largest weight of a block, with its sign, is tried to be scaled to. -8 has no positive twin, so scales of
both signs are tried; beyond the range it is clipped, which may pay for the rest of the block."""


def quantize_rows(rows: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """The integers int8 [R, N] and scales float16 [R, ceil(N / BLOCK_SIZE)] of finite rows [R, N].

    Of the tried scales of a block, each as float16 holds it, the one with the least squared error is taken.
    """
    count, columns = rows.shape
    blocks = -(-columns // BLOCK_SIZE)
    padded = np.zeros((count, blocks * BLOCK_SIZE), np.float32)
    padded[:, :columns] = rows
    by_block = padded.reshape(count * blocks, BLOCK_SIZE)
    largest = np.take_along_axis(by_block, np.abs(by_block).argmax(axis=1)[:, None], axis=1)[:, 0]
    tried = largest / LARGEST_WEIGHT_BECOMES[bits][:, None]
    tried = np.clip(tried, -_LARGEST_SCALE, _LARGEST_SCALE).astype(np.float16).astype(np.float32)[:, :, None]
    integers = _rounded(by_block, tried, bits)
    if len(tried) == 1:
        best_integers, best_scales = integers[0], tried[0]
    else:
        best = np.square(integers * tried - by_block).sum(axis=2).argmin(axis=0)[None, :, None]
        best_integers = np.take_along_axis(integers, best, axis=0)[0]
        best_scales = np.take_along_axis(tried, best, axis=0)[0]
    integers_by_row = best_integers.reshape(count, -1)[:, :columns]
    return integers_by_row.astype(np.int8), best_scales.reshape(count, blocks).astype(np.float16)


def _rounded(blocks: NDArray[np.float32], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """The nearest integers in range; 0 where the scale is 0, as that of weights too small for float16 is."""
    quotients = blocks * np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    np.rint(quotients, out=quotients)
    return np.clip(quotients, SMALLEST_INTEGER[bits], LARGEST_INTEGER[bits], out=quotients)
