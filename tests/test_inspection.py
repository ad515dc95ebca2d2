import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError
from sparsecc.inspection import inspect
from sparsecc.recipe import Recipe

from .graphs import FEED_FORWARD, FEED_FORWARD_SHAPES, model_of, recipe_for


@pytest.fixture
def model() -> ir.Model:
    return model_of(FEED_FORWARD, FEED_FORWARD_SHAPES)


@pytest.fixture
def artifact(model: ir.Model, tmp_path: Path) -> Artifact:
    ir.save(model, tmp_path / "model.onnx")
    return Artifact(tmp_path, {"model": {"decoder": {"filename": "model.onnx"}}})


def write_recipe(artifact: Artifact, recipe: Recipe) -> None:
    (artifact.directory / "recipe.json").write_text(recipe.to_json())


def test_a_model_without_a_recipe_is_dense(artifact: Artifact):
    up, down = inspect(artifact)
    assert (up.kind, up.input_channels, up.output_channels, up.method, up.threshold) == ("up", 8, 16, None, None)
    assert (up.weights, up.block_size) == ("fp32", 1)
    assert (down.kind, down.input_channels, down.output_channels) == ("down", 16, 8)


def test_a_threshold_is_reported(model: ir.Model, artifact: Artifact):
    write_recipe(artifact, recipe_for(model, 0.5))
    assert [(entry.method, entry.threshold) for entry in inspect(artifact)] == [("teal", (0.5, 0.5))] * 2


def test_thresholds_by_channel_are_reported_without_the_infinite_ones(model: ir.Model, artifact: Artifact):
    thresholds = {kind: np.array([0.25, np.inf, 2, 1], np.float32) for kind in ("up", "down")}
    for name in ("a/T", "b/T"):
        model.graph.register_initializer(ir.val(name, const_value=ir.tensor(thresholds["up"], name=name)))
    ir.save(model, artifact.model_path)
    recipe = recipe_for(model, thresholds)
    places = dict(zip([entry.name for entry in recipe.projections], ["a/T", "b/T"], strict=True))
    (artifact.directory / "recipe.json").write_text(recipe.to_json(places))
    assert [entry.threshold for entry in inspect(artifact)] == [(0.25, 2)] * 2


def test_an_infinite_threshold_is_reported_as_none(model: ir.Model, artifact: Artifact):
    write_recipe(artifact, recipe_for(model, np.inf))
    assert [(entry.method, entry.threshold) for entry in inspect(artifact)] == [("teal", None)] * 2


def test_a_recipe_that_is_no_text_is_refused(artifact: Artifact):
    (artifact.directory / "recipe.json").write_bytes(b"\xff\xfe")
    with pytest.raises(SparseccError, match="not a readable UTF-8 text"):
        inspect(artifact)


def test_a_recipe_for_another_model_is_refused(model: ir.Model, artifact: Artifact):
    document = json.loads(recipe_for(model).to_json())
    document["projections"][0]["name"] = "elsewhere"
    (artifact.directory / "recipe.json").write_text(json.dumps(document))
    with pytest.raises(SparseccError, match="names elsewhere, which the model does not have"):
        inspect(artifact)
