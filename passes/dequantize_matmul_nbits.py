from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

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

_ATTRIBUTES = {"K", "N", "bits", "block_size", "accuracy_level", "weight_prepacked"}


class DequantizeMatMulNBitsPass(ir.passes.InPlacePass):
    """Replace each com.microsoft.MatMulNBits by a MatMul with a float32 weight W[K, N], and an Add if it has a bias.

    w[k, n] = (q[n, k] - zero_point[n, k // block_size]) * scale[n, k // block_size], rounded as onnxruntime rounds it.
    Each weight is dequantized when it is written. What ``accuracy_level`` allows, to quantize the hidden state as well,
    is not done.

    Raises:
        ir.passes.PreconditionError: a node is not float32, has a computed weight, a ``g_idx``, a prepacked weight or an
            attribute that is not known, or its constants do not fit its attributes.
    """

    def requires(self, model: ir.Model) -> None:
        for node in _quantized_products(model):
            _read(node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = _quantized_products(model)
        weights: dict[tuple[object, ...], ir.Value] = {}
        for node in nodes:
            weight = _read(node)
            key = (*node.inputs[1:4], weight.rows, weight.columns, weight.bits, weight.block_size)
            if key not in weights:
                weights[key] = register(model.graph, f"{_name(node, weight.bits)}.weight", weight.dequantized())
            _replace(model.graph, node, _name(node, weight.bits), weights[key])
        return ir.passes.PassResult(model, bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        for node in _quantized_products(model):
            raise ir.passes.PostconditionError(f"{node.name} reads a quantized weight")


@dataclasses.dataclass(frozen=True)
class _Weight:
    """The weight of a MatMulNBits, whose constants fit each other.

    Attributes:
        rows: K.
        columns: N.
        packed: uint8, ceil(K / block_size) whole blocks for each column.
        scales: float32, one for each column and block.
        zero_points: packed as the weight is or float32, one for each column and block; 2^(bits - 1) if None.
    """

    rows: int
    columns: int
    bits: int
    block_size: int
    packed: ir.TensorProtocol
    scales: ir.TensorProtocol
    zero_points: ir.TensorProtocol | None

    def dequantized(self) -> ir.LazyTensor:
        """W[K, N]."""
        return ir.LazyTensor(self._dequantize, ir.DataType.FLOAT, ir.Shape([self.rows, self.columns]))

    def _dequantize(self) -> ir.TensorProtocol:
        integers = unpack(read_constant(self.packed).reshape(self.columns, -1), self.bits, self.rows)
        scales = read_constant(self.scales).reshape(self.columns, -1)
        blocks = scales.shape[1]
        if self.zero_points is None:
            zero_points = np.array(1 << (self.bits - 1))
        else:
            zero_points = read_constant(self.zero_points).reshape(self.columns, -1)
            if self.zero_points.dtype == ir.DataType.UINT8:
                zero_points = unpack(zero_points, self.bits, blocks)
        return ir.Tensor(dequantize(integers.T, scales.T, zero_points.T, axis=0, block_size=self.block_size))


def _quantized_products(model: ir.Model) -> list[ir.Node]:
    """Each MatMulNBits that is onnxruntime's own operator."""
    return [
        node
        for node in model.graph
        if (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits")
        and node.op_identifier() not in model.functions
    ]


def _read(node: ir.Node) -> _Weight:
    require_attributes_among(node, _ATTRIBUTES)
    require(3 <= len(node.inputs) <= 6 and len(node.outputs) == 1, node, "has too few or too many inputs or outputs")
    require(node.inputs[0] is not None, node, "has no hidden state")
    require(given_input(node, 4) is None, node, "has a g_idx, which sparsecc does not read")
    require(integer(node, "weight_prepacked", 0) == 0, node, "has a weight prepacked for CUDA")
    rows, columns, bits = integer(node, "K"), integer(node, "N"), integer(node, "bits", 4)
    block_size = contrib_block_size(node)
    require(bits in (2, 4, 8), node, f"has weights of {bits} bits; sparsecc reads 2, 4 and 8")
    require(rows > 0 and columns > 0, node, f"has a weight of shape [{rows}, {columns}]")
    blocks = -(-rows // block_size)
    packed = _read_packed(node, (columns, blocks, block_size * bits // 8))
    scales = float32_scales(node, 2)
    _require_one_of_each(node, scales, columns, blocks, "scales")
    zero_points = _read_zero_points(node, columns, blocks, bits)
    _check_bias(node, columns)
    return _Weight(rows, columns, bits, block_size, packed, scales, zero_points)


def _read_packed(node: ir.Node, expected: tuple[int, ...]) -> ir.TensorProtocol:
    packed, shape = reshaped_constant_input(node, 1, "weight")
    require(packed.dtype == ir.DataType.UINT8, node, f"has a weight of type {packed.dtype.name}, not UINT8")
    require(shape == expected, node, f"has a weight of shape {list(shape)}, not {list(expected)}")
    return packed


def _read_zero_points(node: ir.Node, columns: int, blocks: int, bits: int) -> ir.TensorProtocol | None:
    if given_input(node, 3) is None:
        return None
    zero_points = constant_input(node, 3, "zero_points")
    if zero_points.dtype == ir.DataType.UINT8:
        _require_one_of_each(node, zero_points, columns, -(-blocks * bits // 8), "zero_points")
    else:
        is_float32 = zero_points.dtype == ir.DataType.FLOAT
        require(is_float32, node, f"has zero_points of type {zero_points.dtype.name}, neither UINT8 nor FLOAT")
        _require_one_of_each(node, zero_points, columns, blocks, "zero_points")
    return zero_points


def _check_bias(node: ir.Node, columns: int) -> None:
    if given_input(node, 5) is not None:
        bias = constant_input(node, 5, "bias")
        is_vector = bias.dtype == ir.DataType.FLOAT and shape_of(node, bias, "bias") == (columns,)
        require(is_vector, node, f"has a bias that is not float32 [{columns}]")


def _require_one_of_each(node: ir.Node, tensor: ir.TensorProtocol, columns: int, count: int, name: str) -> None:
    """Either two axes or, as older exporters write it, one."""
    shape = shape_of(node, tensor, name)
    is_right = shape in ((columns, count), (columns * count,))
    require(is_right, node, f"has {name} of shape {list(shape)}, not {[columns, count]}")


def _name(node: ir.Node, bits: int) -> str:
    """The name that the product had before quantizers appended to it."""
    return (node.name or "").removesuffix(f"_Q{bits}").removesuffix("NBits")


def _replace(graph: ir.Graph, node: ir.Node, name: str, weight: ir.Value) -> None:
    nodes = [ir.node("MatMul", [node.inputs[0], weight], name=name)]
    bias = given_input(node, 5)
    if bias is not None:
        product = nodes[0].outputs[0]
        product.name = f"{name}/product"
        product.type, product.shape = node.outputs[0].type, node.outputs[0].shape
        nodes.append(ir.node("Add", [product, bias], name=f"{name.removesuffix('/MatMul')}/Add"))
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
