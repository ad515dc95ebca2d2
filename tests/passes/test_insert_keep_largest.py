import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.passes import InsertKeepLargestPass
from sparsecc.projections import find_projections
from sparsecc.recipe import Recipe
from sparsecc.sparsify import sparsify

from ..graphs import BLOCK_KINDS, FEED_FORWARD, FEED_FORWARD_SHAPES, model_of, operators, random_arrays, recipe_for, run


def keeping(model: ir.Model, kept: int) -> Recipe:
    recipe = recipe_for(model, 0.0)
    return dataclasses.replace(
        recipe, projections=tuple(dataclasses.replace(entry, kept=kept) for entry in recipe.projections)
    )


def test_every_token_keeps_the_largest_channels():
    arrays = random_arrays(FEED_FORWARD_SHAPES)
    model = model_of(FEED_FORWARD, arrays, infer_shapes=True)
    sparsify(model, keeping(model, 5))
    x = np.random.default_rng(1).standard_normal((1, 4, 8)).astype(np.float32)

    def largest(hidden: np.ndarray) -> np.ndarray:
        smallest = np.sort(np.abs(hidden), axis=-1)[..., -5:-4]
        return np.where(np.abs(hidden) >= smallest, hidden, 0)

    hidden = np.maximum(largest(x.astype(np.float64)) @ arrays["w_up"], 0)
    np.testing.assert_allclose(run(model, x=x)[0], largest(hidden) @ arrays["w_down"], rtol=1e-4, atol=1e-4)


def test_projections_of_one_hidden_state_share_what_is_kept(model: ir.Model):
    recipe = keeping(model, 5)
    assert InsertKeepLargestPass(recipe)(model).modified
    assert not InsertKeepLargestPass(recipe)(model).modified
    assert operators(model).count("KeepLargest") == 4
    projections = find_projections(model.graph)
    assert [projection.kind for projection in projections] == BLOCK_KINDS
    assert all(projection.selection is not None for projection in projections)


def test_a_sparse_model_gathers_what_is_kept(model: ir.Model):
    sparsify(model, keeping(model, 5))
    assert [operators(model).count(name) for name in ("KeepLargest", "GatherActive", "SparseMatMul")] == [4, 4, 7]
    kept = next(node for node in model.graph if node.op_type == "KeepLargest")
    assert (kept.attributes.get_int("k"), kept.attributes.get_int("max_sparse_rows")) == (5, 4)
    assert kept.metadata_props["projection"] == "q, k, v"


@pytest.mark.parametrize("kept", [-1, 9])
def test_more_channels_than_there_are_are_refused(model: ir.Model, kept: int):
    with pytest.raises(ir.passes.PreconditionError, match=f"keeps {kept} of the 8 input channels"):
        InsertKeepLargestPass(keeping(model, kept))(model)


def test_an_unknown_projection_is_refused(model: ir.Model):
    with pytest.raises(ir.passes.PreconditionError, match="the model does not have"):
        InsertKeepLargestPass(keeping(model, 5))(model_of("g (float[1, 8] x) => (float[1, 8] y) { y = Identity(x) }"))
