"""Dense exports: in fp32 what transformers computes, quantized nearly that."""

import collections
import json

import onnxruntime_genai
import pytest

from sparsecc.dense_export import EXPORT_WEIGHTS, export, logits_error
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model
from sparsecc.synthetic import Shape, synthesize


@pytest.fixture(scope="module")
def other_checkpoint(tmp_path_factory):
    """A model with the shape of books-16m, and nothing else in common."""
    shape = Shape("llama", 384, 1024, 8, 6, 2, 8192, ties_embedding=True)
    return synthesize(shape, tmp_path_factory.mktemp("other") / "checkpoint")


def test_fp32_computes_what_transformers_computes(dense, checkpoint):
    assert logits_error(checkpoint, dense) < 1e-5


def test_the_model_does_not_depend_on_a_repository_that_the_builder_is_installed_in(dense):
    commit = getattr(onnxruntime_genai, "__commit__", None)
    version = onnxruntime_genai.__version__ + (f"+{commit[:7]}" if commit else "")
    assert load_model(dense.model_path).producer_version == version


@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (4, 0.25)])
@pytest.mark.slow
def test_a_quantized_export_computes_nearly_that(checkpoint, other_checkpoint, tmp_path, bits, error):
    weights = f"int{bits}"
    artifact = export(checkpoint, tmp_path / weights, weights=weights)
    assert 1e-4 < logits_error(checkpoint, artifact) < error
    assert logits_error(other_checkpoint, artifact) > 0.6, "the check tells a wrong model from rounding"
    nodes = [node for node in load_model(artifact.model_path).graph if node.op_type in {"MatMul", "MatMulNBits"}]
    assert collections.Counter(node.op_type for node in nodes) == {"MatMulNBits": 8 * 5 + 1}, "q, k and v are fused"
    assert {node.attributes["bits"].as_int() for node in nodes} == {bits}
    assert {node.attributes["block_size"].as_int() for node in nodes} == {32}
    assert {node.attributes["accuracy_level"].as_int() for node in nodes} == {4}
    assert json.loads((artifact.directory / "recipe.json").read_text())["weights"] == weights


def test_a_precision_that_there_is_not_is_refused(checkpoint, tmp_path):
    assert EXPORT_WEIGHTS == ("fp32", "int8", "int4")
    with pytest.raises(SparseccError, match="cannot be exported as 'int3'; choose one of fp32, int8, int4"):
        export(checkpoint, tmp_path / "out", weights="int3")
    assert list(tmp_path.iterdir()) == []
