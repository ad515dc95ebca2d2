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
    UnfuseSparseLinearPass,
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
gated (float[1, s, 32] x) => ({outputs}) {{
  gate, up = Split <axis = -1> (x, {widths})
  sigmoid = Sigmoid ({activated})
  silu = Mul ({silu})
  y = Mul ({gated})
  {rest}
}}
"""


USUAL = {
    "outputs": "float[1, s, n] y",
    "widths": "halves",
    "activated": "gate",
    "silu": "gate, sigmoid",
    "gated": "silu, up",
    "rest": "",
}


def gated(**unusual: str) -> ir.Model:
    widths = {"halves": np.array([16, 16], np.int64), "uneven": np.array([8, 24], np.int64)}
    return model_of(GATED.format(**USUAL | unusual), widths)


@pytest.mark.parametrize("order", [{}, {"silu": "sigmoid, gate"}, {"gated": "up, silu"}])
def test_gate_and_up_become_one_operator_in_any_order_of_factors(order: dict[str, str]):
    x = np.random.default_rng(0).standard_normal((1, 3, 32)).astype(np.float32)
    (expected,) = run(gated(**order), x=x)
    model = gated(**order)
    fuse(model)
    assert operators(model) == ["SwiGLU"]
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", ["gate", "up", "sigmoid", "silu"])
@pytest.mark.parametrize("how", ["the caller", "a node"])
def test_what_others_read_of_a_gate_stays(value: str, how: str):
    read = (
        {"outputs": f"float[1, s, n] y, float[1, s, m] {value}"}
        if how == "the caller"
        else {"rest": f"o = Neg ({value})"}
    )
    assert not FuseSwiGLUPass()(gated(**read)).modified


@pytest.mark.parametrize(
    "other",
    [
        {"widths": "uneven"},
        {"activated": "up"},
        {"silu": "up, sigmoid"},
        {"silu": "gate, gate"},
        {"gated": "silu, gate"},
        {"gated": "silu, silu"},
    ],
)
def test_other_networks_stay(other: dict[str, str]):
    assert not FuseSwiGLUPass()(gated(**other)).modified


def test_only_a_product_says_what_it_was_merged_of(model: ir.Model):
    sparsify(model, recipe_for(model, ALIKE))
    fuse(model)
    UnfuseSparseLinearPass()(model)
    noted = {node.op_type for node in model.graph if MERGED in node.metadata_props}
    assert noted == {"SparseMatMul"}
