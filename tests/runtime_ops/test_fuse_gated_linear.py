"""Gate, up and SwiGLU as one operator, where nothing else reads what lies between."""

import numpy as np
import pytest
import torch

from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.runtime_ops.triton.fuse_gated_linear import FuseGatedLinearPass

from ..graphs import model_of, operators

NETWORK = """
network (float[1, s, 8] x) => ({outputs}) {{
  product = ai.sparsecc.SparseLinear <max_sparse_rows = 4> (x, t, w)
  y = ai.sparsecc.SwiGLU ({gated})
  {rest}
}}
"""


def network(outputs="float[1, s, n] y", gated="product", rest=""):
    constants = {"w": (8, 32), "t": np.array([0.3], np.float32)}
    return model_of(NETWORK.format(outputs=outputs, gated=gated, rest=rest), constants)


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_the_first_half_gates_the_second(rows):
    x = torch.randn(1, rows, 8, generator=torch.Generator().manual_seed(0))
    fused = GraphExecutor(network(), passes=[FuseGatedLinearPass()])
    expected = GraphExecutor(network()).run({"x": x}, ["y"])["y"]
    torch.testing.assert_close(fused.run({"x": x}, ["y"])["y"], expected)
    model = network()
    assert FuseGatedLinearPass()(model).modified
    assert operators(model) == ["GatedSparseLinear"]
    assert not FuseGatedLinearPass()(model).modified


@pytest.mark.parametrize(
    "other",
    [
        {"outputs": "float[1, s, n] y, float[1, s, m] product"},
        {"rest": "other = Neg (product)"},
        {"gated": "x"},
    ],
    ids=["the caller reads the product", "a node reads the product", "no product"],
)
def test_what_is_no_gated_product_stays(other):
    assert not FuseGatedLinearPass()(network(**other)).modified
