"""Dense matrix products."""

from __future__ import annotations

import onnx_ir as ir
import torch

from sparsecc.runtime_ops.triton.operators.operator import Kernel, Operator, Placement


def _bind_gemm(node: ir.Node, _placement: Placement) -> Kernel:
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    transposes_a, transposes_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)

    def gemm(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        product = (a.t() if transposes_a else a) @ (b.t() if transposes_b else b)
        if alpha != 1:
            product = alpha * product
        return product if c is None else product + (c if beta == 1 else beta * c)

    return gemm


OPERATORS = {
    ("", "Gemm"): Operator(_bind_gemm),
    ("", "MatMul"): Operator(lambda _node, _placement: torch.matmul),
}
