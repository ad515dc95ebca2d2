"""OPT checkpoints, small and random: each form that their authors published, and what is made of them."""

import collections
import shutil

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from sparsecc.artifact import open_artifact
from sparsecc.compilation import compile_model
from sparsecc.evaluation import evaluate
from sparsecc.generation import generate
from sparsecc.inspection import inspect
from sparsecc.model_file import load_model
from sparsecc.opt_export import export_opt
from sparsecc.projections import find_projections
from sparsecc.session import open_session, run_prompt
from sparsecc.text import load_tokenizer, shipped_text, token_windows

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
FORMS = {
    "opt-125m": {},
    "opt-350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "galactica": {"activation_function": "gelu", "enable_bias": False, "layer_norm_elementwise_affine": False},
    "untied": {"tie_word_embeddings": False},
}
TOKENS = np.random.default_rng(0).integers(0, 8192, 300)
"""More than are run at once, so that the key-value cache is used."""


@pytest.fixture
def opt_checkpoint(checkpoint, tmp_path):
    """A function from a form to a random OPT with biases that matter, and the shipped model's tokenizer."""

    def make(**form):
        torch.manual_seed(0)
        model = OPTForCausalLM(OPTConfig(**{**SHAPE, **form}))
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "embed_positions" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        model.save_pretrained(tmp_path / "checkpoint")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(checkpoint / name, tmp_path / "checkpoint")
        (tmp_path / "dense").mkdir()
        return tmp_path / "checkpoint", tmp_path / "dense"

    return make


def logits_error(checkpoint, artifact):
    """The largest difference between onnxruntime's logits and transformers', over the largest logit."""
    model = OPTForCausalLM.from_pretrained(checkpoint)
    with torch.inference_mode():
        expected = model(torch.tensor(TOKENS)[None]).logits.numpy()
    pieces = run_prompt(open_session(artifact.model_path), TOKENS, ["logits"], **artifact.cache_shape)
    actual = np.concatenate([logits for (logits,) in pieces], axis=1)
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("form", FORMS)
def test_the_export_computes_what_transformers_computes(opt_checkpoint, form):
    source, directory = opt_checkpoint(**FORMS[form])
    export_opt(source, directory, "fp32")
    dense = open_artifact(directory)
    assert logits_error(source, dense) < 1e-5
    projections = find_projections(load_model(dense.model_path).graph)
    kinds = [(projection.layer, projection.kind) for projection in projections]
    assert kinds == [(layer, kind) for layer in range(2) for kind in ("q", "k", "v", "o", "up", "down")]


@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (4, 0.25)])
def test_a_quantized_export_computes_nearly_that(opt_checkpoint, bits, error):
    source, directory = opt_checkpoint()
    export_opt(source, directory, f"int{bits}")
    artifact = open_artifact(directory)
    assert 1e-4 < logits_error(source, artifact) < error
    nodes = [node for node in load_model(artifact.model_path).graph if "MatMul" in node.op_type]
    assert collections.Counter(node.op_type for node in nodes) == {"MatMulNBits": 2 * 6 + 1}
    assert {node.attributes["bits"].as_int() for node in nodes} == {bits}
    assert {node.attributes["accuracy_level"].as_int() for node in nodes} == {4}


def test_a_checkpoint_compiles_runs_and_writes_text(opt_checkpoint, tmp_path):
    source, _ = opt_checkpoint()
    options = {"method": "teal", "sparsity": 0.5, "tokens": 1024, "measure": False}
    artifact = compile_model(source, tmp_path / "sparse", **options).artifact
    windows = token_windows(shipped_text("evaluation"), load_tokenizer(artifact.directory), tokens=1024, window=512)
    sparse = evaluate(artifact, windows)
    assert np.isfinite(sparse.perplexity)
    assert sparse.sparsity_by_kind["up"] == pytest.approx(0.5, abs=0.05)
    products = [node for node in load_model(artifact.model_path).graph if node.op_type == "SparseLinear"]
    assert products
    assert all(node.inputs[3] is not None for node in products), "every bias is folded"
    assert "".join(generate(artifact, "It was a dark night", max_new_tokens=8))


@pytest.mark.slow
def test_the_default_method_meets_the_budget_of_the_whole_model(opt_checkpoint, tmp_path):
    source, _ = opt_checkpoint()
    artifact = compile_model(source, tmp_path / "sparse", sparsity=0.5, tokens=1024, measure=False).artifact
    assert {entry.method for entry in inspect(artifact)} == {"fisher"}, "an OPT's residual stream is not rotated"
    windows = token_windows(shipped_text("evaluation"), load_tokenizer(artifact.directory), tokens=1024, window=512)
    assert evaluate(artifact, windows).sparsity == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_blocks_of_it_run_alone(opt_checkpoint, tmp_path):
    source, _ = opt_checkpoint()
    options = {"method": "teal-greedy", "sparsity": 0.5, "tokens": 1024, "measure": False}
    artifact = compile_model(source, tmp_path / "sparse", **options).artifact
    assert len({entry.calibrated_sparsity for entry in inspect(artifact)}) > 2


def test_an_activation_that_is_not_known_is_refused(opt_checkpoint):
    source, directory = opt_checkpoint(activation_function="tanh")
    with pytest.raises(NotImplementedError, match="tanh"):
        export_opt(source, directory, "fp32")
