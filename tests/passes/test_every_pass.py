"""What holds for all passes: they do nothing where there is nothing to do, and nothing twice."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc.passes import (
    AnnotatePass,
    CleanUpPass,
    CountActivePass,
    FoldBiasPass,
    FuseSparseLinearPass,
    FuseSwiGLUPass,
    HalveWeightsPass,
    InsertGatherActivePass,
    InsertThresholdPass,
    LimitSparseRowsPass,
    MergeProductsPass,
    QuantizedTensors,
    QuantizeWeightsPass,
    ReplaceMatMulPass,
    ShipFunctionsPass,
    SplitProductsPass,
    TapValuesPass,
    UnfuseSparseLinearPass,
    UnfuseSwiGLUPass,
)
from sparsecc.recipe import Recipe
from sparsecc.sparsify import sparsify

from ..graphs import BLOCK_OPSET, BLOCK_SHAPES, model_of, recipe_for, run, serialized

EMPTY = "empty () => () {}"
IDENTITY = "identity (float[n] x) => (float[n] y) { y = Identity(x) }"
UNRELATED = """
unrelated (float[1, s, 8] x) => (float[1, s, 4] y, bool c) {
  h = MatMul(x, w)
  g = Add(h, b)
  f = com.microsoft.Threshold(g)
  y = MatMul(f, v)
  c = Constant <value_int = 1> ()
}"""

ALL_BUT_TAP: dict[str, Callable[[Recipe], ir.passes.InPlacePass]] = {
    "InsertThreshold": InsertThresholdPass,
    "LimitSparseRows": lambda _: LimitSparseRowsPass(4),
    "InsertGatherActive": lambda _: InsertGatherActivePass(),
    "ReplaceMatMul": lambda _: ReplaceMatMulPass(),
    "FoldBias": lambda _: FoldBiasPass(),
    "Annotate": AnnotatePass,
    "ShipFunctions": lambda _: ShipFunctionsPass(),
    "CleanUp": lambda _: CleanUpPass(),
    "CountActive": lambda _: CountActivePass(),
}


def quantize_gates(recipe: Recipe) -> QuantizeWeightsPass:
    integers, scales = ir.tensor(np.ones((8, 16), np.int8)), ir.tensor(np.ones((8, 1), np.float16))
    gates = [entry.name for entry in recipe.projections if entry.kind == "gate"]
    return QuantizeWeightsPass({name: QuantizedTensors(integers, scales, 32) for name in gates})


STORAGE: dict[str, Callable[[Recipe], ir.passes.InPlacePass]] = {
    "QuantizeWeights": quantize_gates,
    "HalveWeights": lambda _: HalveWeightsPass(),
}
FUSION: dict[str, Callable[[], ir.passes.InPlacePass]] = {
    "MergeProducts": MergeProductsPass,
    "FuseSparseLinear": FuseSparseLinearPass,
    "FuseSwiGLU": FuseSwiGLUPass,
    "UnfuseSwiGLU": UnfuseSwiGLUPass,
    "UnfuseSparseLinear": UnfuseSparseLinearPass,
    "SplitProducts": SplitProductsPass,
}
ALL = {**ALL_BUT_TAP, "TapValues": lambda _: TapValuesPass(["gated", "y"]), **STORAGE}


@pytest.mark.parametrize("name", [*ALL_BUT_TAP, *STORAGE, *FUSION])
@pytest.mark.parametrize("text", [EMPTY, IDENTITY, UNRELATED], ids=["empty", "identity", "unrelated"])
def test_a_graph_without_work_stays_as_it_is(name: str, text: str):
    model = model_of(text, {"w": (8, 8), "b": (8,), "v": (8, 4)} if text is UNRELATED else {})
    CleanUpPass()(model)
    before = serialized(model)
    graph_pass = FUSION[name]() if name in FUSION else ALL[name](Recipe("teal", 0.5))
    assert not graph_pass(model).modified
    assert serialized(model) == before


@pytest.mark.parametrize("name", ALL)
def test_a_second_call_does_nothing(model: ir.Model, name: str):
    recipe = recipe_for(model)
    for earlier, make in ALL_BUT_TAP.items():
        if earlier == name:
            break
        make(recipe)(model)
    assert ALL[name](recipe)(model).modified
    once = serialized(model)
    assert not ALL[name](recipe)(model).modified
    assert serialized(model) == once


@pytest.mark.parametrize("name", ALL)
def test_the_model_stays_valid_and_runs_after_each_pass(model: ir.Model, name: str):
    recipe = recipe_for(model)
    for step, make in ALL.items():
        make(recipe)(model)
        if step == name:
            break
    ShipFunctionsPass()(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32)
    assert all(np.isfinite(output).all() for output in run(model, x=x))


def test_passes_that_fuse_and_unfuse_do_their_work_once(model: ir.Model):
    sparsify(model, recipe_for(model))
    x = np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32)
    (expected,) = run(model, x=x)
    for make in FUSION.values():
        assert make()(model).modified
        once = serialized(model)
        assert not make()(model).modified
        assert serialized(model) == once
        ShipFunctionsPass()(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_pass_that_had_not_done_its_work_would_be_caught(model: ir.Model, name: str):
    recipe = recipe_for(model)
    for earlier, make in ALL_BUT_TAP.items():
        if earlier == name:
            break
        make(recipe)(model)
    ir.node("Relu", [model.graph.inputs[0]], graph=model.graph, name="unused")
    with pytest.raises(ir.passes.PostconditionError):
        ALL[name](recipe).ensures(model)


@pytest.mark.parametrize("name", ["InsertThreshold", "InsertGatherActive", "ReplaceMatMul", "FoldBias"])
def test_a_graph_with_projections_of_another_type_stays_as_it_is(name: str):
    text = "half (float16[1, s, 8] x) => (float16[1, s, 8] y) { u = MatMul(x, w)  h = Relu(u)  y = MatMul(h, w) }"
    model = model_of(text, {"w": np.ones((8, 8), np.float16)})
    before = serialized(model)
    assert not ALL[name](Recipe("teal", 0.5))(model).modified
    assert serialized(model) == before


def test_every_pass_keeps_the_inputs_and_the_weights(model: ir.Model):
    recipe = recipe_for(model)
    for make in ALL_BUT_TAP.values():
        make(recipe)(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert BLOCK_SHAPES.keys() <= model.graph.initializers.keys()
    assert model.opset_imports[""] == BLOCK_OPSET
