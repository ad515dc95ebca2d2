"""What the executor knows of an operator: how a node of it becomes a function of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir
import torch

from sparsecc.errors import SparseccError

Kernel = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]
"""A node as a function: the tensors of its inputs, None where one is left out, to those of its outputs."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a graph is computed, and in which type what the file calls float32 is computed."""

    device: torch.device
    dtype: torch.dtype

    def torch_type(self, dtype: ir.DataType) -> torch.dtype:
        """The type of tensors that stand for those of an ONNX type."""
        return self.dtype if dtype == ir.DataType.FLOAT else stored_type(dtype)


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        bind: reads a node's attributes, once, and gives the function that computes it.
        as_stored: the inputs whose constants keep the type that the file gives them, whatever the graph computes in;
            int4 stays packed there, two to a byte along the last axis, the first in the low half.
    """

    bind: Callable[[ir.Node, Placement], Kernel]
    as_stored: frozenset[int] = frozenset()


_STORED_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


def stored_type(dtype: ir.DataType) -> torch.dtype:
    """The torch type that holds an ONNX type bit for bit.

    Raises:
        SparseccError: torch has none.
    """
    if dtype not in _STORED_TYPES:
        raise SparseccError(f"the executor has no tensors of type {dtype.name}; run the model with --device cpu")
    return _STORED_TYPES[dtype]


def is_for_triton(*tensors: torch.Tensor) -> bool:
    """Whether a kernel computes with tensors; torch does on a CPU, and where gradients of any are asked for."""
    return all(tensor.is_cuda and not tensor.requires_grad for tensor in tensors)


def name_of(node: ir.Node) -> str:
    """A node's name, or the output that tells which it is."""
    return repr(node.name) if node.name else f"of output {node.outputs[0].name!r}"


def require(condition: bool, node: ir.Node, complaint: str) -> None:
    """Refuse a node that asks for what its operator here cannot do.

    Raises:
        SparseccError: the condition does not hold.
    """
    if not condition:
        raise SparseccError(f"{node.op_type} {name_of(node)} {complaint}; run the model with --device cpu")


def has_input(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def integers(tensor: torch.Tensor) -> list[int]:
    """The entries of a tensor that says a shape, an axis or the like."""
    return [int(entry) for entry in tensor.reshape(-1).tolist()]
