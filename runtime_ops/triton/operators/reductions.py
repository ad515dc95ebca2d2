"""Operators that reduce or order entries along axes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch

from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement, integers, require

_Reduction = Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]


def _reduction(reduce: _Reduction) -> Operator:
    """An operator whose axes are an input, or an attribute as in older opsets; without any it reduces all axes."""

    def bind(node: ir.Node, _placement: Placement) -> Kernel:
        keeps_axes = bool(node.attributes.get_int("keepdims", 1))
        does_nothing_without_axes = bool(node.attributes.get_int("noop_with_empty_axes", 0))
        fixed = tuple(node.attributes.get_ints("axes", ()))

        def reduced(tensor: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
            chosen = fixed if axes is None else tuple(integers(axes))
            if not chosen and does_nothing_without_axes:
                return tensor
            return reduce(tensor, chosen or tuple(range(tensor.dim())), keeps_axes)

        return reduced

    return Operator(bind)


def _sum(tensor: torch.Tensor, axes: tuple[int, ...], keeps_axes: bool) -> torch.Tensor:
    return tensor.sum(axes, keepdim=keeps_axes, dtype=tensor.dtype) if axes else tensor


def _product(tensor: torch.Tensor, axes: tuple[int, ...], keeps_axes: bool) -> torch.Tensor:
    for axis in sorted((axis % tensor.dim() for axis in axes), reverse=True):
        tensor = tensor.prod(axis, keepdim=keeps_axes, dtype=tensor.dtype)
    return tensor


def _bind_softmax(node: ir.Node, _placement: Placement) -> Kernel:
    axis = node.attributes.get_int("axis", -1)
    return lambda tensor: torch.softmax(tensor, axis)


def _bind_top_k(node: ir.Node, _placement: Placement) -> Kernel:
    axis = node.attributes.get_int("axis", -1)
    is_largest = bool(node.attributes.get_int("largest", 1))
    is_sorted = bool(node.attributes.get_int("sorted", 1))

    def top_k(tensor: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.topk(tensor, integers(count)[0], axis, is_largest, is_sorted))

    return top_k


def _bind_arg_max(node: ir.Node, _placement: Placement) -> Kernel:
    axis = node.attributes.get_int("axis", 0)
    keeps_axis = bool(node.attributes.get_int("keepdims", 1))
    require(not node.attributes.get_int("select_last_index", 0), node, "asks for the last of equal entries")
    return lambda tensor: torch.argmax(tensor, axis, keepdim=keeps_axis)


def _bind_cumulative_sum(node: ir.Node, _placement: Placement) -> Kernel:
    is_plain = not node.attributes.get_int("exclusive", 0) and not node.attributes.get_int("reverse", 0)
    require(is_plain, node, "is exclusive or reversed")
    return lambda tensor, axis: torch.cumsum(tensor, integers(axis)[0], dtype=tensor.dtype)


def _bind_lp_normalization(node: ir.Node, _placement: Placement) -> Kernel:
    axis, order = node.attributes.get_int("axis", -1), node.attributes.get_int("p", 2)
    return lambda tensor: tensor / torch.linalg.vector_norm(tensor, order, axis, keepdim=True)


def _euclidean_norm(tensor: torch.Tensor, axes: tuple[int, ...], keeps_axes: bool) -> torch.Tensor:
    return tensor.square().sum(axes, keepdim=keeps_axes).sqrt()


OPERATORS = {
    ("", "ArgMax"): Operator(_bind_arg_max),
    ("", "CumSum"): Operator(_bind_cumulative_sum),
    ("", "LpNormalization"): Operator(_bind_lp_normalization),
    ("", "ReduceL2"): _reduction(_euclidean_norm),
    ("", "ReduceMax"): _reduction(torch.amax),
    ("", "ReduceMean"): _reduction(torch.mean),
    ("", "ReduceMin"): _reduction(torch.amin),
    ("", "ReduceProd"): _reduction(_product),
    ("", "ReduceSum"): _reduction(_sum),
    ("", "Softmax"): Operator(_bind_softmax),
    ("", "TopK"): Operator(_bind_top_k),
}
