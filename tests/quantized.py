"""Quantized constants in float64, and models that compute with them, written apart from what reads them."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .graphs import model_of


def bit_fields(packed: NDArray[np.uint8], bits: int) -> NDArray[np.float64]:
    """The numbers of ``bits`` bits in each row of bytes, low bits first."""
    by_bit = np.unpackbits(packed, axis=-1, bitorder="little")
    return by_bit.reshape(*packed.shape[:-1], -1, bits) @ (2.0 ** np.arange(bits))


def blockwise(
    integers: NDArray[Any], scales: NDArray[Any], zero_points: NDArray[Any] | float, axis: int, block_size: int
) -> NDArray[np.float64]:
    """(integer - zero point) * scale, one block after the other."""
    result = np.zeros(integers.shape)
    zero_points = np.zeros(scales.shape) + np.asarray(zero_points, np.float64)
    for block in range(-(-integers.shape[axis] // block_size)):
        place = [slice(None)] * integers.ndim
        place[axis] = slice(block * block_size, (block + 1) * block_size)
        scale, zero_point = (np.take(array, [block], axis=axis) for array in (scales, zero_points))
        result[tuple(place)] = (integers[tuple(place)].astype(np.float64) - zero_point) * scale.astype(np.float64)
    return result


def matmul_nbits(
    constants: dict[str, NDArray[Any]], attributes: dict[str, int], domain: str = "com.microsoft"
) -> ir.Model:
    """A model of one MatMulNBits; the constants are named packed, scales and, if there, zero_points, g_idx and bias."""
    names = ["packed", "scales", "zero_points", "g_idx", "bias"]
    inputs = ", ".join(name if name in constants else '""' for name in names)
    written = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    text = f"""
    product (float[s, k] x) => (float[s, n] y) {{
      ["/up/MatMul_Q{attributes.get("bits", 4)}"] y = {domain}.MatMulNBits <{written}> (x, {inputs})
    }}"""
    return model_of(text, constants)


def weight_of(model: ir.Model, op: str, index: int) -> NDArray[Any]:
    """The constant that the one node of that operator reads, computed now."""
    (node,) = (node for node in model.graph if node.op_type == op)
    value = node.inputs[index]
    assert value is not None
    assert isinstance(value.const_value, ir.LazyTensor)
    return np.asarray(value.const_value.numpy())
