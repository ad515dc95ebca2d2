import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.artifact import Artifact
from sparsecc.model_file import load_model
from sparsecc.projections import find_projections
from sparsecc.sparsify import sparsify

from .graphs import BLOCK_KINDS, FEED_FORWARD, FEED_FORWARD_SHAPES, block, model_of, named, recipe_for

LAYERS = 8
PLACES = {
    "q": ("attn/q_proj", 384, 384),
    "k": ("attn/k_proj", 384, 128),
    "v": ("attn/v_proj", 384, 128),
    "o": ("attn/o_proj", 384, 384),
    "gate": ("mlp/gate_proj", 384, 1024),
    "up": ("mlp/up_proj", 384, 1024),
    "down": ("mlp/down_proj", 1024, 384),
}

SCALARS = {name: np.array(value, np.float32) for name, value in {"half": 0.5, "one": 1, "c": 0.8, "cubed": 3}.items()}
SILU = "s = Sigmoid(g)  a = Mul(g, s)"
GELU_ERF = "s = Div(g, c)  e = Erf(s)  p = Add(e, one)  m = Mul(g, p)  a = Mul(m, half)"
GELU_ERF_HALF_FIRST = "s = Div(g, c)  e = Erf(s)  p = Add(one, e)  m = Mul(half, g)  a = Mul(m, p)"
GELU_TANH = """
  p3 = Pow(g, cubed)  m = Mul(c, p3)  i = Add(g, m)  n = Mul(i, c)  t = Tanh(n)  p = Add(t, one)
  hg = Mul(half, g)  a = Mul(hg, p)
"""
RELU_SQUARED = "r = Relu(g)  a = Mul(r, r)"
ACTIVATIONS = {
    "SiLU": SILU,
    "Erf": GELU_ERF,
    "Erf, half first": GELU_ERF_HALF_FIRST,
    "Tanh": GELU_TANH,
    "Relu": "a = Relu(g)",
    "Relu squared": RELU_SQUARED,
    "Gelu": "a = Gelu(g)",
    "FastGelu": "a = com.microsoft.FastGelu(g)",
    "QuickGelu": "a = com.microsoft.QuickGelu(g)",
}


def kinds(model: ir.Model) -> list[str]:
    return [projection.kind for projection in find_projections(model.graph)]


def description(model: ir.Model) -> list[tuple[object, ...]]:
    return [
        (p.name, p.layer, p.kind, p.channels, p.outputs, p.input.name, p.weight.name)
        for p in find_projections(model.graph)
    ]


def attention(attend: str, opset: int = 22, between: str = "") -> ir.Model:
    """Separate q, k and v with biases, ``between`` with rotated q and k, and the operator that attends."""
    text = f"""
    attention (float[1, s, 8] x, int64[1, s] positions, float[1, 1, p, 4] past_k, float[1, 1, p, 4] past_v,
               float[s, 4] cos, float[s, 4] sin) => (float[1, s, 8] y) {{
      ["q/MatMul"] q0 = MatMul(x, w_q)  q = Add(q0, b_q)
      ["k/MatMul"] k0 = MatMul(x, w_k)  k = Add(b_k, k0)
      ["v/MatMul"] v0 = MatMul(x, w_v)  v = Add(v0, b_v)
      {between}
      {attend}
      ["o/MatMul"] y = MatMul(a, w_o)
    }}"""
    shapes = {"w_q": (8, 8), "b_q": (8,), "w_k": (8, 4), "b_k": (4,), "w_v": (8, 4), "b_v": (4,), "w_o": (8, 8)}
    return model_of(text, shapes, opset=opset)


def feed_forward(body: str, opset: int = 22, **weights: tuple[int, ...] | np.ndarray) -> ir.Model:
    text = f"feed_forward (float[1, s, 8] x) => (float[1, s, 8] y) {{ {body} }}"
    return model_of(text, {"w_up": (8, 16), "w_down": (16, 8), **SCALARS, **weights}, opset=opset)


@pytest.fixture
def dense_model(dense: Artifact) -> ir.Model:
    return load_model(dense.model_path)


def test_every_projection_of_a_decoder_is_found_and_its_head_is_not(dense_model: ir.Model):
    found = [(p.name, p.layer, p.kind, p.channels, p.outputs) for p in find_projections(dense_model.graph)]
    assert found == [
        (f"/model/layers.{layer}/{place}", layer, kind, channels, outputs)
        for layer in range(LAYERS)
        for kind, (place, channels, outputs) in PLACES.items()
    ]


def test_projections_that_read_one_hidden_state_share_their_input(dense_model: ir.Model):
    by_kind = {p.kind: p for p in find_projections(dense_model.graph) if p.layer == 3}
    assert by_kind["gate"].input is by_kind["up"].input
    assert len({by_kind[kind].input for kind in PLACES}) == 4


def test_weights_are_the_matrices_of_the_checkpoint_in_row_order(dense_model: ir.Model):
    for projection in find_projections(dense_model.graph):
        weight = projection.weight.const_value
        assert weight is not None
        assert weight.numpy().shape == (projection.channels, projection.outputs)


def test_scrambled_names_change_nothing_but_labels(dense_model: ir.Model):
    expected = [(p.layer, p.kind, p.channels, p.outputs) for p in find_projections(dense_model.graph)]
    scramble = map("x{}".format, np.random.default_rng(0).permutation(100_000)).__next__
    for value in {
        *dense_model.graph.initializers.values(),
        *(value for node in dense_model.graph for value in node.outputs),
    }:
        value.name = scramble()
    for node in dense_model.graph:
        node.name = scramble()
    projections = find_projections(dense_model.graph)
    assert [(p.layer, p.kind, p.channels, p.outputs) for p in projections] == expected
    assert [p.name for p in projections] == [p.node.name for p in projections]


@pytest.mark.parametrize("label", ["", "same", "same/MatMul"], ids=["absent", "equal", "equal with operator"])
def test_labels_are_unique_and_stay_when_the_graph_is_rewritten(label: str):
    model = block()
    for node in model.graph:
        node.name = label
    before = description(model)
    sparsify(model, recipe_for(model))
    assert len({name for name, *_ in before}) == len(BLOCK_KINDS)
    assert description(model) == before


ROTARY = """
  qr = com.microsoft.RotaryEmbedding(q, positions, cos, sin)
  kr = com.microsoft.RotaryEmbedding(k, positions, cos, sin)
"""
STANDARD_ROTARY = (
    "qr = RotaryEmbedding <num_heads = 2> (q, cos, sin)  kr = RotaryEmbedding <num_heads = 1> (k, cos, sin)"
)
NORMS = """
  qh = Reshape(q, positions)  qn = SimplifiedLayerNormalization(qh, b_k)  qr = Reshape(qn, positions)
  kh = Reshape(k, positions)  kn = SimplifiedLayerNormalization(kh, b_k)  kr = Reshape(kn, positions)
"""


@pytest.mark.parametrize("between", [ROTARY, NORMS], ids=["rotary", "norms"])
@pytest.mark.parametrize(
    "attend",
    [
        "a, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (qr, kr, v, past_k, past_v)",
        "a = com.microsoft.MultiHeadAttention <num_heads = 2> (qr, kr, v)",
    ],
    ids=["grouped-query", "multi-head"],
)
def test_separate_q_k_and_v_are_found_through_bias_rotation_and_norm(attend: str, between: str):
    model = attention(attend, between=between)
    assert [(p.name, p.kind) for p in find_projections(model.graph)] == [("q", "q"), ("k", "k"), ("v", "v"), ("o", "o")]


def test_separate_q_k_and_v_are_found_behind_standard_attention():
    model = attention("a = Attention <q_num_heads = 2, kv_num_heads = 1> (qr, kr, v)", 23, STANDARD_ROTARY)
    assert kinds(model) == ["q", "k", "v", "o"]


def test_standard_attention_over_heads_is_found_through_transposes():
    def heads(name: str) -> str:
        return f"{name}h = Reshape({name}, positions)  {name}t = Transpose <perm = [0, 2, 1, 3]> ({name}h)"

    attend = "at = Attention(qt, kt, vt)  ah = Transpose <perm = [0, 2, 1, 3]> (at)  a = Reshape(ah, positions)"
    assert kinds(attention(attend, 23, " ".join(map(heads, "qkv")))) == ["q", "k", "v", "o"]


def test_a_fused_qkv_is_found_through_a_split():
    text = """
    fused (float[1, s, 8] x) => (float[1, s, 8] y) {
      p = MatMul(x, w_qkv)
      q, k, v = Split <axis = -1, num_outputs = 3> (p)
      a = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)
      y = MatMul(a, w_o)
    }"""
    assert kinds(model_of(text, {"w_qkv": (8, 24), "w_o": (8, 8)}, opset=23)) == ["qkv", "o"]


def test_a_whole_layer_without_a_linear_head_is_found_in_graph_order():
    assert kinds(block()) == BLOCK_KINDS


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("product", ["Mul(a, u)", "Mul(u, a)"])
def test_gate_and_up_are_told_apart_by_the_activation(activation: str, product: str):
    body = (
        f"g = MatMul(x, w_gate)  u = MatMul(x, w_up)  {ACTIVATIONS[activation]}  h = {product}  y = MatMul(h, w_down)"
    )
    assert kinds(feed_forward(body, w_gate=(8, 16))) == ["gate", "up", "down"]


@pytest.mark.parametrize(
    "activation",
    list(ACTIVATIONS),
)
def test_an_ungated_network_is_up_and_down(activation: str):
    body = f"g0 = MatMul(x, w_up)  g = Add(g0, b_up)  {ACTIVATIONS[activation]}  y = MatMul(a, w_down)"
    assert kinds(feed_forward(body, b_up=(16,))) == ["up", "down"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("halves", ["g, u", "u, g"])
def test_a_fused_gate_and_up_is_found_through_its_split(activation: str, halves: str):
    split = f"f = MatMul(x, w_up)  {halves} = Split <axis = -1, num_outputs = 2> (f)"
    body = f"{split}  {ACTIVATIONS[activation]}  h = Mul(a, u)  y = MatMul(h, w_down)"
    assert kinds(feed_forward(body, w_up=(8, 32))) == ["gate_up", "down"]


def test_without_attention_the_feed_forward_networks_are_found_and_counted():
    body = " ".join(
        f"u{i} = MatMul(x{i}, w_up)  h{i} = Relu(u{i})  d{i} = MatMul(h{i}, w_down)  x{i + 1} = Add(x{i}, d{i})"
        for i in range(3)
    )
    model = feed_forward(f"x0 = Identity(x)  {body}  y = Identity(x3)")
    found = [(p.layer, p.kind) for p in find_projections(model.graph)]
    assert found == list(itertools.product(range(3), ["up", "down"]))


def test_products_that_serve_nothing_known_are_left_alone():
    assert kinds(feed_forward("h = MatMul(x, w_up)  y = MatMul(h, w_down)")) == []


def as_float16(weights: dict[str, ir.Value]) -> None:
    for value in weights.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=value.name)


def as_graph_inputs(weights: dict[str, ir.Value]) -> None:
    for value in weights.values():
        value.const_value = None


def as_stacks(weights: dict[str, ir.Value]) -> None:
    for value in weights.values():
        value.const_value = ir.tensor(value.const_value.numpy()[None], name=value.name)


@pytest.mark.parametrize("change", [as_float16, as_graph_inputs, as_stacks])
def test_weights_that_are_no_constant_float32_matrices_are_ignored(change: Callable[[dict[str, ir.Value]], None]):
    model = model_of(FEED_FORWARD, FEED_FORWARD_SHAPES)
    change(dict(model.graph.initializers))
    assert find_projections(model.graph) == []


def test_a_threshold_of_another_domain_is_no_selection():
    body = "u = MatMul(x, w_up)  h = Relu(u)  t = com.microsoft.Threshold(h)  y = MatMul(t, w_down)"
    assert kinds(feed_forward(body)) == []


@pytest.mark.parametrize("operator", ["Identity", "Relu", "ai.sparsecc.Threshold", "ai.sparsecc.GatherActive"])
def test_a_cycle_before_a_product_leads_nowhere(operator: str):
    model = feed_forward(f"a = {operator}(x)  b = {operator}(a)  y = MatMul(b, w_down)", w_down=(8, 8))
    model.graph[0].replace_input_with(0, model.graph[1].outputs[0])
    assert find_projections(model.graph) == []


def test_a_cycle_of_products_leads_nowhere():
    model = feed_forward("s = Sigmoid(x)  a = Mul(x, s)  y = MatMul(a, w_down)", w_down=(8, 8))
    for node in (model.graph[0], model.graph[1]):
        node.replace_input_with(0, model.graph[1].outputs[0])
    assert find_projections(model.graph) == []


def test_the_hidden_state_and_threshold_of_a_product_in_a_cycle_are_found():
    model = block()
    sparsify(model, recipe_for(model))
    down = find_projections(model.graph)[-1]
    threshold = named(model, "/layers.0/mlp/down_proj/Threshold")
    threshold.replace_input_with(0, down.node.inputs[0])
    assert down.threshold is threshold
    assert down.input is down.node.inputs[0]


def test_a_cycle_behind_attention_leads_nowhere():
    model = attention("a = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)  b = LayerNormalization(a, a)")
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    back = ir.node("Identity", norm.outputs, graph=model.graph)
    norm.replace_input_with(1, back.outputs[0])
    assert kinds(model) == ["q", "k", "v", "o"]


def test_paths_that_part_and_meet_behind_attention_are_walked_once():
    """60 diamonds in a row, 2 ** 60 paths."""
    diamonds = " ".join(
        f"l{i} = Identity(d{i})  r{i} = Identity(d{i})  d{i + 1} = LayerNormalization(l{i}, r{i})" for i in range(60)
    )
    model = attention(f"d0 = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)  {diamonds}  a = Cast(d60)")
    assert kinds(model) == ["q", "k", "v", "o"]


def test_dequantized_weights_are_ignored():
    body = "w = DequantizeLinear(q, one)  u = MatMul(x, w)  h = Relu(u)  y = MatMul(h, w_down)"
    assert kinds(feed_forward(body, q=np.ones((8, 16), np.int8))) == []


def test_a_product_from_another_domain_is_ignored():
    assert kinds(feed_forward("u = com.microsoft.MatMul(x, w_up)  h = Relu(u)  y = MatMul(h, w_down)")) == []


def test_projections_stay_the_same_in_the_sparse_graph(dense_model: ir.Model):
    before = description(dense_model)
    assert all(projection.threshold is None for projection in find_projections(dense_model.graph))
    sparsify(dense_model, recipe_for(dense_model))
    assert description(dense_model) == before
    for projection in find_projections(dense_model.graph):
        assert projection.node.op_type == "SparseMatMul"
        assert projection.threshold is not None
        assert projection.threshold.op_type == "Threshold"


def test_a_sparse_projection_knows_its_threshold_and_what_was_before_it():
    model = block()
    sparsify(model, recipe_for(model))
    down = find_projections(model.graph)[-1]
    assert down.threshold is named(model, "/layers.0/mlp/down_proj/Threshold")
    assert down.input.name == "gated"
