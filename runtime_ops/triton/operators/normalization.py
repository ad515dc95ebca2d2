"""Norms of hidden states; means are taken in float32 whatever the graph computes in."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch.nn import functional

from sparsecc.operators import is_read
from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement, is_for_triton, require
from sparsecc.runtime_ops.triton.reference import rms_norm


def _layer_norm(hidden: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    wide_bias = None if bias is None else bias.float()
    return functional.layer_norm(hidden.float(), hidden.shape[-1:], scale.float(), wide_bias, epsilon).to(hidden.dtype)


def _epsilon(node: ir.Node, default: float) -> float:
    return node.attributes.get_float("epsilon", default)


def _require_last_axis(node: ir.Node) -> None:
    require(node.attributes.get_int("axis", -1) == -1, node, "norms other axes than the last")
    require(not any(map(is_read, node.outputs[1:])), node, "gives its mean or deviation")


def _bind_rms_norm(node: ir.Node, _placement: Placement) -> Kernel:
    _require_last_axis(node)
    epsilon = _epsilon(node, 1e-5)

    def norm(hidden: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if is_for_triton(hidden):
            from sparsecc.runtime_ops.triton.row_norm import row_norm

            return row_norm(hidden, None, scale, epsilon)[0]
        return rms_norm(hidden, scale, epsilon)

    return norm


def _bind_layer_norm(node: ir.Node, _placement: Placement) -> Kernel:
    _require_last_axis(node)
    epsilon = _epsilon(node, 1e-5)
    return lambda hidden, scale, bias=None: _layer_norm(hidden, scale, bias, epsilon)


def _require_no_statistics(node: ir.Node) -> None:
    require(not any(map(is_read, node.outputs[1:3])), node, "gives its mean or deviation")


def _bind_skip_rms_norm(node: ir.Node, _placement: Placement) -> Kernel:
    _require_no_statistics(node)
    epsilon = _epsilon(node, 1e-12)

    def skip_rms_norm(
        hidden: torch.Tensor, skip: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        if is_for_triton(hidden, skip) and bias is None:
            from sparsecc.runtime_ops.triton.row_norm import row_norm

            normed, total = row_norm(hidden, skip, scale, epsilon)
            return normed, total, total, total
        total = hidden + skip if bias is None else hidden + skip + bias
        return rms_norm(total, scale, epsilon), total, total, total

    return skip_rms_norm


def _bind_skip_layer_norm(node: ir.Node, _placement: Placement) -> Kernel:
    _require_no_statistics(node)
    epsilon = _epsilon(node, 1e-12)

    def skip_layer_norm(
        hidden: torch.Tensor,
        skip: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        total = hidden + skip if bias is None else hidden + skip + bias
        return _layer_norm(total, scale, shift, epsilon), total, total, total

    return skip_layer_norm


OPERATORS = {
    ("", "LayerNormalization"): Operator(_bind_layer_norm),
    ("", "RMSNormalization"): Operator(_bind_rms_norm),
    ("", "SimplifiedLayerNormalization"): Operator(_bind_rms_norm),
    ("com.microsoft", "SimplifiedLayerNormalization"): Operator(_bind_rms_norm),
    ("com.microsoft", "SkipLayerNormalization"): Operator(_bind_skip_layer_norm),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): Operator(_bind_skip_rms_norm),
}
