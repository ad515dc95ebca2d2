from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.block_dequantization import dequantize, read_constant, unpack
from sparsecc.initializers import register
from sparsecc.quantized_node import (
    constant_input,
    contrib_block_size,
    float32_scales,
    given_input,
    integer,
    require,
    require_attributes_among,
    reshaped_constant_input,
    shape_of,
)

_ATTRIBUTES = {"bits", "block_size", "gather_axis", "quantize_axis"}
_INTEGERS_OF_FOUR_BITS = {ir.DataType.INT4, ir.DataType.UINT4}


class DequantizeGatherPass(ir.passes.InPlacePass):
    """Replace each com.microsoft.GatherBlockQuantized, as embeddings are, by a Gather of float32 rows.

    The rows are dequantized when they are written. An index that is out of range is an error then, where
    GatherBlockQuantized gives zeros.

    Raises:
        ir.passes.PreconditionError: a node does not give float32, has computed data or an attribute that is not known,
            or its constants do not fit its attributes.
    """

    def requires(self, model: ir.Model) -> None:
        for node in _quantized_gathers(model):
            _read(node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = _quantized_gathers(model)
        for node in nodes:
            table = _read(node)
            name = (node.name or "").removesuffix("_Q4").removesuffix("_Q8").removesuffix("BlockQuantized")
            data = register(model.graph, f"{name}.weight", table.dequantized())
            gather = ir.node("Gather", [data, node.inputs[1]], {"axis": table.gather_axis}, name=name)
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [gather], node.outputs, gather.outputs)
        return ir.passes.PassResult(model, bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        for node in _quantized_gathers(model):
            raise ir.passes.PostconditionError(f"{node.name} reads quantized data")


@dataclasses.dataclass(frozen=True)
class _Table:
    """The data of a GatherBlockQuantized, whose constants fit each other.

    Attributes:
        shape: of the data, once unpacked.
        bits: how many bits a number has where several are packed into a byte along the last axis; 8 where none are.
        axis: the axis that has blocks; the last if ``bits`` is less than 8.
        default_zero_point: serves where ``zero_points`` is None.
    """

    shape: tuple[int, ...]
    bits: int
    axis: int
    block_size: int
    gather_axis: int
    integers: ir.TensorProtocol
    scales: ir.TensorProtocol
    zero_points: ir.TensorProtocol | None
    default_zero_point: int

    def dequantized(self) -> ir.LazyTensor:
        return ir.LazyTensor(self._dequantize, ir.DataType.FLOAT, ir.Shape(self.shape))

    def _dequantize(self) -> ir.TensorProtocol:
        scales = read_constant(self.scales)
        if self.zero_points is None:
            zero_points = np.array(self.default_zero_point)
        else:
            zero_points = self._unpacked(self.zero_points, scales.shape)
        integers = self._unpacked(self.integers, self.shape)
        return ir.Tensor(dequantize(integers, scales, zero_points, self.axis, self.block_size))

    def _unpacked(self, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> NDArray[Any]:
        numbers = read_constant(tensor)
        if self.bits < 8:
            numbers = unpack(numbers.reshape(*shape[:-1], -1), self.bits, shape[-1])
        return numbers.reshape(shape)


def _quantized_gathers(model: ir.Model) -> list[ir.Node]:
    """Each GatherBlockQuantized that is onnxruntime's own operator."""
    return [
        node
        for node in model.graph
        if (node.domain, node.op_type) == ("com.microsoft", "GatherBlockQuantized")
        and node.op_identifier() not in model.functions
    ]


def _read(node: ir.Node) -> _Table:
    require_attributes_among(node, _ATTRIBUTES)
    require(3 <= len(node.inputs) <= 4 and len(node.outputs) == 1, node, "has too few or too many inputs or outputs")
    require(node.inputs[1] is not None, node, "has no indices")
    integers, stored = reshaped_constant_input(node, 0, "data")
    gather_axis, axis = _axis(node, "gather_axis", 0, len(stored)), _axis(node, "quantize_axis", 1, len(stored))
    bits, block_size = integer(node, "bits", 4), contrib_block_size(node, 128)
    is_packed = integers.dtype == ir.DataType.UINT8
    if is_packed:
        require(bits in (2, 4, 8), node, f"has data of {bits} bits; sparsecc reads 2, 4 and 8")
        is_by_row = axis == len(stored) - 1 and gather_axis == 0 != axis
        require(is_by_row, node, "has blocks that are not along the last axis of its rows")
    else:
        is_int4 = integers.dtype in _INTEGERS_OF_FOUR_BITS and bits == 4
        require(is_int4, node, f"has data of type {integers.dtype.name} and {bits} bits; sparsecc reads UINT8 and INT4")
    in_byte = 8 // bits if is_packed else 1
    shape = (*stored[:-1], stored[-1] * in_byte)
    blocks = tuple(-(-size // block_size) if place == axis else size for place, size in enumerate(shape))
    scales = float32_scales(node, 2)
    _require_shape(node, scales, blocks, "scales")
    zero_points = constant_input(node, 3, "zero_points") if given_input(node, 3) is not None else None
    if zero_points is not None:
        require(zero_points.dtype == integers.dtype, node, f"has zero_points of type {zero_points.dtype.name}")
        _require_shape(node, zero_points, (*blocks[:-1], -(-blocks[-1] // in_byte)), "zero_points")
    return _Table(
        shape=shape,
        bits=bits if is_packed else 8,
        axis=axis,
        block_size=block_size,
        gather_axis=gather_axis,
        integers=integers,
        scales=scales,
        zero_points=zero_points,
        default_zero_point=1 << (bits - 1) if is_packed else 0,
    )


def _require_shape(node: ir.Node, tensor: ir.TensorProtocol, expected: tuple[int, ...], name: str) -> None:
    shape = shape_of(node, tensor, name)
    require(shape == expected, node, f"has {name} of shape {list(shape)}, not {list(expected)}")


def _axis(node: ir.Node, name: str, default: int, rank: int) -> int:
    axis = integer(node, name, default)
    require(-rank <= axis < rank, node, f"has {name} {axis}, but its data has rank {rank}")
    return axis % rank
