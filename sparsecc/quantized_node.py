"""Read what a node says about its quantized constants, trusting nothing of it."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import onnx_ir as ir

_SMALLEST_CONTRIB_BLOCK = 16
_LARGEST_RANK = 8


def require(condition: bool, node: ir.Node, complaint: str) -> None:
    """Refuse a node.

    Raises:
        ir.passes.PreconditionError: the condition does not hold; the message is one line whatever the node's name.
    """
    if not condition:
        raise ir.passes.PreconditionError(f"{node.op_type} {node.name!r} {complaint}")


def require_attributes_among(node: ir.Node, names: Collection[str]) -> None:
    """Refuse a node with an attribute of another name.

    Raises:
        ir.passes.PreconditionError: it has one.
    """
    for name in node.attributes:
        require(name in names, node, f"has the attribute {name!r}, which sparsecc does not know")


def integer(node: ir.Node, name: str, default: int | None = None) -> int:
    """An attribute's value.

    Raises:
        ir.passes.PreconditionError: it is missing and has no default, or is no integer.
    """
    attribute = node.attributes.get(name)
    if attribute is None and default is not None:
        return default
    is_integer = attribute is not None and not attribute.is_ref() and attribute.type == ir.AttributeType.INT
    require(is_integer, node, f"has no integer {name}")
    assert attribute is not None
    return attribute.as_int()


def given_input(node: ir.Node, index: int) -> ir.Value | None:
    """An input, or None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant_input(node: ir.Node, index: int, name: str) -> ir.TensorProtocol:
    """The tensor of an initializer or a Constant node that a node reads.

    Raises:
        ir.passes.PreconditionError: the input is absent or computed.
    """
    tensor = constant(given_input(node, index))
    require(tensor is not None, node, f"has no constant {name}")
    assert tensor is not None
    return tensor


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant node."""
    if value is None or (value.const_value is None and value.producer() is None):
        return None
    try:
        return ir.convenience.get_const_tensor(value)
    except ValueError:
        return None


def reshaped_constant_input(node: ir.Node, index: int, name: str) -> tuple[ir.TensorProtocol, tuple[int, ...]]:
    """A constant that a node reads, directly or through a Reshape, and the shape that it then has.

    Weights that an embedding and a head share are reshaped for one of them.

    Raises:
        ir.passes.PreconditionError: the input is absent, computed, or reshaped to another size.
    """
    value = given_input(node, index)
    reshape = value.producer() if value is not None else None
    if reshape is None or (reshape.domain, reshape.op_type) != ("", "Reshape"):
        tensor = constant_input(node, index, name)
        return tensor, shape_of(node, tensor, name)
    tensor = constant_input(reshape, 0, "data")
    target = constant_input(reshape, 1, "shape")
    is_small = target.dtype == ir.DataType.INT64 and len(target.shape) == 1 and target.size <= _LARGEST_RANK
    require(is_small, reshape, "has no shape of a few integers")
    sizes = [int(size) for size in target.numpy()]
    total = prod(shape_of(reshape, tensor, "data"))
    if sizes.count(-1) == 1:
        known = -prod(sizes)
        sizes[sizes.index(-1)] = total // known if known > 0 else 0
    require(min(sizes, default=0) > 0 and prod(sizes) == total, reshape, "does not keep the size of its data")
    return tensor, tuple(sizes)


def float32_scales(node: ir.Node, index: int) -> ir.TensorProtocol:
    """The scales that a node reads, whose type is the one it computes in.

    Raises:
        ir.passes.PreconditionError: they are computed or not float32.
    """
    scales = constant_input(node, index, "scales")
    is_float32 = scales.dtype == ir.DataType.FLOAT
    require(
        is_float32,
        node,
        f"computes in {scales.dtype.name}, but sparsecc takes float32 models, as exports for the CPU are",
    )
    return scales


def contrib_block_size(node: ir.Node, default: int | None = None) -> int:
    """The ``block_size`` of an operator of onnxruntime's own.

    Raises:
        ir.passes.PreconditionError: it is missing, or no power of two from 16 on.
    """
    size = integer(node, "block_size", default)
    is_power_of_two = size >= _SMALLEST_CONTRIB_BLOCK and size & (size - 1) == 0
    require(is_power_of_two, node, f"has block_size {size}, which is no power of two from {_SMALLEST_CONTRIB_BLOCK} on")
    return size


def shape_of(node: ir.Node, tensor: ir.TensorProtocol, name: str) -> tuple[int, ...]:
    """The sizes of a constant.

    Raises:
        ir.passes.PreconditionError: one of them is 0 or unknown.
    """
    sizes = tuple(size if isinstance(size, int) else 0 for size in tensor.shape)
    require(min(sizes, default=1) > 0, node, f"has {name} of shape {list(sizes)}")
    return sizes
