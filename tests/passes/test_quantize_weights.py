from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from sparsecc.model_file import save_model
from sparsecc.passes import QuantizedTensors, QuantizeWeightsPass, ShipFunctionsPass
from sparsecc.projections import find_projections
from sparsecc.quantization.round_to_nearest import round_to_nearest
from sparsecc.sparsify import sparsify

from ..graphs import Array, block, block_output, named, operators, recipe_for, run

TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


def quantized_weights(model: ir.Model, bits: int) -> tuple[dict[str, QuantizedTensors], dict[str, NDArray[np.float32]]]:
    """Tensors for every projection, and what its weight becomes by the name that :func:`block` has for it."""
    stored, dequantized = {}, {}
    for projection in find_projections(model.graph):
        weight = round_to_nearest(projection.weight.const_value.numpy(), bits, 256 // bits)
        integers = ir.Tensor(weight.integers.astype(TYPES[bits].numpy()), TYPES[bits])
        stored[projection.name] = QuantizedTensors(integers, ir.tensor(weight.scales), weight.block_size)
        dequantized[f"w_{projection.kind}"] = weight.dequantized()
    return stored, dequantized


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_layer_computes_with_the_quantized_weights(weights: dict[str, Array], bits: int, rows: int):
    model = block(weights)
    stored, dequantized = quantized_weights(model, bits)
    thresholds = {kind: np.array([0.4], np.float32) for kind in ("q", "k", "v", "o", "gate", "up", "down")}
    sparsify(model, recipe_for(model, thresholds), [QuantizeWeightsPass(stored)])
    assert operators(model).count("SparseMatMulNBits") == 7
    assert "SparseMatMul" not in operators(model)
    x = np.random.default_rng(rows).standard_normal((1, rows, 8)).astype(np.float32)
    expected = block_output(x, {**weights, **dequantized}, thresholds if rows == 1 else None)
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_projections_are_found_and_annotated_as_before(model: ir.Model):
    before = [(entry.name, entry.kind, entry.channels, entry.outputs) for entry in find_projections(model.graph)]
    stored, _ = quantized_weights(model, 4)
    sparsify(model, recipe_for(model), [QuantizeWeightsPass(stored)])
    projections = find_projections(model.graph)
    assert [(entry.name, entry.kind, entry.channels, entry.outputs) for entry in projections] == before
    assert all(entry.threshold is not None for entry in projections)
    assert named(model, "/layers.0/mlp/up_proj/SparseMatMulNBits").metadata_props["projection"] == "up"


def test_the_bias_is_kept_and_an_absent_one_is_written(model: ir.Model):
    stored, _ = quantized_weights(model, 8)
    sparsify(model, recipe_for(model), [QuantizeWeightsPass(stored)])
    assert named(model, "/layers.0/attn/q_proj/SparseMatMulNBits").inputs[4].name == "b_q"
    assert named(model, "/layers.0/attn/o_proj/SparseMatMulNBits").inputs[4] is None


def test_a_file_holds_the_quantized_weights_and_not_the_others(model: ir.Model, tmp_path: Path):
    stored, _ = quantized_weights(model, 4)
    sparsify(model, recipe_for(model), [QuantizeWeightsPass(stored)])
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(model, folder)
    initializers = ir.load(folder / "model.onnx").graph.initializers
    assert not [name for name in initializers if name.startswith("w_")]
    integers = initializers["/layers.0/mlp/down_proj/SparseMatMulNBits/Wq"].const_value
    assert (integers.dtype, integers.nbytes) == (ir.DataType.INT4, 16 * 8 // 2)


def test_only_what_runs_sparsely_is_quantized(model: ir.Model):
    stored, _ = quantized_weights(model, 8)
    before = operators(model)
    assert not QuantizeWeightsPass(stored)(model).modified
    assert operators(model) == before


def test_an_opset_without_blocks_is_refused(model: ir.Model):
    stored, _ = quantized_weights(model, 8)
    sparsify(model, recipe_for(model))
    model.opset_imports[""] = 20
    with pytest.raises(ir.passes.PreconditionError, match="opset 20, in which no weights can be quantized"):
        QuantizeWeightsPass(stored)(model)


def test_weights_of_another_shape_are_refused(model: ir.Model):
    stored, _ = quantized_weights(model, 8)
    names = [entry.name for entry in find_projections(model.graph) if entry.kind in ("q", "k")]
    sparsify(model, recipe_for(model))
    ShipFunctionsPass()(model)
    with pytest.raises(ir.passes.PreconditionError, match=f"the quantized weight of {names[0]} has another shape"):
        QuantizeWeightsPass({names[0]: stored[names[1]]})(model)
