"""Decoding through the executor, against onnxruntime-genai on the same file."""

import numpy as np
import onnxruntime_genai as og
import pytest
import torch

from sparsecc.dense_export import export
from sparsecc.errors import SparseccError
from sparsecc.generation import generate, load_generator_model
from sparsecc.gpu_generation import continue_prompt
from sparsecc.model_file import load_model
from sparsecc.runtime_ops.triton.decoding import open_decoder
from sparsecc.runtime_ops.triton.executor_session import ExecutorSession
from sparsecc.runtime_ops.triton.operators.operator import Placement
from sparsecc.session import open_session, run_prompt
from sparsecc.text import first_tokens, load_tokenizer

from ..conftest import THREADS


def expected_tokens(artifact, token_ids, new_tokens):
    model = load_generator_model(artifact, threads=THREADS)
    parameters = og.GeneratorParams(model)
    length = len(token_ids) + new_tokens
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(token_ids)
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0)[len(token_ids) :].tolist()


def cpu_decoder(artifact, capacity):
    model = load_model(artifact.model_path)
    return open_decoder(model, capacity, device="cpu", dtype=torch.float32, **artifact.cache_shape)


def greedy_tokens(artifact, token_ids, new_tokens):
    decoder = cpu_decoder(artifact, len(token_ids) + new_tokens)
    decoder.start(token_ids)
    tokens = []
    for _ in range(new_tokens):
        tokens.append(int(decoder.next_token))
        decoder.step()
    return tokens


@pytest.mark.parametrize(("sparsity", "new_tokens"), [(0.0, 64), (0.5, 8)])
def test_a_sparse_model_decodes_the_same_tokens(compiled, sparsity, new_tokens):
    """Few at 50 %: an entry that lies within rounding of its threshold is kept by one runtime and not by the other."""
    artifact = compiled("teal", sparsity)
    token_ids = first_tokens(load_tokenizer(artifact.directory), 20)
    assert greedy_tokens(artifact, token_ids, new_tokens) == expected_tokens(artifact, token_ids, new_tokens)


def test_packed_queries_and_quantized_weights_decode_the_same_tokens(checkpoint, tmp_path):
    artifact = export(str(checkpoint), tmp_path / "int8", weights="int8")
    token_ids = first_tokens(load_tokenizer(artifact.directory), 20)
    assert greedy_tokens(artifact, token_ids, 16) == expected_tokens(artifact, token_ids, 16)


def test_prompts_in_pieces_fill_the_cache_as_one(dense):
    token_ids = first_tokens(load_tokenizer(dense.directory), 300)
    whole = cpu_decoder(dense, 301).start(token_ids)
    decoder = cpu_decoder(dense, 301)
    decoder.start(token_ids[:299])
    torch.testing.assert_close(decoder.step(token_ids[299]), whole, rtol=1e-4, atol=1e-4)


def test_a_full_cache_is_refused(dense):
    decoder = cpu_decoder(dense, 3)
    decoder.start([1, 2])
    decoder.step(3)
    with pytest.raises(SparseccError, match="cache of 3 tokens is full"):
        decoder.step(4)
    with pytest.raises(SparseccError, match="does not fit a cache of 3"):
        decoder.start([1, 2, 3, 4])


def test_text_is_continued_as_onnxruntime_genai_continues_it(dense):
    pieces = continue_prompt(dense, "It was a dark night", Placement(torch.device("cpu"), torch.float32), 24, 0.0)
    assert "".join(pieces) == "".join(generate(dense, "It was a dark night", max_new_tokens=24))


def test_a_session_of_the_executor_runs_prompts_in_pieces(compiled):
    artifact = compiled("teal", 0.5)
    token_ids = first_tokens(load_tokenizer(artifact.directory), 300)
    sessions = (ExecutorSession(load_model(artifact.model_path), "cpu"), open_session(artifact.model_path))
    actual, expected = (
        np.concatenate([logits[0] for (logits,) in run_prompt(session, token_ids, ["logits"], **artifact.cache_shape)])
        for session in sessions
    )
    assert np.abs(actual - expected).max() < 1e-4 * np.abs(expected).max()
