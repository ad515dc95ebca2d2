"""Architectures beside the shipped Llama, as small random checkpoints: biases, norms of q and k, sliding windows."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sparsecc.compilation import compile_model
from sparsecc.inspection import inspect
from sparsecc.model_file import load_model
from sparsecc.session import open_session, run_prompt

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
ARCHITECTURES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "mistral": (MistralForCausalLM, MistralConfig),
}


@pytest.mark.parametrize(
    "architecture", ["qwen3", *(pytest.param(each, marks=pytest.mark.slow) for each in ("qwen2", "mistral"))]
)
def test_a_random_checkpoint_compiles_and_runs(checkpoint, tmp_path, architecture):
    model_class, config_class = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    model = model_class(config_class(**SHAPE))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "checkpoint")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, tmp_path / "checkpoint")
    options = {"tokens": 1024, "measure": False}
    artifact = compile_model(tmp_path / "checkpoint", tmp_path / "sparse", sparsity=0.5, **options).artifact
    kinds = [projection.kind for projection in inspect(artifact)]
    assert sorted(kinds) == sorted(["q", "k", "v", "o", "gate", "up", "down"] * 2 + ["head"])
    logits = [
        next(
            run_prompt(open_session(artifact.model_path, ops_library=library), [5], ["logits"], **artifact.cache_shape)
        )
        for library in (None, artifact.ops_library)
    ]
    np.testing.assert_allclose(logits[0][0], logits[1][0], atol=1e-4)
    if architecture == "qwen2":
        merged = [node for node in load_model(artifact.model_path).graph if "q_proj+k_proj+v_proj/Sparse" in node.name]
        assert [node.inputs[3] is not None for node in merged] == [True, True], "q, k and v have a folded bias"
    assert json.loads((artifact.directory / "recipe.json").read_text())["calibration"]["tokens"] == 1024
