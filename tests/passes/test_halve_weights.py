import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.errors import SparseccError
from sparsecc.passes import HalveWeightsPass
from sparsecc.sparsify import sparsify

from ..graphs import FEED_FORWARD, Array, block, block_output, model_of, named, recipe_for, run


def test_a_layer_computes_with_the_halved_weights(weights: dict[str, Array]):
    model = block(weights)
    sparsify(model, recipe_for(model, 0.4), [HalveWeightsPass()])
    assert named(model, "/layers.0/mlp/up_proj/SparseMatMul").inputs[2].dtype == ir.DataType.FLOAT16
    x = np.random.default_rng(0).standard_normal((1, 1, 8)).astype(np.float32)
    halves = {name: array.astype(np.float16) if name.startswith("w_") else array for name, array in weights.items()}
    thresholds = {kind: np.array([0.4], np.float32) for kind in ("q", "k", "v", "o", "gate", "up", "down")}
    np.testing.assert_allclose(run(model, x=x)[0], block_output(x, halves, thresholds), rtol=1e-4, atol=1e-4)


def test_a_weight_that_two_projections_share_stays_shared():
    text = """
    tied (float[1, s, 8] x) => (float[1, s, 8] y) {
      ["gate/MatMul"] g = MatMul(x, w)
      ["up/MatMul"] u = MatMul(x, w)
      s = Sigmoid(g)
      h = Mul(s, u)
      ["down/MatMul"] y = MatMul(h, v)
    }"""
    model = model_of(text, {"w": (8, 16), "v": (16, 8)})
    sparsify(model, recipe_for(model), [HalveWeightsPass()])
    assert named(model, "gate/SparseMatMul").inputs[2] is named(model, "up/SparseMatMul").inputs[2]


@pytest.mark.parametrize("weight", [1e5, -1e5, np.inf, np.nan])
def test_weights_beyond_the_range_of_float16_are_refused(weight: float):
    model = model_of(FEED_FORWARD, {"w_up": np.full((8, 16), weight, np.float32), "w_down": (16, 8)})
    with pytest.raises(SparseccError, match="w_up has weights beyond the range of float16"):
        sparsify(model, recipe_for(model), [HalveWeightsPass()])
