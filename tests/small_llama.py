"""A small random Llama, and what it computes in float64 where projections read hidden states in any way."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, WIDTH, HEADS, GROUPS, HEAD_SIZE, INNER, CONTEXT = 2, 64, 4, 2, 16, 128, 128
EPSILON, ROTARY_BASE = 1e-6, 10_000.0

Array = NDArray[np.float64]
Read = Callable[[int, str, Array], Array]
"""What projections multiply of a hidden state [T, K]: of ``attention`` input, ``values``, ``mlp`` input or ``down``."""


def write_checkpoint(directory: Path, tokenizer: Path) -> None:
    """With gains that differ by channel, and weights that keep hidden states of the order of one."""
    rng = np.random.default_rng(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        is_gain, shape = name.endswith("norm.weight"), tuple(parameter.shape)
        drawn = rng.uniform(0.5, 1.5, shape) if is_gain else rng.normal(scale=WIDTH**-0.5, size=shape)
        parameter.data = torch.from_numpy(drawn.astype(np.float32))
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, directory)


def read_weights(directory: Path) -> dict[str, Array]:
    state = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()
    return {name.removeprefix("model."): tensor.double().numpy() for name, tensor in state.items()}


def logits(weights: Mapping[str, Array], ids: NDArray[np.int64], read: Read) -> Array:
    """[T, vocabulary] after T tokens. ``read`` sees what norms give before their gain."""
    stream = weights["embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        w = {
            name.removeprefix(f"layers.{layer}."): array
            for name, array in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        hidden = read(layer, "attention", _normalized(stream)) * w["input_layernorm.weight"]
        q, k, v = (hidden @ w[f"self_attn.{kind}_proj.weight"].T for kind in "qkv")
        stream = stream + read(layer, "values", _attended(q, k, v)) @ w["self_attn.o_proj.weight"].T
        hidden = read(layer, "mlp", _normalized(stream)) * w["post_attention_layernorm.weight"]
        gate, up = (hidden @ w[f"mlp.{kind}_proj.weight"].T for kind in ("gate", "up"))
        stream = stream + read(layer, "down", gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj.weight"].T
    return (_normalized(stream) * weights["norm.weight"]) @ weights["lm_head.weight"].T


def _normalized(stream: Array) -> Array:
    return stream / np.sqrt(np.mean(stream**2, axis=1, keepdims=True) + EPSILON)


def _attended(q: Array, k: Array, v: Array) -> Array:
    """[T, HEADS * HEAD_SIZE], causal; each key-value head serves as many query heads in a row."""
    tokens = len(q)
    queries = _rotated(q.reshape(tokens, HEADS, HEAD_SIZE))
    keys, values = _rotated(k.reshape(tokens, GROUPS, HEAD_SIZE)), v.reshape(tokens, GROUPS, HEAD_SIZE)
    heads = []
    for head in range(HEADS):
        group = head * GROUPS // HEADS
        scores = queries[:, head] @ keys[:, group].T / np.sqrt(HEAD_SIZE)
        scores = np.where(np.tri(tokens, dtype=bool), np.exp(scores - scores.max(axis=1, keepdims=True)), 0)
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ values[:, group])
    return np.concatenate(heads, axis=1)


def _rotated(hidden: Array) -> Array:
    """By its position, [T, heads, HEAD_SIZE]: entry i together with entry i + HEAD_SIZE / 2."""
    half = HEAD_SIZE // 2
    angles = np.outer(np.arange(len(hidden)), ROTARY_BASE ** (-np.arange(half) / half))[:, None]
    first, second = hidden[..., :half], hidden[..., half:]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1
    )
