"""The arithmetic of weights that are stored as small integers: (integer - zero point) * scale, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_ENTRIES_AT_ONCE = 1 << 22
"""What is held beside the integers and the result, in entries."""


def read_constant(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """A copy of a tensor, of which nothing stays mapped.

    Raises:
        ValueError: its data has another size than its shape says.
    """
    array = np.array(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return array


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The first ``count`` numbers of each row of bytes [..., B] that hold 8 / ``bits`` numbers each, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return numbers.reshape(*packed.shape[:-1], -1)[..., :count]


def dequantize(
    integers: NDArray[Any], scales: NDArray[np.float32], zero_points: NDArray[Any], axis: int, block_size: int
) -> NDArray[np.float32]:
    """(integers - zero points) * scales, where each run of ``block_size`` entries along ``axis`` shares the latter two.

    integers is [..., D, ...] of any type, scales [..., ceil(D / block_size), ...] with sizes of 1 elsewhere if shared,
    zero_points can be broadcast to scales.
    """
    result = np.empty(integers.shape, np.float32)
    source, target = np.moveaxis(integers, axis, 0), np.moveaxis(result, axis, 0)
    scales_by_block = np.moveaxis(scales, axis, 0)
    zero_points_by_block = np.moveaxis(np.broadcast_to(zero_points, scales.shape), axis, 0)
    step = max(1, _ENTRIES_AT_ONCE // max(1, source[:1].size))
    for start in range(0, len(source), step):
        piece = slice(start, start + step)
        blocks = np.arange(start, min(start + step, len(source))) // block_size
        centred = source[piece].astype(np.float32) - zero_points_by_block[blocks].astype(np.float32)
        np.multiply(centred, scales_by_block[blocks], out=target[piece])
    return result
