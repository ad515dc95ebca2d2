"""The residual sum and the norm between sparse projections, as the executor puts them into these."""

import onnx_ir as ir
import pytest
import torch

from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.runtime_ops.triton.fuse_gated_linear import FuseGatedLinearPass
from sparsecc.runtime_ops.triton.fuse_norms import FuseNormsPass
from sparsecc.runtime_ops.triton.operators import normalization

from ..graphs import model_of

LAYER = """
layer (float[1, s, 8] x, float[1, s, 8] residual) => (float[1, s, 8] y, float[1, s, 8] total, float[1, s, 4] q) {{
  ["o"] attended = ai.sparsecc.SparseLinear <max_sparse_rows = 4> (x, t, w_o)
  ["norm"] normed, mean, inverse, total = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> ({summands}, gain)
  ["q"] q = ai.sparsecc.SparseLinear <max_sparse_rows = 4> (normed, t, w_q, b_q)
  ["gate_up"] gate_up = ai.sparsecc.SparseLinear <max_sparse_rows = 4> (normed, t, w_gate_up)
  gated = ai.sparsecc.SwiGLU (gate_up)
  {rest}
  ["down"] y = ai.sparsecc.SparseLinear <max_sparse_rows = 4> (gated, t, w_down)
}}
"""  # noqa: E501
WEIGHTS = {"w_o": (8, 8), "w_q": (8, 4), "b_q": (4,), "gain": (8,), "w_gate_up": (8, 32), "w_down": (16, 8)}


def layer(summands="residual, attended", rest="", names=()):
    constants = {"t": torch.tensor([0.3]).numpy()}
    text = LAYER.format(summands=summands, rest=rest)
    for old, new in names:
        text = text.replace(old, new)
    return model_of(text, {**WEIGHTS, **constants})


def fused(model):
    FuseGatedLinearPass()(model)
    return FuseNormsPass()(model)


def fusing_executor(model):
    return GraphExecutor(model, passes=(FuseGatedLinearPass(), FuseNormsPass()))


@pytest.mark.parametrize("summands", ["residual, attended", "attended, residual"])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_the_norm_is_taken_by_those_who_read_it(summands, rows):
    torch.manual_seed(0)
    inputs = {"x": torch.randn(1, rows, 8), "residual": torch.randn(1, rows, 8)}
    outputs = ["y", "total", "q"]
    expected = GraphExecutor(layer(summands)).run(inputs, outputs)
    result = fused(layer(summands))
    assert result.modified
    assert [node.op_type for node in result.model.graph] == [
        "AddedSparseLinear",
        "NormedSparseLinear",
        "NormedGatedSparseLinear",
        "SparseLinear",
    ]
    for name, values in fusing_executor(layer(summands)).run(inputs, outputs).items():
        torch.testing.assert_close(values, expected[name])


@pytest.mark.parametrize(
    ("summands", "rest"),
    [
        ("residual, x", ""),
        ("residual, attended", "other = Neg (normed)"),
        ("residual, attended", "other = Neg (attended)"),
        ("residual, attended", "other = Neg (inverse)"),
        ("residual, attended", "other = ai.sparsecc.SparseLinear (x, t, normed)"),
    ],
    ids=["nothing to add to", "norm read elsewhere", "product read elsewhere", "deviation read", "norm as weights"],
)
def test_a_norm_that_others_need_stays(summands, rest):
    model = layer(summands, rest)
    assert not fused(model).modified
    assert any(node.name == "norm" for node in model.graph)


def test_a_deviation_that_the_caller_takes_stays():
    names = [("float[1, s, 4] q) {", "float[1, s, 4] q, float[1, s, 1] inverse) {")]
    assert not fused(layer(names=names)).modified


def test_a_sum_that_nobody_takes_needs_no_name():
    names = [("float[1, s, 8] total, ", ""), ("inverse, total =", "inverse, unread =")]
    inputs = {"x": torch.randn(1, 1, 8), "residual": torch.randn(1, 1, 8)}
    expected = GraphExecutor(layer(names=names)).run(inputs, ["y"])["y"]
    model = layer(names=names)
    norm = next(node for node in model.graph if node.name == "norm")
    norm.outputs[3].name = ""
    torch.testing.assert_close(fusing_executor(model).run(inputs, ["y"])["y"], expected)
    assert fused(model).modified


def test_a_second_call_does_nothing():
    model = layer()
    assert fused(model).modified
    assert not FuseNormsPass()(model).modified


def test_a_norm_without_a_gain_stays():
    assert not fused(layer(names=[(", gain)", ")")])).modified


@pytest.mark.parametrize("shape", [(1,), (1, 8), (4,)])
def test_a_gain_that_is_not_one_entry_for_each_column_stays(shape):
    model = layer()
    model.graph.initializers["gain"].const_value = ir.tensor(torch.ones(shape).numpy())
    assert not fused(model).modified


def test_a_computed_gain_stays():
    assert not fused(layer(names=[('["norm"]', 'made = Neg (gain) ["norm"]'), (", gain)", ", made)")])).modified


@pytest.mark.parametrize("rows", [1, 3])
def test_a_residual_is_broadcast(rows):
    torch.manual_seed(0)
    inputs = {"x": torch.randn(1, rows, 8), "residual": torch.randn(1, 1, 8)}
    expected = GraphExecutor(layer()).run(inputs, ["y"])["y"]
    torch.testing.assert_close(fusing_executor(layer()).run(inputs, ["y"])["y"], expected)


def test_what_is_broadcast_is_not_for_the_kernel(monkeypatch):
    monkeypatch.setattr(normalization, "is_for_triton", lambda *_tensors: True)
    text = """
    g (float[1, s, 8] x, float[1, 1, 8] skip) => (float[1, s, 8] y, float[1, s, 8] z) {
      y = com.microsoft.SkipSimplifiedLayerNormalization (x, skip, gain)
      z = SimplifiedLayerNormalization (x, one)
    }
    """
    inputs = {"x": torch.randn(1, 3, 8), "skip": torch.randn(1, 1, 8)}
    results = GraphExecutor(model_of(text, {"gain": (8,), "one": (1,)})).run(inputs, ["y", "z"])
    assert results["y"].shape == results["z"].shape == (1, 3, 8)
