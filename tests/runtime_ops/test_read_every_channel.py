"""Products of all channels in the place of those that were listed, and what skips them again."""

import numpy as np
import pytest
import torch

from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.runtime_ops.triton.fuse_selected_linear import FuseSelectedLinearPass
from sparsecc.runtime_ops.triton.read_every_channel import ReadEveryChannelPass

from ..graphs import model_of, operators
from .test_parity import largest_of_each_row

GATED = """
gated (float[1, s, 8] x, float[1, s, 16] gate) => (float[1, s, 8] y{output}) {{
  a = ai.sparsecc.Threshold <max_sparse_rows = 4> (gate, t)
  values, indices = ai.sparsecc.GatherActive (a)
  up = ai.sparsecc.GatherMatMul (x, indices, w_up)
  product = Mul (values, up)
  {rest}
  y = ai.sparsecc.SparseMatMul (product, indices, w_down)
}}
"""
SELECTED = """
selected (float[1, s, 8] x) => (float[1, s, 4] y, float[1, s, 4] z) {
  kept = ai.sparsecc.KeepLargest <k = 3, max_sparse_rows = 4> (x)
  values, indices = ai.sparsecc.GatherActive (kept)
  y = ai.sparsecc.SparseMatMul (values, indices, w)
  z = ai.sparsecc.SparseMatMul (values, indices, w, b)
}
"""
UNSELECTED = """
unselected (float[1, s, 8] x) => (float[1, s, 4] y) {
  values, indices = ai.sparsecc.GatherActive (x)
  y = ai.sparsecc.SparseMatMul (values, indices, w)
}
"""
WEIGHTS = {"w_up": (16, 8), "w_down": (16, 8), "w": (8, 4), "b": (4,), "t": np.array([0.5], np.float32)}
PASSES = (ReadEveryChannelPass, FuseSelectedLinearPass)


def gated(rest="", output=""):
    return model_of(GATED.format(rest=rest, output=output), WEIGHTS)


def rewritten(model):
    return [graph_pass()(model).modified for graph_pass in PASSES]


@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize("text", [GATED.format(rest="", output=""), SELECTED, UNSELECTED])
def test_products_stay_as_they_are(text, rows):
    torch.manual_seed(0)
    inputs = {"x": torch.randn(1, rows, 8), "gate": torch.randn(1, rows, 16)}
    plain = GraphExecutor(model_of(text, WEIGHTS))
    given = {name: inputs[name] for name in plain.input_names}
    fused = GraphExecutor(model_of(text, WEIGHTS), passes=[graph_pass() for graph_pass in PASSES])
    expected = plain.run(given, plain.output_names)
    for name, values in fused.run(given, plain.output_names).items():
        torch.testing.assert_close(values, expected[name])


def test_what_is_selected_is_skipped_and_all_else_is_read():
    for model, last in ((gated(), ["SparseLinear"]), (model_of(SELECTED, WEIGHTS), ["SparseLinear"] * 2)):
        assert rewritten(model) == [True, True]
        assert operators(model)[-len(last) :] == last
        assert rewritten(model) == [False, False]
    model = model_of(UNSELECTED, WEIGHTS)
    assert rewritten(model) == [True, False]
    assert operators(model) == ["EveryChannel", "SparseMatMul"]


@pytest.mark.parametrize(
    ("rest", "output"),
    [
        ("count = Shape (values)", ""),
        ("count = Shape (indices)", ""),
        ("other = Add (values, up)", ""),
        ("other = ai.sparsecc.SparseMatMul (up, indices, product)", ""),
        ("", ", float[1, s, a] up"),
    ],
    ids=["channels counted", "indices read", "not a product", "a product as weight", "up read by the caller"],
)
def test_what_others_read_stays_listed(rest, output):
    model = gated(rest, output)
    assert rewritten(model) == [False, False]
    assert "GatherActive" in operators(model)


@pytest.mark.parametrize("count", [0, 1, 5, 9])
def test_the_largest_are_kept_and_of_equal_ones_the_first(count):
    rows = np.round(np.random.default_rng(0).standard_normal((1, 3, 8)) * 2).astype(np.float32)
    rows[0, 0, :2] = np.nan, -np.inf
    text = f"g (float[1, 3, 8] x) => (float[1, 3, 8] y) {{ y = ai.sparsecc.KeepLargest <k = {count}> (x) }}"
    kept = GraphExecutor(model_of(text)).run({"x": torch.from_numpy(rows)}, ["y"])["y"]
    np.testing.assert_array_equal(kept.numpy(), largest_of_each_row(rows, count))
