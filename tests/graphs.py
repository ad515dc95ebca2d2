"""Small graphs in ONNX's textual form, recipes for them, and a way to run them."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from sparsecc.projections import find_projections
from sparsecc.recipe import ProjectionRecipe, Recipe

Array = NDArray[np.float32]

BLOCK = """
block (float[1, s, 8] x) => (float[1, s, 8] y) {
  ["/layers.0/attn/q_proj/MatMul"] q_product = MatMul(x, w_q)
  ["/layers.0/attn/q_proj/Add"] q = Add(q_product, b_q)
  ["/layers.0/attn/k_proj/MatMul"] k_product = MatMul(x, w_k)
  ["/layers.0/attn/k_proj/Add"] k = Add(b_k, k_product)
  ["/layers.0/attn/v_proj/MatMul"] v = MatMul(x, w_v)
  ["/layers.0/attn/Attention"] attended = Attention <q_num_heads = 2, kv_num_heads = 1> (q, k, v)
  ["/layers.0/attn/o_proj/MatMul"] o = MatMul(attended, w_o)
  ["/layers.0/residual/Add"] r = Add(x, o)
  ["/layers.0/mlp/gate_proj/MatMul"] gate = MatMul(r, w_gate)
  ["/layers.0/mlp/up_proj/MatMul"] up = MatMul(r, w_up)
  ["/layers.0/mlp/Sigmoid"] sigmoid = Sigmoid(gate)
  ["/layers.0/mlp/SiLU"] silu = Mul(gate, sigmoid)
  ["/layers.0/mlp/Mul"] gated = Mul(silu, up)
  ["/layers.0/mlp/down_proj/MatMul"] down_product = MatMul(gated, w_down)
  ["/layers.0/mlp/down_proj/Add"] down = Add(down_product, b_down)
  ["/layers.0/output/Add"] y = Add(r, down)
}
"""
BLOCK_OPSET = 23
BLOCK_KINDS = ["q", "k", "v", "o", "gate", "up", "down"]
HEAD_SIZE = 4
BLOCK_SHAPES = {
    "w_q": (8, 8),
    "b_q": (8,),
    "w_k": (8, 4),
    "b_k": (4,),
    "w_v": (8, 4),
    "w_o": (8, 8),
    "w_gate": (8, 16),
    "w_up": (8, 16),
    "w_down": (16, 8),
    "b_down": (8,),
}

FEED_FORWARD = """
feed_forward (float[1, s, 8] x) => (float[1, s, 8] y) {
  ["up/MatMul"] u = MatMul(x, w_up)
  h = Relu(u)
  ["down/MatMul"] y = MatMul(h, w_down)
}
"""
FEED_FORWARD_SHAPES = {"w_up": (8, 16), "w_down": (16, 8)}


def random_arrays(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model_of(
    text: str,
    weights: Mapping[str, tuple[int, ...] | NDArray[np.generic]] | None = None,
    *,
    opset: int = 22,
    infer_shapes: bool = False,
) -> ir.Model:
    """The model of a textual graph; ``weights`` become initializers, random float32 where only a shape is given."""
    opsets = f'"": {opset}, "com.microsoft": 1, "ai.sparsecc": 1'
    proto = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{opsets}]>\n{text}")
    shapes = {name: weight for name, weight in (weights or {}).items() if isinstance(weight, tuple)}
    arrays = {**(weights or {}), **random_arrays(shapes)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto) if infer_shapes else proto)


def block(weights: Mapping[str, Array] | None = None) -> ir.Model:
    """One decoder layer in standard operators, with grouped-query attention, biases and residuals."""
    return model_of(BLOCK, weights or BLOCK_SHAPES, opset=BLOCK_OPSET, infer_shapes=True)


def block_output(x: Array, weights: Mapping[str, Array], thresholds: Mapping[str, Array] | None = None) -> Array:
    """What :func:`block` computes, in float64, with the input of each projection thresholded."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def project(hidden: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
        if thresholds is not None:
            hidden = np.where(np.abs(hidden) >= thresholds[kind], hidden, 0)
        return hidden @ w[f"w_{kind}"] + w.get(f"b_{kind}", 0)

    hidden = x.astype(np.float64)
    rows = hidden.shape[1]
    queries = project(hidden, "q").reshape(rows, 2, HEAD_SIZE)
    keys, values = project(hidden, "k")[0], project(hidden, "v")[0]
    scores = np.exp(queries.transpose(1, 0, 2) @ keys.T / np.sqrt(HEAD_SIZE))
    attended = (scores / scores.sum(-1, keepdims=True)) @ values
    residual = hidden + project(attended.transpose(1, 0, 2).reshape(1, rows, -1), "o")
    gate = project(residual, "gate")
    gated = gate / (1 + np.exp(-gate)) * project(residual, "up")
    return (residual + project(gated, "down")).astype(np.float32)


def recipe_for(model: ir.Model, thresholds: Mapping[str, Array] | float = 0.5, *, method: str = "teal") -> Recipe:
    """A recipe for all projections of a model, with one threshold for all or one by kind."""
    entries = []
    for projection in find_projections(model.graph):
        by_kind = isinstance(thresholds, Mapping)
        threshold = thresholds[projection.kind] if by_kind else np.array([thresholds], np.float32)
        entries.append(
            ProjectionRecipe(projection.name, projection.layer, projection.kind, method, 0.5, 0.25, threshold)
        )
    return Recipe(method, 0.5, tuple(entries))


def serialized(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def named(model: ir.Model, name: str) -> ir.Node:
    (node,) = (node for node in model.graph if node.name == name)
    return node


def run(model: ir.Model, **feeds: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """Run a model on onnxruntime without any library of operators."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(serialized(model), options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, feeds)]
