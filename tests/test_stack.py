"""Stacking the last layer gives what the same layers written one after the other give."""

import copy
import functools
import json
import re
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sparsecc.artifact import GENAI_CONFIG_NAME, open_artifact
from sparsecc.command_line import app
from sparsecc.compilation import compile_model, write_sparse_artifact
from sparsecc.dense_export import export
from sparsecc.errors import SparseccError
from sparsecc.generation import generate
from sparsecc.inspection import inspect
from sparsecc.model_file import load_model
from sparsecc.recipe import recipe_from_document
from sparsecc.session import open_session, run_prompt
from sparsecc.synthetic import Shape, stack_layers, synthesize

SHALLOW, DEEP = 2, 5
TOKENS = np.arange(40, 60)


def shape(layers):
    return Shape("llama", 128, 320, layers, 4, 2, 300, ties_embedding=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return synthesize(shape(DEEP), tmp_path_factory.mktemp("stack") / "shallow", layers=SHALLOW)


@pytest.fixture(scope="module")
def repeated(tmp_path_factory, checkpoint):
    """A checkpoint whose layers from the second on are the second of ``checkpoint``."""
    directory = synthesize(shape(DEEP), tmp_path_factory.mktemp("stack") / "repeated")
    weights = {name: tensor for file in checkpoint.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in directory.glob("*.safetensors"):
        names = load_file(file).keys()
        source = {name: re.sub(r"layers\.[2-9]", f"layers.{SHALLOW - 1}", name) for name in names}
        save_file({name: weights[source[name]] for name in names}, file, metadata={"format": "pt"})
    return directory


def logits(artifact, library=True):
    session = open_session(artifact.model_path, ops_library=artifact.ops_library if library else None, threads=1)
    pieces = run_prompt(session, TOKENS, [artifact.logits_name], **artifact.cache_shape)
    return np.concatenate([piece for (piece,) in pieces], axis=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, checkpoint, repeated):
    """A function from a checkpoint and a precision to its dense export, each made once."""
    folder = tmp_path_factory.mktemp("exported")
    sources = {"shallow": checkpoint, "repeated": repeated}

    @functools.cache
    def exported_once(name, weights):
        return export(sources[name], folder / f"{name}-{weights}", weights=weights)

    return exported_once


def assert_almost_the_same(actual, expected):
    """But for what one element in each matrix does."""
    assert np.abs(actual - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_no_two_layers_have_equal_weights(tmp_path, exported, weights):
    graph = load_model(stack_layers(exported("shallow", weights), tmp_path / "stacked", DEEP).model_path).graph
    matrices = [value.const_value.tobytes() for value in graph.initializers.values() if len(value.shape) > 1]
    assert len(set(matrices)) == len(matrices)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_a_stacked_dense_model_computes_what_repeated_layers_do(tmp_path, exported, weights):
    shallow, whole = exported("shallow", weights), exported("repeated", weights)
    stacked = stack_layers(shallow, tmp_path / "stacked", DEEP)
    assert_almost_the_same(logits(stacked), logits(whole))
    names = {node.name for node in load_model(stacked.model_path).graph}
    assert names == {node.name for node in load_model(whole.model_path).graph}
    assert stacked.genai_config == whole.genai_config


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, exported):
    directory = tmp_path_factory.mktemp("stack") / "compiled"
    options = {"method": "wina", "weights": "int8", "tokens": 1024, "measure": False}
    return compile_model(exported("shallow", "fp32").directory, directory, **options).artifact


@pytest.mark.slow
def test_a_stacked_sparse_model_computes_what_repeated_layers_with_its_thresholds_do(tmp_path, compiled, exported):
    stacked = stack_layers(compiled, tmp_path / "stacked", DEEP)
    initializers = load_model(stacked.model_path).graph.initializers
    thresholds = {name: value.const_value.numpy() for name, value in initializers.items() if name.endswith("/T")}
    recipe = recipe_from_document(stacked.recipe_document, thresholds)
    (tmp_path / "whole").mkdir()
    whole = write_sparse_artifact(exported("repeated", "fp32"), recipe, tmp_path / "whole")
    assert_almost_the_same(logits(stacked), logits(whole))
    np.testing.assert_allclose(logits(stacked, library=False), logits(whole), atol=0.05)
    assert inspect(stacked) == inspect(whole)
    assert stacked.recipe_document["projections"] == whole.recipe_document["projections"]
    notes = [[node.metadata_props for node in load_model(a.model_path).graph] for a in (stacked, whole)]
    assert sorted(map(str, notes[0])) == sorted(map(str, notes[1]))


def test_onnxruntime_genai_runs_a_stacked_model_whose_weights_are_all_its_own(tmp_path, compiled):
    stacked = stack_layers(compiled, tmp_path / "stacked", DEEP)
    assert len("".join(generate(stacked, "It was", max_new_tokens=8, threads=1))) > 0
    tensors = [value.const_value for value in load_model(stacked.model_path).graph.initializers.values()]
    places = [tensor.offset for tensor in tensors if hasattr(tensor, "offset")]
    assert len(places) == len(set(places))


def test_the_command_says_where_the_model_is(tmp_path, compiled):
    command = ["stack", str(compiled.directory), "--layers", str(DEEP), "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, command)
    assert json.loads(result.stdout) == {"artifact": str(tmp_path / "out")}
    assert open_artifact(tmp_path / "out").decoder["num_hidden_layers"] == DEEP


def test_mistakes_are_refused(tmp_path, compiled):
    with pytest.raises(SparseccError, match="has 2 layers; two or more can be stacked to more than that"):
        stack_layers(compiled, tmp_path / "out", SHALLOW)
    with pytest.raises(SparseccError, match=r"the shape has 5 layers; 6 of them cannot be written"):
        synthesize(shape(DEEP), tmp_path / "out", layers=6)
    with pytest.raises(SparseccError, match="the disk is full"):
        stack_layers(compiled, tmp_path / "out", 1_000_000)
    damaged = with_decoder(compiled, tmp_path / "damaged", num_hidden_layers="many")
    with pytest.raises(SparseccError, match=r"genai_config\.json does not say how many layers the model has"):
        stack_layers(damaged, tmp_path / "out", DEEP)
    damaged = with_decoder(compiled, tmp_path / "other", num_hidden_layers=4)
    with pytest.raises(SparseccError, match="layer 3 is not named as layer 2 is"):
        stack_layers(damaged, tmp_path / "out", DEEP)
    assert not (tmp_path / "out").exists()


def with_decoder(artifact, directory, **settings):
    shutil.copytree(artifact.directory, directory)
    config = copy.deepcopy(artifact.genai_config)
    config["model"]["decoder"].update(settings)
    (directory / GENAI_CONFIG_NAME).write_text(json.dumps(config))
    return open_artifact(directory)
