import onnx_ir as ir
import pytest

from sparsecc.analysis.components import find_components
from sparsecc.projections import find_projections

from ..graphs import block, model_of

BIASED = """
feed_forward (float[1, s, 8] x) => (float[1, s, 8] y) {
  gate_product = MatMul(x, w_gate)
  gate = Add(gate_product, b_gate)
  up_product = MatMul(x, w_up)
  up = Add(b_up, up_product)
  gelu = Gelu(gate)
  product = Mul(up, gelu)
  y = MatMul(product, w_down)
}"""
GELU_WRITTEN_OUT = """
feed_forward (float[1, s, 8] x) => (float[1, s, 8] y) {
  product = MatMul(x, w_up)
  u = Add(product, b_up)
  scaled = Div(u, root)
  erf = Erf(scaled)
  one_more = Add(erf, one)
  twice = Mul(u, one_more)
  h = Mul(twice, half)
  y = MatMul(h, w_down)
}"""
FUSED = """
feed_forward (float[1, s, 8] x) => (float[1, s, 8] y) {
  both = MatMul(x, w_both)
  gate, up = Split <axis = -1, num_outputs = 2> (both)
  sigmoid = Sigmoid(gate)
  silu = Mul(gate, sigmoid)
  product = Mul(silu, up)
  y = MatMul(product, w_down)
}"""
RELU = """
feed_forward (float[1, s, 8] x) => (float[1, s, 8] y) {
  u = MatMul(x, w_up)
  h = Relu(u)
  y = MatMul(h, w_down)
}"""
SHAPES = {"w_gate": (8, 16), "b_gate": (16,), "w_up": (8, 16), "b_up": (16,), "w_both": (8, 32), "w_down": (16, 8)}
SHAPES |= {"root": (), "one": (), "half": ()}

GATED = {"ffn_input": "x", "pre_activation": "gate", "up": "up", "down_input": "product"}
UNGATED = {"ffn_input": "x", "down_input": "h"}
NETWORKS = {
    "biases": (BIASED, {**GATED, "gate_activation": "gelu"}),
    "gate and up in one": (FUSED, {**GATED, "gate_activation": "silu"}),
    "no gate": (RELU, {**UNGATED, "pre_activation": "u"}),
    "no gate, an activation of many nodes": (GELU_WRITTEN_OUT, {**UNGATED, "pre_activation": "u"}),
}


def names(model: ir.Model) -> dict[str, str | None]:
    return {part.name: part.value.name for part in find_components(find_projections(model.graph))}


def test_a_layer_has_seven_components():
    components = find_components(find_projections(block().graph))
    assert [(part.name, part.value.name, part.neurons) for part in components] == [
        ("attention_input", "x", 8),
        ("o_input", "attended", 8),
        ("ffn_input", "r", 8),
        ("pre_activation", "gate", 16),
        ("gate_activation", "silu", 16),
        ("up", "up", 16),
        ("down_input", "gated", 16),
    ]
    assert {part.layer for part in components} == {0}


@pytest.mark.parametrize(("text", "expected"), NETWORKS.values(), ids=NETWORKS)
def test_the_inside_of_a_network_is_found_by_what_it_connects(text: str, expected: dict[str, str]):
    used = {name: shape for name, shape in SHAPES.items() if name in text}
    assert names(model_of(text, used)) == expected


def test_attention_and_network_may_read_one_hidden_state():
    text = """
    parallel (float[1, s, 8] x) => (float[1, s, 8] y) {
      q = MatMul(x, w_q)
      k = MatMul(x, w_k)
      v = MatMul(x, w_v)
      attended = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)
      o = MatMul(attended, w_o)
      u = MatMul(x, w_up)
      h = Relu(u)
      d = MatMul(h, w_down)
      y = Add(o, d)
    }"""
    shapes = {**{f"w_{kind}": (8, 8) for kind in "qkvo"}, "w_up": (8, 16), "w_down": (16, 8)}
    found = names(model_of(text, shapes, opset=23))
    assert found["attention_input"] == found["ffn_input"] == "x"


def test_every_layer_of_a_decoder_has_them_all(dense):
    from sparsecc.model_file import load_model

    components = find_components(find_projections(load_model(dense.model_path).graph))
    assert [part.layer for part in components] == [layer for layer in range(8) for _ in range(7)]
