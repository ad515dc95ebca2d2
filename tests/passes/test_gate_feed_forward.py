"""The rewriting of up and down behind a gate against CATS's formula, with the library and without."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc.errors import SparseccError
from sparsecc.fusion import fuse, unfuse
from sparsecc.gated_networks import find_gated_networks
from sparsecc.passes import GateFeedForwardPass, HalveWeightsPass, QuantizedTensors, QuantizeWeightsPass
from sparsecc.projections import find_projections
from sparsecc.quantization.round_to_nearest import round_to_nearest
from sparsecc.recipe import parse_recipe_document, recipe_from_document
from sparsecc.session import open_session, ops_library_path
from sparsecc.sparsify import sparsify
from sparsecc.weight_traffic import WeightTraffic

from ..graphs import BLOCK_KINDS, BLOCK_SHAPES, block, named, recipe_for, run, serialized

THRESHOLD = np.array([0.4], np.float32)


def cats_recipe(model, threshold=THRESHOLD):
    """Everything dense but for what the gate selects."""
    recipe = recipe_for(model, 0.0, method="cats")
    gated = {"selected_by": "gate", "threshold": threshold}
    entries = [
        dataclasses.replace(entry, **gated) if entry.kind in ("up", "down") else entry for entry in recipe.projections
    ]
    return dataclasses.replace(recipe, projections=tuple(entries))


def cats_network(r, weights, threshold=THRESHOLD):
    """down(CATS(gate) * up) of equation 3, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    gate = r @ w["w_gate"]
    activated = gate / (1 + np.exp(-gate))
    kept = np.where(np.abs(activated) >= threshold, activated, 0)
    return (kept * (r @ w["w_up"])) @ w["w_down"] + w["b_down"]


@pytest.mark.parametrize("library", [None, ops_library_path()], ids=["function bodies", "library"])
@pytest.mark.parametrize(("storage", "tolerance"), [((), 1e-5), ((HalveWeightsPass(),), 2e-2)], ids=["fp32", "fp16"])
@pytest.mark.parametrize("threshold", [THRESHOLD, np.linspace(0, 1, 16, dtype=np.float32)], ids=["one", "by channel"])
def test_the_model_computes_the_formula(weights, library, storage, tolerance, threshold):
    x = np.random.default_rng(5).standard_normal((1, 3, 8)).astype(np.float32)
    model = block(weights)
    dense = block(weights)
    dense.graph.outputs.append(named(dense, "/layers.0/residual/Add").outputs[0])
    _, r = run(dense, x=x)
    sparsify(model, cats_recipe(model, threshold), storage)
    fuse(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (y,) = open_session(serialized(model), ops_library=library).run(None, {"x": x})
    expected = r + cats_network(r.astype(np.float64), weights, threshold)
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("library", [None, ops_library_path()], ids=["function bodies", "library"])
@pytest.mark.parametrize(("bits", "block_size"), [(8, 64), (4, 32), (4, 64)])
def test_quantized_rows_of_up_are_output_channels(model, weights, library, bits, block_size):
    stored = {}
    for name, weight in (("up", weights["w_up"].T), ("down", weights["w_down"])):
        quantized = round_to_nearest(weight, bits, block_size)
        integers = ir.Tensor(quantized.integers.astype(ir.DataType.INT4.numpy() if bits == 4 else np.int8))
        tensors = QuantizedTensors(integers, ir.tensor(quantized.scales), quantized.block_size)
        stored[f"/layers.0/mlp/{name}_proj"] = tensors
        weights[f"w_{name}"] = quantized.dequantized().T if name == "up" else quantized.dequantized()
    sparsify(model, cats_recipe(model), (QuantizeWeightsPass(stored),))
    assert [node.op_type for node in model.graph if node.op_type.endswith("NBits")] == [
        "GatherMatMulNBits",
        "SparseMatMulNBits",
    ]
    x = np.random.default_rng(5).standard_normal((1, 3, 8)).astype(np.float32)
    (y,) = open_session(serialized(model), ops_library=library).run(None, {"x": x})
    dense = block(weights)
    dense.graph.outputs.append(named(dense, "/layers.0/residual/Add").outputs[0])
    _, r = run(dense, x=x)
    expected = r + cats_network(r.astype(np.float64), weights)
    np.testing.assert_allclose(y, expected, atol=0.03 * np.abs(expected).max())
    sizes = WeightTraffic(model.graph).row_bytes
    assert sizes["/layers.0/mlp/up_proj"] == 8 * bits / 8 + 2, "a row has its weights and one scale"


def test_every_projection_is_found_again(model, weights):
    sparsify(model, cats_recipe(model))
    fuse(model)
    unfuse(model)
    projections = {projection.kind: projection for projection in find_projections(model.graph)}
    assert list(projections) == BLOCK_KINDS
    up, down = projections["up"], projections["down"]
    assert (up.name, up.node.op_type) == ("/layers.0/mlp/up_proj", "GatherMatMul")
    assert (up.channels, up.outputs, up.rows) == (8, 16, 16)
    assert (down.channels, down.outputs, down.rows) == (16, 8, 16)
    assert up.threshold is down.threshold
    assert up.threshold.inputs[0].name == "silu"
    np.testing.assert_array_equal(up.weight.const_value.numpy(), weights["w_up"].T)
    notes = up.threshold.metadata_props
    assert (notes["projection"], notes["method"], notes["calibrated_sparsity"]) == ("up, down", "cats", "0.2500")
    assert up.node.metadata_props["projection"] == "up"


def test_output_channels_that_are_not_computed_count_as_not_read(model):
    sparsify(model, cats_recipe(model))
    traffic = WeightTraffic(model.graph).of({"/layers.0/mlp/up_proj": 4, "/layers.0/mlp/down_proj": 4})
    assert traffic.sparsity_by_kind == {**dict.fromkeys(BLOCK_KINDS, 0.0), "up": 0.75, "down": 0.75}
    sizes = {kind: np.prod(BLOCK_SHAPES[f"w_{kind}"]) for kind in BLOCK_KINDS}
    assert traffic.sparsity == pytest.approx(0.75 * (sizes["up"] + sizes["down"]) / sum(sizes.values()))


def test_a_second_call_does_nothing(model):
    recipe = cats_recipe(model)
    assert GateFeedForwardPass(recipe)(model).modified
    once = serialized(model)
    assert not GateFeedForwardPass(recipe)(model).modified
    assert serialized(model) == once


def test_without_entries_for_a_gate_nothing_happens(model):
    before = serialized(model)
    assert not GateFeedForwardPass(recipe_for(model))(model).modified
    assert serialized(model) == before


def test_recipes_keep_what_selects(model):
    recipe = cats_recipe(model)
    assert recipe_from_document(parse_recipe_document(recipe.to_json()), {}) == recipe
    damaged = recipe.to_json().replace('"selected_by": "gate"', '"selected_by": "moon"')
    with pytest.raises(SparseccError, match="the recipe is damaged"):
        recipe_from_document(parse_recipe_document(damaged), {})


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("down", {"threshold": np.array([0.5], np.float32)}, "need the same threshold"),
        ("down", {"selected_by": "input"}, "need the same threshold"),
        ("gate", {"selected_by": "gate"}, "the recipe wants /layers.0/mlp/gate_proj gated"),
        ("up", {"name": "/moon"}, "need the same threshold"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(model, kind, change, message):
    recipe = cats_recipe(model)
    entries = [dataclasses.replace(entry, **change) if entry.kind == kind else entry for entry in recipe.projections]
    with pytest.raises(SparseccError, match=message):
        sparsify(model, dataclasses.replace(recipe, projections=tuple(entries)))


def test_thresholds_of_another_length_are_refused(model):
    with pytest.raises(SparseccError, match=r"the threshold of /layers.0/mlp/up_proj has shape \(3,\)"):
        sparsify(model, cats_recipe(model, np.zeros(3, np.float32)))


def test_a_network_whose_gate_is_read_elsewhere_stays_whole(model):
    up = named(model, "/layers.0/mlp/up_proj/MatMul")
    model.graph.outputs.append(up.outputs[0])
    assert find_gated_networks(model.graph) == []
    with pytest.raises(SparseccError, match="in no gated network"):
        sparsify(model, cats_recipe(model))
