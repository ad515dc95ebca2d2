"""One model file, four ways to run it: onnxruntime with and without our library, onnxruntime-genai, onnx itself."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime_genai as og
import pytest
from onnx.reference import ReferenceEvaluator

from sparsecc.fusion import unfuse
from sparsecc.generation import load_generator_model
from sparsecc.model_file import load_model
from sparsecc.passes import LimitSparseRowsPass
from sparsecc.session import open_session, run_prompt
from sparsecc.text import load_tokenizer

from . import contrib_operators
from .conftest import THREADS

PROMPTS = (
    "It was a dark night",
    "The old man looked at the sea and said nothing.",
    "In the beginning",
    "She opened the letter with trembling hands, and",
    "London",
)
TOLERANCE = 1e-4


@pytest.fixture(params=[("dense", 0), ("teal", 0.0), ("teal", 0.5), ("wina", 0.5)], ids=str)
def artifact(request, dense, compiled):
    method, sparsity = request.param
    return dense if method == "dense" else compiled(method, sparsity)


def token_ids_of(artifact, prompt):
    return load_tokenizer(artifact.directory).encode(prompt, add_special_tokens=False).ids


def onnxruntime_logits(artifact, token_ids, *, ops_library):
    session = open_session(artifact.model_path, ops_library=ops_library, threads=THREADS)
    return next(run_prompt(session, token_ids, ["logits"], **artifact.cache_shape))[0][0]


def genai_logits(artifact, token_ids):
    model = load_generator_model(artifact, threads=THREADS)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(token_ids) + 1)
    generator = og.Generator(model, parameters)
    generator.append_tokens(token_ids)
    return generator.get_logits()[0, -1]


def reference_logits(artifact, token_ids):
    operators = [
        contrib_operators.GroupQueryAttention,
        contrib_operators.SimplifiedLayerNormalization,
        contrib_operators.SkipSimplifiedLayerNormalization,
    ]
    model = onnx.load(artifact.model_path)
    for index, node in enumerate(model.graph.node):  # else an absent output would become every absent input's value
        node.output[:] = [name or f"unused_{index}_{slot}" for slot, name in enumerate(node.output)]
    evaluator = ReferenceEvaluator(model, new_ops=operators)
    cache = np.zeros((1, artifact.cache_shape["kv_heads"], 0, artifact.cache_shape["head_size"]), np.float32)
    inputs = {value.name: cache for value in model.graph.input if value.name.startswith("past")}
    inputs |= {"input_ids": np.array([token_ids]), "attention_mask": np.ones((1, len(token_ids)), np.int64)}
    return evaluator.run(["logits"], inputs)[0][0]


def relative_error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_the_four_ways_to_run_a_model_agree(artifact, prompt):
    token_ids = token_ids_of(artifact, prompt)[:4]
    expected = reference_logits(artifact, token_ids)
    assert relative_error(onnxruntime_logits(artifact, token_ids, ops_library=None), expected) < TOLERANCE
    assert (
        relative_error(onnxruntime_logits(artifact, token_ids, ops_library=artifact.ops_library), expected) < TOLERANCE
    )
    assert relative_error(genai_logits(artifact, token_ids), expected[-1]) < TOLERANCE


def test_prompts_run_dense_and_single_tokens_sparse(dense, compiled):
    token_ids = token_ids_of(dense, PROMPTS[3])
    sparse = compiled("teal", 0.5)
    expected = onnxruntime_logits(dense, token_ids, ops_library=None)
    actual = onnxruntime_logits(sparse, token_ids, ops_library=sparse.ops_library)
    assert relative_error(actual, expected) < TOLERANCE
    single = onnxruntime_logits(sparse, token_ids[:1], ops_library=sparse.ops_library)
    assert relative_error(single, onnxruntime_logits(dense, token_ids[:1], ops_library=None)) > TOLERANCE


def test_many_sparse_rows_agree_with_and_without_the_library(compiled):
    sparse = compiled("teal", 0.5)
    model = load_model(sparse.model_path)
    LimitSparseRowsPass(0)(model)
    graph = ir.to_proto(model).SerializeToString()
    token_ids = token_ids_of(sparse, " ".join(PROMPTS))[:32]
    logits = []
    for library in (None, sparse.ops_library):
        session = open_session(graph, data_folder=sparse.directory, ops_library=library, threads=THREADS)
        logits.append(next(run_prompt(session, token_ids, ["logits"], **sparse.cache_shape))[0])
    assert relative_error(logits[1], logits[0]) < TOLERANCE


def greedy_tokens(artifact, token_ids, new_tokens):
    model = load_generator_model(artifact, threads=THREADS)
    parameters = og.GeneratorParams(model)
    length = len(token_ids) + new_tokens
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(token_ids)
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0)[len(token_ids) :].tolist()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_at_zero_sparsity_the_sparse_model_generates_the_dense_tokens(dense, compiled, prompt):
    token_ids = token_ids_of(dense, prompt)
    expected = greedy_tokens(dense, token_ids, 256)
    assert len(expected) == 256
    assert greedy_tokens(compiled("teal", 0.0), token_ids, 256) == expected


SPARSE_OPS = ("Threshold", "GatherActive", "SparseMatMul", "SparseLinear")


def test_a_compiled_model_has_one_operator_for_all_that_share_a_threshold(compiled):
    document = json.loads((compiled("teal", 0.5).directory / "recipe.json").read_text())
    model = load_model(compiled("teal", 0.5).model_path)
    assert [sum(node.op_type == op for node in model.graph) for op in SPARSE_OPS] == [0, 0, 0, 32]
    unfuse(model)
    projections = len(document["projections"])
    assert [sum(node.op_type == op for node in model.graph) for op in SPARSE_OPS] == [32, 32, projections, 0]
