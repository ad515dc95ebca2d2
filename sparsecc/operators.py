"""The names of the sparse operators, apart from their definitions so that reading a graph needs no onnxscript.

What the operators mean is said in :mod:`sparsecc.runtime_ops.definitions`.
"""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "ai.sparsecc"
VERSION = 1
ADDED = "added"
"""The note of a product that a method added beside the projections, and which is read whole for every token."""


def is_threshold(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, "Threshold")


def is_keep_largest(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, "KeepLargest")


def is_selection(node: ir.Node) -> bool:
    """Whether a node zeroes the entries of a hidden state that are to be skipped."""
    return is_threshold(node) or is_keep_largest(node)


def is_gather_active(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, "GatherActive")


def is_sparse_matmul(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, "SparseMatMul")


def is_sparse_matmul_nbits(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (DOMAIN, "SparseMatMulNBits")


def is_product(node: ir.Node) -> bool:
    """Whether a node multiplies active channels by their weight rows, in whatever precision."""
    return is_sparse_matmul(node) or is_sparse_matmul_nbits(node)


def is_sparse_linear(node: ir.Node) -> bool:
    """Whether a node is a Threshold, a GatherActive and a product in one."""
    return node.domain == DOMAIN and node.op_type in ("SparseLinear", "SparseLinearNBits")


def is_gather_matmul(node: ir.Node) -> bool:
    """Whether a node computes chosen output channels of a weight W[N, K], in whatever precision."""
    return node.domain == DOMAIN and node.op_type in ("GatherMatMul", "GatherMatMulNBits")


def is_swiglu(node: ir.Node) -> bool:
    """Whether a node multiplies the second half of its channels by SiLU of the first."""
    return (node.domain, node.op_type) == (DOMAIN, "SwiGLU")


def is_added(node: ir.Node) -> bool:
    """Whether a node is a product that a method added beside the projections."""
    return ADDED in node.metadata_props


def block_size_of(product: ir.Node) -> int:
    """How many weights of a row share a product's scale: 32 where it does not say, 1 where nothing is quantized."""
    return product.attributes.get_int("block_size", 32) if product.op_type.endswith("NBits") else 1


def columns_of(product: ir.Node) -> int:
    """How many output channels a product has, or a SparseLinear, whose weight is an initializer."""
    weight = product.inputs[2]
    assert weight is not None
    assert weight.const_value is not None
    return int(weight.const_value.shape.numpy()[1])


def is_read(value: ir.Value) -> bool:
    """Whether a node or the caller of a graph takes a value."""
    return bool(value.uses()) or value.is_graph_output()


def is_read_once(value: ir.Value) -> bool:
    """Whether one input of one node, and no caller, takes a value."""
    return len(value.uses()) == 1 and not value.is_graph_output()
