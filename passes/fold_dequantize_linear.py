from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx_ir as ir

from sparsecc.block_dequantization import dequantize, read_constant
from sparsecc.initializers import register
from sparsecc.quantized_node import (
    constant,
    constant_input,
    float32_scales,
    given_input,
    integer,
    require,
    require_attributes_among,
    shape_of,
)

_ATTRIBUTES = {"axis", "block_size", "output_dtype"}
_DOMAINS = {"", "com.microsoft"}
_INTEGERS = {
    ir.DataType.INT2,
    ir.DataType.UINT2,
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.INT8,
    ir.DataType.UINT8,
}


class FoldDequantizeLinearPass(ir.passes.InPlacePass):
    """Replace each DequantizeLinear of constant integers of 2, 4 or 8 bits by the float32 constant that it gives.

    The scales may be one for all, one for each index of an axis, or one for each block along an axis. The constant is
    computed when it is written. What is no constant, or of another type, is left alone.

    Raises:
        ir.passes.PreconditionError: such a node does not give float32, has an attribute that is not known, or its
            constants do not fit each other.
    """

    def requires(self, model: ir.Model) -> None:
        for node in _constant_dequantizations(model):
            _read(node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = _constant_dequantizations(model)
        for node in nodes:
            name = f"{node.inputs[0].name}_dequantized" if node.inputs[0] is not None else "dequantized"
            folded = register(model.graph, name, _read(node).dequantized())
            for consumer in node.outputs[0].consumers():
                consumer.name = re.sub(r"_matmul_Q\d+$", "", consumer.name or "")
            ir.convenience.replace_all_uses_with(node.outputs[0], folded)
            model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        for node in _constant_dequantizations(model):
            raise ir.passes.PostconditionError(f"{node.name} dequantizes a constant")


@dataclasses.dataclass(frozen=True)
class _Constant:
    """The inputs of a DequantizeLinear that fit each other; ``blocks`` is the shape to which scales are brought."""

    integers: ir.TensorProtocol
    scales: ir.TensorProtocol
    zero_points: ir.TensorProtocol | None
    blocks: tuple[int, ...]
    axis: int
    block_size: int

    def dequantized(self) -> ir.LazyTensor:
        return ir.LazyTensor(self._dequantize, ir.DataType.FLOAT, ir.Shape(self.integers.shape.numpy()))

    def _dequantize(self) -> ir.TensorProtocol:
        integers = read_constant(self.integers)
        scales = read_constant(self.scales).reshape(self.blocks)
        zero_points = np.array(0) if self.zero_points is None else read_constant(self.zero_points).reshape(self.blocks)
        return ir.Tensor(dequantize(integers, scales, zero_points, self.axis, self.block_size))


def _constant_dequantizations(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.op_type == "DequantizeLinear"
        and node.domain in _DOMAINS
        and node.op_identifier() not in model.functions
        and _dequantizes_constant(node)
    ]


def _dequantizes_constant(node: ir.Node) -> bool:
    tensors = [constant(value) for value in node.inputs if value is not None]
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output() or None in tensors:
        return False
    return bool(tensors) and tensors[0] is not None and tensors[0].dtype in _INTEGERS


def _read(node: ir.Node) -> _Constant:
    require_attributes_among(node, _ATTRIBUTES)
    require(2 <= len(node.inputs) <= 3, node, "has too few or too many inputs")
    integers, scales = constant_input(node, 0, "data"), float32_scales(node, 1)
    output_type = integer(node, "output_dtype", 0)
    require(output_type in (0, ir.DataType.FLOAT), node, "does not give float32")
    shape, scales_shape = shape_of(node, integers, "data"), shape_of(node, scales, "scale")
    zero_points = constant_input(node, 2, "zero point") if given_input(node, 2) is not None else None
    if zero_points is not None:
        is_alike = zero_points.dtype == integers.dtype and shape_of(node, zero_points, "zero point") == scales_shape
        require(is_alike, node, "has a zero point of another type than its data or of another shape than its scale")
    blocks, axis, block_size = _blocks(node, shape, scales_shape)
    return _Constant(integers, scales, zero_points, blocks, axis, block_size)


def _blocks(node: ir.Node, shape: tuple[int, ...], scales_shape: tuple[int, ...]) -> tuple[tuple[int, ...], int, int]:
    """The shape that scales are brought to, the axis of the blocks and their size.

    A scale for all is a block as long as the first axis, a scale for each index of an axis a block of one.
    """
    rank, axis, block_size = len(shape), integer(node, "axis", 1), integer(node, "block_size", 0)
    require(block_size >= 0, node, f"has block_size {block_size}")
    if scales_shape in ((), (1,)) and block_size == 0 and rank > 0:
        return (1,) * rank, 0, shape[0]
    require(-rank <= axis < rank, node, f"has axis {axis}, but its data has rank {rank}")
    axis %= rank
    if block_size == 0:
        blocks = tuple(size if place == axis else 1 for place, size in enumerate(shape))
        require(scales_shape == (shape[axis],), node, f"has {list(scales_shape)} scales, not {[shape[axis]]}")
        return blocks, axis, 1
    blocks = tuple(-(-size // block_size) if place == axis else size for place, size in enumerate(shape))
    require(scales_shape == blocks, node, f"has a scale of shape {list(scales_shape)}, not {list(blocks)}")
    return blocks, axis, block_size
