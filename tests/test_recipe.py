import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.errors import SparseccError
from sparsecc.recipe import (
    Calibration,
    ProjectionRecipe,
    Recipe,
    parse_recipe_document,
    read_recipe_document,
    recipe_from_document,
)

SCALAR = ProjectionRecipe("/layers.0/up", 0, "up", "teal", 0.5, 0.4987, np.array([0.1], np.float32))
PER_CHANNEL = ProjectionRecipe(
    "/layers.3/down", 3, "down", "wina", 0.25, 0.26, np.array([0, 1e-30, 3.4e38, np.inf], np.float32)
)
RECIPE = Recipe("wina", 0.5, (SCALAR, PER_CHANNEL), Calibration("ab" * 32, "cd" * 32, 32768, 1024), {"onnx": "1.23.2"})
PLACES = {"/layers.3/down": "/layers.3/down/Threshold/T", "/layers.0/up": "/layers.0/up/Threshold/T"}
INITIALIZERS = {"/layers.3/down/Threshold/T": PER_CHANNEL.threshold}
DOCUMENT: dict[str, Any] = json.loads(RECIPE.to_json(PLACES))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def recipe_from_json(text: str, initializers: dict[str, np.ndarray]) -> Recipe:
    return recipe_from_document(parse_recipe_document(text), initializers)


def read(document: object) -> Recipe:
    return recipe_from_json(json.dumps(document), INITIALIZERS)


def test_a_recipe_survives_json():
    read_back = recipe_from_json(RECIPE.to_json(PLACES), INITIALIZERS)
    assert read_back == RECIPE
    for actual, expected in zip(read_back.projections, RECIPE.projections, strict=True):
        np.testing.assert_array_equal(actual.threshold, expected.threshold)
        assert actual.threshold.dtype == np.float32


def test_a_count_of_channels_survives_json():
    kept = dataclasses.replace(SCALAR, threshold=np.zeros(1, np.float32), kept=7)
    (read_back,) = recipe_from_json(dataclasses.replace(RECIPE, projections=(kept,)).to_json(), {}).projections
    assert (read_back.kept, read_back.threshold) == (7, 0)
    document = json.loads(dataclasses.replace(RECIPE, projections=(kept,)).to_json())
    document["projections"][0]["kept"] = "7"
    with pytest.raises(SparseccError, match="the recipe is damaged"):
        read(document)


def test_the_rank_of_a_branch_is_written():
    branched = dataclasses.replace(SCALAR, branch=np.eye(3, 5, dtype=np.float32))
    document = json.loads(dataclasses.replace(RECIPE, projections=(branched, SCALAR)).to_json())
    assert [entry.get("rank") for entry in document["projections"]] == [3, None]


def test_a_dense_recipe_survives_json():
    dense = Recipe("dense", 0.0)
    assert recipe_from_json(dense.to_json(), {}) == dense


@given(threshold=st.floats(0, width=32, allow_nan=False))
def test_a_scalar_threshold_survives_json_bit_by_bit(threshold: float):
    entry = ProjectionRecipe("p", 0, "q", "teal", 0.5, 0.5, np.array([threshold], np.float32))
    (read_back,) = recipe_from_json(Recipe("teal", 0.5, (entry,)).to_json(), {}).projections
    assert read_back.threshold.tobytes() == entry.threshold.tobytes()


def test_scalars_are_written_as_numbers_and_channels_as_the_place_that_holds_them():
    scalar, per_channel = DOCUMENT["projections"]
    assert np.float32(scalar["threshold"]) == np.float32(0.1)
    assert per_channel["threshold"] == {"initializer": "/layers.3/down/Threshold/T"}


def refuse_constant(name: str) -> None:
    pytest.fail(f"the recipe says {name}")


def test_no_number_in_the_json_is_infinite_or_nan():
    entry = ProjectionRecipe("p", 0, "q", "wina", 0.5, 0.5, np.array([np.inf], np.float32))
    measured = {"perplexity": {"dense": math.nan, "sparse": math.inf}, "speeds": (1.5, -math.inf)}
    document = json.loads(Recipe("wina", 0.5, (entry,)).to_json(None, measured), parse_constant=refuse_constant)
    assert document["projections"][0]["threshold"] is None
    assert document["measured"] == {"perplexity": {"dense": None, "sparse": None}, "speeds": [1.5, None]}


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{"])
def test_a_file_that_cannot_be_read_is_refused_with_a_remedy(tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "recipe.json").write_bytes(content)
    with pytest.raises(SparseccError, match="compile the model again"):
        read_recipe_document(tmp_path / "recipe.json")


def test_a_file_is_read(tmp_path: Path):
    (tmp_path / "recipe.json").write_text(RECIPE.to_json(PLACES))
    assert read_recipe_document(tmp_path / "recipe.json") == DOCUMENT


def test_measurements_are_written_and_do_not_disturb_reading():
    text = RECIPE.to_json(PLACES, {"perplexity": 12.5})
    assert json.loads(text)["measured"] == {"perplexity": 12.5}
    assert recipe_from_json(text, INITIALIZERS) == RECIPE


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"recipe"', "{}", '{"format": "other", "version": 1}'])
def test_what_is_no_recipe_is_refused_with_a_remedy(text: str):
    with pytest.raises(SparseccError, match="compile the model again"):
        parse_recipe_document(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000])
def test_hostile_json_is_refused(text: str):
    with pytest.raises(SparseccError, match="compile the model again"):
        parse_recipe_document(text)


@pytest.mark.parametrize("version", [0, 2, "1", None, []])
def test_another_version_is_refused_and_named(version: object):
    with pytest.raises(SparseccError, match="reads version 1"):
        read({**DOCUMENT, "version": version})


@pytest.mark.parametrize("field", sorted(set(DOCUMENT) - {"format", "version"}))
def test_a_missing_field_is_refused(field: str):
    with pytest.raises(SparseccError, match="damaged"):
        read({key: value for key, value in DOCUMENT.items() if key != field})


@pytest.mark.parametrize("field", sorted(DOCUMENT["projections"][0]))
def test_a_missing_field_of_a_projection_is_refused(field: str):
    document = copy.deepcopy(DOCUMENT)
    del document["projections"][0][field]
    with pytest.raises(SparseccError, match="damaged"):
        read(document)


@pytest.mark.parametrize(
    "threshold",
    ["much", [], [[1, 2]], {}, {"initializer": None}, {"initializer": []}, {"initializer": "x"}, 10**400],
)
def test_a_threshold_that_is_no_number_and_no_place_is_refused(threshold: object):
    document = copy.deepcopy(DOCUMENT)
    document["projections"][0]["threshold"] = threshold
    with pytest.raises(SparseccError, match="damaged"):
        read(document)


@pytest.mark.parametrize("calibration", ["text", 3, {"tokens": 1}, {**DOCUMENT["calibration"], "tokens": "many"}])
def test_a_damaged_calibration_is_refused(calibration: object):
    with pytest.raises(SparseccError, match="damaged"):
        read({**DOCUMENT, "calibration": calibration})


@pytest.mark.parametrize("layer", [float("inf"), float("nan"), "first", None])
def test_a_layer_that_is_no_number_is_refused(layer: object):
    document = copy.deepcopy(DOCUMENT)
    document["projections"][0]["layer"] = layer
    with pytest.raises(SparseccError, match="damaged"):
        read(document)


@settings(max_examples=200, deadline=None)
@given(text=JSON.map(json.dumps) | st.text())
def test_arbitrary_text_raises_nothing_but_a_clear_error(text: str):
    with pytest.raises(SparseccError):
        recipe_from_json(text, INITIALIZERS)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_arbitrary_values_in_a_recipe_raise_nothing_but_a_clear_error(data: st.DataObject):
    document = copy.deepcopy(DOCUMENT)
    place = data.draw(st.sampled_from([document, document["projections"][0], document["calibration"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    try:
        read(document)
    except SparseccError as error:
        assert "\n" not in str(error)
