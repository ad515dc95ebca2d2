"""Low-rank branches beside projections, against the formula of R-Sparse in float64."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc.fusion import fuse, unfuse
from sparsecc.passes import (
    ExposeBranchesPass,
    ExposeThresholdsPass,
    HalveAddedPass,
    HalveWeightsPass,
    ShipFunctionsPass,
    SplitLowRankPass,
    low_rank_branch,
)
from sparsecc.projections import find_projections
from sparsecc.recipe import Recipe
from sparsecc.sparsify import sparsify

from ..graphs import BLOCK_KINDS, FEED_FORWARD, FEED_FORWARD_SHAPES, Array, model_of, random_arrays, recipe_for, run

RANK = 3
THRESHOLD = 0.6
X = np.random.default_rng(1).standard_normal((1, 4, 8)).astype(np.float32)


@pytest.fixture
def arrays() -> dict[str, Array]:
    return random_arrays(FEED_FORWARD_SHAPES)


def with_branches(recipe: Recipe, branches: Mapping[str, Array], weights: str = "fp32") -> Recipe:
    entries = tuple(dataclasses.replace(entry, branch=branches.get(entry.name)) for entry in recipe.projections)
    return dataclasses.replace(recipe, projections=entries, weights=weights)


def leading_directions(weight: Array) -> Array:
    """By the singular value decomposition itself."""
    return np.linalg.svd(weight.astype(np.float64))[2][:RANK].astype(np.float32)


def branches_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {"up": leading_directions(arrays["w_up"]), "down": leading_directions(arrays["w_down"])}


def by_formula(arrays: Mapping[str, Array], x: Array) -> np.ndarray:
    """y = x_kept W + (x - x_kept) W_r, with W_r the sum of the leading singular triplets, for up and down."""

    def project(hidden: np.ndarray, weight: Array) -> np.ndarray:
        left, values, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
        nearest = left[:, :RANK] * values[:RANK] @ right[:RANK]
        kept = np.where(np.abs(hidden) >= np.float32(THRESHOLD), hidden, 0)
        return kept @ weight.astype(np.float64) + (hidden - kept) @ nearest

    return project(np.maximum(project(x.astype(np.float64), arrays["w_up"]), 0), arrays["w_down"])


def split(arrays: Mapping[str, Array], weights: str = "fp32") -> tuple[ir.Model, Recipe]:
    model = model_of(FEED_FORWARD, arrays, infer_shapes=True)
    recipe = with_branches(recipe_for(model, THRESHOLD), branches_of(arrays), weights)
    SplitLowRankPass(recipe)(model)
    return model, recipe


def test_a_branch_serves_what_the_threshold_drops(arrays: dict[str, Array]):
    model, recipe = split(arrays)
    sparsify(model, recipe)
    for threshold in (node for node in model.graph if node.op_type == "Threshold"):
        threshold.attributes["max_sparse_rows"] = ir.AttrInt64("max_sparse_rows", 0)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run(model, x=X)[0], by_formula(arrays, X), rtol=1e-4, atol=1e-4)


def test_fused_branches_compute_the_same_and_are_found_again(arrays: dict[str, Array]):
    model, recipe = split(arrays)
    sparsify(model, recipe)
    fuse(model)
    assert sum(node.op_type == "SparseLinear" for node in model.graph) == 2
    one_row = X[:, :1]
    np.testing.assert_allclose(run(model, x=one_row)[0], by_formula(arrays, one_row), rtol=1e-4, atol=1e-4)
    unfuse(model)
    assert [projection.name for projection in find_projections(model.graph)] == ["up", "down"]
    assert all(low_rank_branch(projection) for projection in find_projections(model.graph))


def test_without_a_threshold_the_split_weight_computes_what_the_whole_one_did(arrays: dict[str, Array]):
    whole = model_of(FEED_FORWARD, arrays, infer_shapes=True)
    for weights in ("fp32", "fp16"):
        model, _ = split(arrays, weights)
        np.testing.assert_allclose(run(model, x=X)[0], run(whole, x=X)[0], rtol=1e-4, atol=1e-4)


def test_a_branch_can_be_stored_in_float16(arrays: dict[str, Array]):
    model, recipe = split(arrays, "fp16")
    sparsify(model, recipe, (HalveAddedPass(), HalveWeightsPass()))
    assert "MatMul" not in [node.op_type for node in model.graph]
    branch = low_rank_branch(find_projections(model.graph)[0])
    assert branch is not None
    assert {str(node.inputs[2].const_value.dtype) for node in branch} == {"FLOAT16"}
    one_row = X[:, :1]
    np.testing.assert_allclose(run(model, x=one_row)[0], by_formula(arrays, one_row), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("rank", [0, 1, RANK])
def test_ranks_can_be_tried_in_one_session(arrays: dict[str, Array], rank: int):
    model = model_of(FEED_FORWARD, arrays, infer_shapes=True)
    branches = branches_of(arrays)
    for graph_pass in (ExposeThresholdsPass(), ExposeBranchesPass(branches), ShipFunctionsPass()):
        assert graph_pass(model).modified
    assert not ExposeBranchesPass(branches)(model).modified
    mask = (np.arange(RANK) < rank).astype(np.float32)
    threshold = np.array([THRESHOLD], np.float32)
    feeds = {
        f"{name}/{what}": value
        for name in branches
        for what, value in (("Threshold/T", threshold), ("low_rank/mask", mask))
    }
    whole = model_of(FEED_FORWARD, arrays, infer_shapes=True)
    recipe = with_branches(recipe_for(whole, THRESHOLD), {name: rows[:rank] for name, rows in branches.items()})
    SplitLowRankPass(recipe)(whole)
    sparsify(whole, recipe)
    one_row = X[:, :1]
    np.testing.assert_allclose(run(model, x=one_row, **feeds)[0], run(whole, x=one_row)[0], rtol=1e-4, atol=1e-4)


def test_every_kind_of_projection_is_found_beside_its_branch(model: ir.Model):
    branches = {
        projection.name: np.eye(2, projection.outputs, dtype=np.float32) for projection in find_projections(model.graph)
    }
    recipe = with_branches(recipe_for(model), branches)
    SplitLowRankPass(recipe)(model)
    assert not SplitLowRankPass(recipe)(model).modified
    sparsify(model, recipe)
    fuse(model)
    unfuse(model)
    projections = find_projections(model.graph)
    assert [projection.kind for projection in projections] == BLOCK_KINDS
    assert all(low_rank_branch(projection) and projection.threshold for projection in projections)


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        (np.zeros((9, 16), np.float32), "a rank of at most 8"),
        (np.zeros((2, 15), np.float32), "16 output channels"),
        (np.zeros(16, np.float32), "16 output channels"),
    ],
)
def test_a_branch_that_does_not_fit_is_refused(arrays: dict[str, Array], branch: Array, message: str):
    model = model_of(FEED_FORWARD, arrays)
    recipe = with_branches(recipe_for(model), {"up": branch})
    with pytest.raises(ir.passes.PreconditionError, match=message):
        SplitLowRankPass(recipe)(model)


def test_a_branch_for_no_projection_is_refused(arrays: dict[str, Array]):
    recipe = with_branches(recipe_for(model_of(FEED_FORWARD, arrays)), branches_of(arrays))
    with pytest.raises(ir.passes.PreconditionError, match="the model does not have"):
        SplitLowRankPass(recipe)(model_of("g (float[1, 8] x) => (float[1, 8] y) { y = Identity(x) }"))
    with pytest.raises(ir.passes.PreconditionError, match="no threshold"):
        ExposeBranchesPass(branches_of(arrays))(model_of(FEED_FORWARD, arrays))


def test_a_factor_beyond_float16_is_refused(arrays: dict[str, Array]):
    huge = {**arrays, "w_up": arrays["w_up"] * np.float32(1e6)}
    with pytest.raises(ir.passes.PreconditionError, match="store weights as fp32"):
        split(huge, "int4")
