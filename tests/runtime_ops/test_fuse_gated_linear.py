"""Gate, up, silu and their product as one operator, where nothing else reads what lies between."""

import numpy as np
import pytest
import torch

from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.runtime_ops.triton.fuse_gated_linear import FuseGatedLinearPass

from ..graphs import model_of, operators

NETWORK = """
network (float[1, s, 8] x) => ({outputs}) {{
  product = ai.sparsecc.SparseLinear <max_sparse_rows = 4> (x, t, w)
  gate, up = Split <axis = -1> (product, widths)
  sigmoid = Sigmoid (gate)
  silu = Mul ({activated})
  y = Mul ({gated})
  {rest}
}}
"""


def network(outputs="float[1, s, n] y", activated="gate, sigmoid", gated="silu, up", rest="", widths=(16, 16)):
    constants = {"w": (8, 32), "t": np.array([0.3], np.float32), "widths": np.array(widths, np.int64)}
    return model_of(NETWORK.format(outputs=outputs, activated=activated, gated=gated, rest=rest), constants)


@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize("order", [{}, {"activated": "sigmoid, gate"}, {"gated": "up, silu"}])
def test_the_first_half_gates_the_second(order, rows):
    x = torch.randn(1, rows, 8, generator=torch.Generator().manual_seed(0))
    fused = GraphExecutor(network(**order), passes=[FuseGatedLinearPass()])
    expected = GraphExecutor(network(**order)).run({"x": x}, ["y"])["y"]
    torch.testing.assert_close(fused.run({"x": x}, ["y"])["y"], expected)
    model = network(**order)
    assert FuseGatedLinearPass()(model).modified
    assert operators(model) == ["GatedSparseLinear"]
    assert not FuseGatedLinearPass()(model).modified


@pytest.mark.parametrize("value", ["product", "gate", "up", "sigmoid", "silu"])
@pytest.mark.parametrize("how", ["the caller", "a node"])
def test_what_others_read_stays(value, how):
    if how == "the caller":
        model = network(outputs=f"float[1, s, n] y, float[1, s, m] {value}")
    else:
        model = network(rest=f"other = Neg ({value})")
    assert not FuseGatedLinearPass()(model).modified


@pytest.mark.parametrize(
    "other",
    [
        {"widths": (3, 3)},
        {"widths": (8, 24)},
        {"widths": (16, 16, 0)},
        {"activated": "up, sigmoid"},
        {"gated": "silu, gate"},
        {"gated": "silu, silu"},
    ],
    ids=["narrow", "uneven", "three", "up by gate's sigmoid", "gate by itself", "silu squared"],
)
def test_other_products_stay(other):
    assert not FuseGatedLinearPass()(network(**other)).modified
