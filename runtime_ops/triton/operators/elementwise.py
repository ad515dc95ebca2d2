"""Operators that compute each entry by itself."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
from torch.nn import functional

from sparsecc.runtime_ops.triton.operators.host_values import on_one_device
from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement, require


def _plain(function: Callable[..., torch.Tensor]) -> Operator:
    aligned = on_one_device(function)
    return Operator(lambda _node, _placement: aligned)


def _folded(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    """An operator of any number of inputs."""

    def fold(first: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        for other in others:
            first = function(first, other)
        return first

    return _plain(fold)


def _divide(dividend: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    if dividend.is_floating_point():
        return dividend / divisor
    return torch.div(dividend, divisor, rounding_mode="trunc")


def _bind_mod(node: ir.Node, _placement: Placement) -> Kernel:
    return on_one_device(torch.fmod if node.attributes.get_int("fmod", 0) else torch.remainder)


def _bind_cast(node: ir.Node, placement: Placement) -> Kernel:
    dtype = placement.torch_type(ir.DataType(node.attributes.get_int("to")))
    return lambda tensor: tensor.to(dtype)


def _bind_gelu(node: ir.Node, _placement: Placement) -> Kernel:
    approximation = node.attributes.get_string("approximate", "none")
    return lambda tensor: functional.gelu(tensor, approximate=approximation)


def _fast_gelu(tensor: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return functional.gelu(tensor if bias is None else tensor + bias, approximate="tanh")


def _bind_quick_gelu(node: ir.Node, _placement: Placement) -> Kernel:
    alpha = node.attributes.get_float("alpha", 1.702)
    return lambda tensor: tensor * torch.sigmoid(alpha * tensor)


def _clip(tensor: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None) -> torch.Tensor:
    if low is not None:
        tensor = torch.maximum(tensor, low)
    return tensor if high is None else torch.minimum(tensor, high)


def _bind_leaky_relu(node: ir.Node, _placement: Placement) -> Kernel:
    slope = node.attributes.get_float("alpha", 0.01)
    return lambda tensor: functional.leaky_relu(tensor, slope)


def _bind_dropout(node: ir.Node, _placement: Placement) -> Kernel:
    require(len(node.outputs) == 1, node, "asks for a mask")
    return lambda tensor, *_ratio_and_mode: tensor


OPERATORS = {
    ("", "Abs"): _plain(torch.abs),
    ("", "Add"): _plain(torch.add),
    ("", "And"): _plain(torch.logical_and),
    ("", "Cast"): Operator(_bind_cast),
    ("", "CastLike"): Operator(lambda _node, _placement: lambda tensor, like: tensor.to(like.dtype)),
    ("", "Ceil"): _plain(torch.ceil),
    ("", "Clip"): Operator(lambda _node, _placement: _clip),
    ("", "Cos"): _plain(torch.cos),
    ("", "Div"): _plain(_divide),
    ("", "Dropout"): Operator(_bind_dropout),
    ("", "Equal"): _plain(torch.eq),
    ("", "Erf"): _plain(torch.erf),
    ("", "Exp"): _plain(torch.exp),
    ("", "Floor"): _plain(torch.floor),
    ("", "Gelu"): Operator(_bind_gelu),
    ("", "Greater"): _plain(torch.gt),
    ("", "GreaterOrEqual"): _plain(torch.ge),
    ("", "Identity"): _plain(lambda tensor: tensor),
    ("", "IsInf"): _plain(torch.isinf),
    ("", "IsNaN"): _plain(torch.isnan),
    ("", "LeakyRelu"): Operator(_bind_leaky_relu),
    ("", "Less"): _plain(torch.lt),
    ("", "LessOrEqual"): _plain(torch.le),
    ("", "Log"): _plain(torch.log),
    ("", "Max"): _folded(torch.maximum),
    ("", "Min"): _folded(torch.minimum),
    ("", "Mod"): Operator(_bind_mod),
    ("", "Mul"): _plain(torch.mul),
    ("", "Neg"): _plain(torch.neg),
    ("", "Not"): _plain(torch.logical_not),
    ("", "Or"): _plain(torch.logical_or),
    ("", "Pow"): _plain(lambda base, exponent: torch.pow(base, exponent).to(base.dtype)),
    ("", "Reciprocal"): _plain(torch.reciprocal),
    ("", "Relu"): _plain(torch.relu),
    ("", "Sigmoid"): _plain(torch.sigmoid),
    ("", "Sign"): _plain(torch.sign),
    ("", "Sin"): _plain(torch.sin),
    ("", "Softplus"): _plain(functional.softplus),
    ("", "Sqrt"): _plain(torch.sqrt),
    ("", "Sub"): _plain(torch.sub),
    ("", "Swish"): _plain(functional.silu),
    ("", "Tanh"): _plain(torch.tanh),
    ("", "Where"): _plain(torch.where),
    ("com.microsoft", "FastGelu"): Operator(lambda _node, _placement: _fast_gelu),
    ("com.microsoft", "Gelu"): _plain(functional.gelu),
    ("com.microsoft", "QuickGelu"): Operator(_bind_quick_gelu),
}
