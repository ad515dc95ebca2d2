"""The operators that the executor knows, one file a family, by domain and name."""

from __future__ import annotations

from collections.abc import Mapping

from sparsecc.runtime_ops.triton.operators import (
    attention,
    elementwise,
    matrix_products,
    normalization,
    quantized,
    reductions,
    shapes,
    sparse,
    sparse_linear,
)
from sparsecc.runtime_ops.triton.operators.operator import Operator

OPERATORS: Mapping[tuple[str, str], Operator] = {
    **attention.OPERATORS,
    **elementwise.OPERATORS,
    **matrix_products.OPERATORS,
    **normalization.OPERATORS,
    **quantized.OPERATORS,
    **reductions.OPERATORS,
    **shapes.OPERATORS,
    **sparse.OPERATORS,
    **sparse_linear.OPERATORS,
}
