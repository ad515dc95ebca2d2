"""Merging products and fusing operators changes no number, can be undone, and leaves alone what it may not touch."""

import json

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.errors import SparseccError
from sparsecc.fusion import fuse, unfuse
from sparsecc.passes import (
    FuseSwiGLUPass,
    MergeProductsPass,
    QuantizedTensors,
    QuantizeWeightsPass,
    ShipFunctionsPass,
    UnfuseSparseLinearPass,
    UnfuseSwiGLUPass,
)
from sparsecc.passes.merge_products import MERGED
from sparsecc.projections import find_projections
from sparsecc.sparsify import sparsify

from ..graphs import BLOCK_KINDS, Array, model_of, named, operators, recipe_for, run, serialized

ALIKE = {kind: np.array([0.4], np.float32) for kind in BLOCK_KINDS}
DIFFERENT = {kind: np.array([0.1 * (i + 1)], np.float32) for i, kind in enumerate(BLOCK_KINDS)}


def quantized(model: ir.Model, bits: int, block_size: int = 4) -> QuantizeWeightsPass:
    dtype = {4: ir.DataType.INT4, 8: ir.DataType.INT8}[bits]
    rng = np.random.default_rng(bits)
    stored = {}
    for projection in find_projections(model.graph):
        integers = rng.integers(-7, 8, (projection.channels, projection.outputs)).astype(dtype.numpy())
        scales = rng.random((projection.channels, -(-projection.outputs // block_size))).astype(np.float16)
        stored[projection.name] = QuantizedTensors(ir.Tensor(integers, dtype), ir.tensor(scales), block_size)
    return QuantizeWeightsPass(stored)


def described(model: ir.Model) -> list[tuple[object, ...]]:
    return [
        (p.name, p.layer, p.kind, p.channels, p.outputs, p.threshold.name, p.node.metadata_props)
        for p in find_projections(model.graph)
        if p.threshold is not None
    ]


def sparse_operators(model: ir.Model) -> dict[str, int]:
    names = [node.op_type for node in model.graph if node.domain == "ai.sparsecc"]
    return {name: names.count(name) for name in sorted(set(names))}


@pytest.mark.parametrize("weights_stored", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("thresholds", [ALIKE, DIFFERENT], ids=["alike", "different"])
def test_the_numbers_stay_and_everything_can_be_undone(
    model: ir.Model, thresholds: dict[str, Array], rows: int, weights_stored: str
):
    bits = {"int8": 8, "int4": 4}.get(weights_stored)
    sparsify(model, recipe_for(model, thresholds), [quantized(model, bits)] if bits else [])
    x = np.random.default_rng(rows).standard_normal((1, rows, 8)).astype(np.float32)
    (expected,), before = run(model, x=x), described(model)
    sparse_before = sparse_operators(model)
    fuse(model)
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-5)
    assert "SparseLinear" + ("NBits" if bits else "") in sparse_operators(model)
    unfuse(model)
    assert sparse_operators(model) == sparse_before
    assert described(model) == before
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-5)


def test_what_shares_a_threshold_becomes_one_operator(model: ir.Model):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    # q and k have biases and v has none, so v stays apart, and with it the three share no operator with the threshold
    assert operators(model).count("SparseLinear") == 3
    merged = named(model, "/layers.0/mlp/gate_proj+up_proj/SparseLinear")
    assert merged.metadata_props["projection"] == "gate, up"
    assert merged.inputs[2].const_value.shape.numpy() == (8, 32)
    assert named(model, "/layers.0/attn/q_proj+k_proj/SparseMatMul").outputs[0].consumers()[0].op_type == "Split"


def test_scales_are_not_shared_between_projections(model: ir.Model):
    """gate has 16 columns, which do not fill a block of 32."""
    sparsify(model, recipe_for(model, ALIKE), [quantized(model, 8, block_size=32)])
    assert not MergeProductsPass()(model).modified


@pytest.mark.parametrize("do", [fuse, unfuse])
def test_a_second_time_nothing_happens(model: ir.Model, do):
    sparsify(model, recipe_for(model, ALIKE))
    if do is unfuse:
        fuse(model)
    do(model)
    before = serialized(model)
    do(model)
    assert serialized(model) == before


@pytest.mark.parametrize("note", ["[]", '["one"]', "no JSON", "{}", json.dumps(["a", "b", "c"])])
def test_a_damaged_note_is_refused(model: ir.Model, note: str):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    named(model, "/layers.0/mlp/gate_proj+up_proj/SparseLinear").metadata_props["merged"] = note
    with pytest.raises(SparseccError, match="compile it again"):
        unfuse(model)


def test_an_attribute_of_another_type_is_refused(model: ir.Model):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    linear = named(model, "/layers.0/mlp/gate_proj+up_proj/SparseLinear")
    linear.attributes.add(ir.AttrString("max_sparse_rows", "many"))
    with pytest.raises(SparseccError, match="compile it again"):
        unfuse(model)


@pytest.mark.parametrize(
    ("note", "widths"),
    [
        (["a", "a"], [8, 4]),
        (["a", ""], [8, 4]),
        (["a", "b"], [-8, 20]),
        (["a", "b"], [8, 1000]),
        (["a", "b"], [[8], [4]]),
        (["a", "b"], [8.0, 4.0]),
    ],
)
def test_what_does_not_fit_is_refused(model: ir.Model, note: list[str], widths: list[object]):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    named(model, "/layers.0/attn/q_proj+k_proj/SparseMatMul").metadata_props["merged"] = json.dumps(note)
    sizes = named(model, "/layers.0/attn/q_proj+k_proj/Split").inputs[1]
    sizes.const_value = ir.tensor(np.array(widths))
    with pytest.raises(SparseccError, match="compile it again"):
        unfuse(model)


def test_a_block_size_that_is_not_said_is_the_operators_own(model: ir.Model):
    """gate has 16 columns, which do not fill a block of 32."""
    sparsify(model, recipe_for(model, ALIKE), [quantized(model, 8, block_size=32)])
    for node in model.graph:
        node.attributes.pop("block_size", None)
    assert not MergeProductsPass()(model).modified


def test_initializers_with_the_same_last_name_are_kept_apart(model: ir.Model):
    for kind in "qk":
        model.graph.initializers[f"w_{kind}"].name = f"{kind}/MatMul/value"
        model.graph.initializers[f"b_{kind}"].name = f"{kind}/Add/value"
    sparsify(model, recipe_for(model, ALIKE))
    x = np.random.default_rng(0).standard_normal((1, 2, 8)).astype(np.float32)
    (expected,) = run(model, x=x)
    fuse(model)
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-5)


def test_operators_that_share_thresholds_unfuse_to_names_of_their_own(model: ir.Model):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    linears = [node for node in model.graph if node.op_type == "SparseLinear"]
    for linear in linears:
        linear.replace_input_with(1, linears[0].inputs[1])
    unfuse(model)
    names = [node.name for node in model.graph] + [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("halves", [1, 3])
def test_a_gated_product_that_is_not_of_two_is_refused(model: ir.Model, halves: int):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    merged = [f"/layers.0/mlp/{name}/SparseMatMul" for name in ("gate_proj", "up_proj", "other")[:halves]]
    named(model, "/layers.0/mlp/gate_proj+up_proj/SparseLinear").metadata_props["merged"] = json.dumps(merged)
    with pytest.raises(SparseccError, match="compile it again"):
        unfuse(model)


GATED = """
gated (float[1, s, 8] x) => ({outputs}) {{
  ["gate_up/MatMul"] product = ai.sparsecc.SparseLinear <max_sparse_rows = 4> (x, t, w)
  ["{split}"] gate, up = Split <axis = {axis}{parts}> ({halved})
  sigmoid = Sigmoid ({opened})
  silu = Mul ({silu})
  y = Mul ({gated})
  {rest}
}}
"""
USUAL = {
    "outputs": "float[1, s, n] y",
    "split": "gate_up/Split",
    "axis": "-1",
    "parts": "",
    "halved": "product, halves",
    "opened": "gate",
    "silu": "gate, sigmoid",
    "gated": "silu, up",
    "rest": "",
}


def gated(**unusual: str) -> ir.Model:
    widths = {"halves": [16, 16], "uneven": [8, 24], "quarters": [4, 4]}
    constants = {name: np.array(numbers, np.int64) for name, numbers in widths.items()}
    constants |= {"w": (8, 32), "odd": (8, 33), "t": np.array([0.3], np.float32)}
    model = model_of(GATED.format(**USUAL | unusual), constants)
    ShipFunctionsPass()(model)
    return model


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"silu": "sigmoid, gate"},
        {"gated": "up, silu"},
        {"halved": "product", "parts": ", num_outputs = 2"},
        {"split": ""},
        {"split": "Split_1", "rest": '["gate_up/SwiGLU"] o = Neg (x)'},
    ],
)
def test_gate_and_up_become_one_operator_and_can_be_parted_again(form: dict[str, str]):
    x = np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32)
    (expected,) = run(gated(**form), x=x)
    model = gated(**form)
    fuse(model)
    assert operators(model)[:2] == ["SparseLinear", "SwiGLU"]
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-6)
    UnfuseSwiGLUPass()(model)
    assert operators(model)[:5] == ["SparseLinear", "Split", "Sigmoid", "Mul", "Mul"]
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-6)
    assert FuseSwiGLUPass()(model).modified


@pytest.mark.parametrize("split", ["", "Split_{}", "mlp/Split_{}", "/layers.{}/mlp/Split"])
def test_two_layers_have_names_of_their_own(split: str):
    layer = """
      ["layers.{i}/SparseLinear"] product_{i} = ai.sparsecc.SparseLinear <max_sparse_rows = 4> (x_{i}, t, w)
      ["{split}"] gate_{i}, up_{i} = Split <axis = -1> (product_{i}, halves)
      sigmoid_{i} = Sigmoid (gate_{i})
      silu_{i} = Mul (gate_{i}, sigmoid_{i})
      x_{next} = Mul (silu_{i}, up_{i})"""
    layers = "".join(layer.format(i=i, next=i + 1, split=split.format(i)) for i in range(2))
    text = f"two (float[1, s, 16] x_0) => (float[1, s, 16] x_2) {{ {layers} }}"
    constants = {"w": (16, 32), "t": np.array([0.3], np.float32), "halves": np.array([16, 16], np.int64)}
    model = model_of(text, constants)
    ShipFunctionsPass()(model)
    x = np.random.default_rng(0).standard_normal((1, 3, 16)).astype(np.float32)
    (expected,) = run(model, x_0=x)
    fuse(model)
    assert operators(model) == ["SparseLinear", "SwiGLU"] * 2
    np.testing.assert_allclose(run(model, x_0=x)[0], expected, rtol=1e-5, atol=1e-6)
    unfuse(model)
    np.testing.assert_allclose(run(model, x_0=x)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", ["product", "gate", "up", "sigmoid", "silu"])
def test_what_others_read_stays(value: str):
    is_kept = value != "product"  # which is there after all
    for read in ({"outputs": f"float[1, s, n] y, float[1, s, m] {value}"}, {"rest": f"o = Neg ({value})"}):
        assert FuseSwiGLUPass()(gated(**read)).modified != is_kept


@pytest.mark.parametrize(
    "other",
    [
        {"halved": "product, uneven"},
        {"halved": "x, quarters"},  # may be of a type that the kernel does not take
        {"axis": "2"},
        {"opened": "up"},
        {"silu": "up, sigmoid"},
        {"silu": "gate, gate"},
        {"gated": "silu, gate"},
        {"gated": "silu, silu"},
    ],
)
def test_other_networks_stay(other: dict[str, str]):
    assert not FuseSwiGLUPass()(gated(**other)).modified


def test_an_odd_product_stays():
    model = gated(halved="product", parts=", num_outputs = 2")
    (linear,) = (node for node in model.graph if node.op_type == "SparseLinear")
    linear.replace_input_with(2, model.graph.initializers["odd"])
    assert not FuseSwiGLUPass()(model).modified


@pytest.mark.parametrize("damage", ["no input", "an axis that is no number"])
def test_a_damaged_graph_stays(damage: str):
    model = gated()
    split, sigmoid = (next(node for node in model.graph if node.op_type == name) for name in ("Split", "Sigmoid"))
    if damage == "no input":
        sigmoid.resize_inputs(0)
    else:
        split.attributes.add(ir.AttrString("axis", "last"))
    assert not FuseSwiGLUPass()(model).modified


def test_a_split_that_says_its_widths_twice_is_refused(model: ir.Model):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    named(model, "/layers.0/attn/q_proj+k_proj/Split").attributes.add(ir.AttrInt64("num_outputs", 2))
    with pytest.raises(SparseccError, match="compile it again"):
        unfuse(model)


def test_only_a_product_says_what_it_was_merged_of(model: ir.Model):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    UnfuseSparseLinearPass()(model)
    noted = {node.op_type for node in model.graph if MERGED in node.metadata_props}
    assert noted == {"SparseMatMul"}
