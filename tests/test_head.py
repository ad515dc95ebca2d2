"""A language-model head that is thresholded as projections are, on the trained model."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.artifact import Artifact, open_artifact, staged_directory
from sparsecc.benchmark import bytes_per_token
from sparsecc.compilation import write_sparse_artifact
from sparsecc.evaluation import evaluate
from sparsecc.fusion import unfuse
from sparsecc.inspection import inspect
from sparsecc.methods.fisher import thresholdable
from sparsecc.methods.projection_entry import projection_entry
from sparsecc.model_file import load_model
from sparsecc.operators import ADDED
from sparsecc.projections import HEAD, find_head, find_projections, projections_and_head
from sparsecc.recipe import Recipe
from sparsecc.session import open_session, run_prompt
from sparsecc.synthetic import stack_layers
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from .conftest import THREADS

SPARSITY = 0.4
TOKENS = 1024
CALIBRATION_CHARACTERS = 20_000
WEIGHT_TYPES = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
}


@pytest.fixture(scope="module")
def windows(dense):
    return token_windows(shipped_text("evaluation"), load_tokenizer(dense.directory), tokens=TOKENS, window=512)


@pytest.fixture(scope="module")
def recipe(dense, statistics):
    """The head alone; what it reads was not calibrated, so the threshold is roughly that of the sparsity."""
    head = find_head(load_model(dense.model_path).graph)
    threshold = np.linspace(0.3, 0.5, head.channels, dtype=np.float32)
    entry = projection_entry(head, "by hand", SPARSITY, SPARSITY, threshold)
    return Recipe("by hand", SPARSITY, (entry,), statistics.calibration)


@pytest.fixture(scope="module")
def compiled_with(dense, recipe, tmp_path_factory):
    made: dict[str, Artifact] = {}
    text = tmp_path_factory.mktemp("text") / "calibration.txt"
    text.write_text(shipped_text("calibration").read_text("utf-8")[:CALIBRATION_CHARACTERS], "utf-8")

    def artifact(weights: str) -> Artifact:
        if weights not in made:
            target = tmp_path_factory.mktemp("head") / weights
            with staged_directory(target, overwrite=False) as staging:
                stored = dataclasses.replace(recipe, weights=weights)
                write_sparse_artifact(dense, stored, staging, text, threads=THREADS)
            made[weights] = open_artifact(target)
        return made[weights]

    return artifact


def logits_of(artifact, token_ids, library):
    session = open_session(artifact.model_path, ops_library=library, threads=THREADS)
    return next(run_prompt(session, token_ids, ["logits"], **artifact.cache_shape))[0][0]


def test_it_comes_after_the_projections_of_all_layers(dense):
    graph = load_model(dense.model_path).graph
    *projections, head = projections_and_head(graph)
    assert projections == find_projections(graph)
    assert (head.kind, head.layer, head.name) == (HEAD, 8, "/lm_head")
    assert (head.channels, head.outputs) == (384, 8192)


def test_what_a_method_added_is_no_head(dense):
    """In a model whose head is onnxruntime's MatMulNBits a low-rank branch may be the last product."""
    graph = load_model(dense.model_path).graph
    find_head(graph).node.metadata_props[ADDED] = "low-rank branch"
    assert find_head(graph) is None
    assert projections_and_head(graph) == find_projections(graph)


def test_what_makes_no_logits_is_no_head(dense):
    graph = load_model(dense.model_path).graph
    logits = find_head(graph).node.outputs[0]
    graph.outputs.remove(logits)
    assert find_head(graph) is None
    scaled = ir.node("Mul", [logits, logits])
    graph.append(scaled)
    graph.outputs.append(scaled.outputs[0])
    assert find_head(graph).node is logits.producer()


def test_a_head_that_int4_cannot_store_stays_whole(dense):
    """Rows of an odd number of weights would be int8."""
    graph = load_model(dense.model_path).graph
    head = find_head(graph)
    assert thresholdable(graph, "int4") == projections_and_head(graph)
    head.weight.const_value = ir.tensor(np.zeros((head.channels, head.outputs - 1), np.float32))
    assert thresholdable(graph, "int4") == find_projections(graph)
    assert thresholdable(graph, "int8") == projections_and_head(graph)


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_it_is_stored_as_projections_are(compiled_with, weights):
    graph = load_model(compiled_with(weights).model_path).graph
    (node,) = (node for node in graph if node.op_type.startswith("SparseLinear"))
    assert node.inputs[2].const_value.dtype == WEIGHT_TYPES[weights]
    assert node.metadata_props["projection"] == HEAD
    (inspected,) = (entry for entry in inspect(compiled_with(weights)) if entry.method)
    assert (inspected.name, inspected.kind, inspected.weights) == ("/lm_head", HEAD, weights)


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
def test_it_computes_the_same_with_and_without_the_library(compiled_with, weights):
    """One token, sparse; kernels round what they multiply by quantized weights."""
    artifact = compiled_with(weights)
    token_ids = load_tokenizer(artifact.directory).encode("It was a dark night", add_special_tokens=False).ids[:1]
    expected = logits_of(artifact, token_ids, None)
    error = np.abs(logits_of(artifact, token_ids, artifact.ops_library) - expected).max() / np.abs(expected).max()
    assert error < {"int4": 2e-2, "int8": 1e-3}.get(weights, 1e-4)


def test_what_it_skips_counts(dense, compiled_with, windows):
    whole, sparse = (evaluate(artifact, windows, threads=THREADS) for artifact in (dense, compiled_with("fp32")))
    head = find_head(load_model(dense.model_path).graph)
    skipped = sparse.sparsity_by_kind[HEAD]
    assert 0.1 < skipped < 0.9
    assert sparse.bytes_per_token == pytest.approx(whole.bytes_per_token - 4 * head.weight_count * skipped)
    weights = sum(projection.weight_count for projection in projections_and_head(load_model(dense.model_path).graph))
    assert sparse.sparsity == pytest.approx(skipped * head.weight_count / weights)
    assert bytes_per_token(compiled_with("fp32")) == pytest.approx(
        whole.bytes_per_token - 4 * head.weight_count * SPARSITY, rel=1e-3
    )
    assert whole.perplexity < sparse.perplexity < whole.perplexity * 1.2


def test_a_head_that_is_read_whole_is_no_projection(compiled, windows):
    seen = evaluate(compiled("teal", 0.5), windows.first(1), threads=THREADS)
    assert HEAD not in seen.sparsity_by_kind
    assert seen.sparsity == pytest.approx(0.5, abs=0.03)
    assert all(entry.kind != HEAD for entry in inspect(compiled("teal", 0.5)))


def test_it_stays_the_last_of_a_stacked_model(compiled_with, tmp_path):
    stacked = stack_layers(compiled_with("int8"), tmp_path / "deep", 10)
    entry = inspect(stacked)[-1]
    assert (entry.kind, entry.layer, entry.method) == (HEAD, 10, "by hand")
    model = load_model(stacked.model_path)
    unfuse(model)
    head = find_head(model.graph)
    assert (head.layer, head.node.metadata_props["layer"]) == (10, "10")
