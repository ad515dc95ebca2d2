"""Write a Hugging Face checkpoint of a given shape with random weights, one layer in memory at a time.

Every matrix is drawn from a normal distribution with variance one over its input channels, and those that write to the
residual stream are scaled so that all layers together add about as much as the embedding of a token brings. Norms
multiply by one and biases are zero. So hidden states differ from token to token, are of the order of one through any
number of layers and, being sums of many terms, are roughly normal. Speed depends on shapes and on how many entries a
threshold drops, not on what the weights mean; the text that such a model writes is noise.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from sparsecc.artifact import staged_directory
from sparsecc.errors import SparseccError
from sparsecc.progress import track
from sparsecc.synthetic.shapes import SHAPES, Shape
from sparsecc.text import TOKENIZER_NAME, shipped_text

END_OF_TEXT = "<|endoftext|>"
_SMALLEST_VOCABULARY = 257
"""Every byte and the end of the text."""
_LEARNED_VOCABULARY = 8192
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_RESIDUAL_WRITER = re.compile(r"\.(o_proj|down_proj)\.weight$")
_DRAWN_AT_ONCE = 1 << 24


def synthesize(
    shape: str | Shape,
    output: str | os.PathLike[str],
    *,
    vocabulary: int | None = None,
    layers: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a checkpoint in bfloat16 that ``export`` and ``compile`` take.

    Args:
        shape: a name of :data:`SHAPES`, or a shape.
        output: the directory to make.
        vocabulary: how many tokens, if not as many as the shape has; a smaller embedding saves memory.
        layers: how many of the shape's layers to write, if not all; ``stack_layers`` repeats the last.
        seed: of the weights.

    Returns:
        The directory.

    Raises:
        SparseccError: there is no such shape, it has fewer layers, the vocabulary is too small, or the directory
            cannot be made.
    """
    whole = _find_shape(shape) if isinstance(shape, str) else shape
    shape = dataclasses.replace(
        whole,
        vocabulary=whole.vocabulary if vocabulary is None else vocabulary,
        layers=whole.layers if layers is None else layers,
    )
    if shape.vocabulary < _SMALLEST_VOCABULARY:
        raise SparseccError(f"a vocabulary needs {_SMALLEST_VOCABULARY} tokens for every byte and the end of a text")
    if not 1 <= shape.layers <= whole.layers:
        raise SparseccError(f"the shape has {whole.layers} layers; {shape.layers} of them cannot be written")
    config = AutoConfig.for_model(
        shape.model_type, **shape.configuration(), bos_token_id=0, eos_token_id=0, dtype="bfloat16"
    )
    config.architectures = [type(_unallocated_model(config)).__name__]
    with staged_directory(Path(output), overwrite=False) as staging:
        _write_weights(config, whole.layers, staging, torch.Generator().manual_seed(seed))
        _write_tokenizer(shape.vocabulary, staging)
        GenerationConfig.from_model_config(config).save_pretrained(staging)
        config.save_pretrained(staging)
    return Path(output)


def _find_shape(name: str) -> Shape:
    if name.lower() not in SHAPES:
        raise SparseccError(f"there is no shape {name!r}; choose one of {', '.join(SHAPES)}")
    return SHAPES[name.lower()]


def _write_weights(config: PreTrainedConfig, depth: int, directory: Path, generator: torch.Generator) -> None:
    """``depth`` is how many layers the residual stream is to pass, also where fewer are written."""
    shards = _shards(_parameter_shapes(config))
    weight_map = {}
    for index, shard in enumerate(track(shards, "writing weights", len(shards)), 1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        tensors = {
            parameter: _random_weight(parameter, shape, config.hidden_size, depth, generator)
            for parameter, shape in shard.items()
        }
        save_file(tensors, directory / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    size = 2 * sum(math.prod(shape) for shard in shards for shape in shard.values())
    index_document = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_document, indent=2), "utf-8")


def _unallocated_model(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def _parameter_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter that a checkpoint of the architecture stores, by name; tied ones are stored once."""
    return {name: tuple(parameter.shape) for name, parameter in _unallocated_model(config).named_parameters()}


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """The parameters by layer, what belongs to none in a shard of its own: no shard is larger than the embedding."""
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer = _LAYER.search(name)
        shards.setdefault(layer.group(1) if layer else name, {})[name] = shape
    return list(shards.values())


def _random_weight(
    name: str, shape: tuple[int, ...], hidden_size: int, depth: int, generator: torch.Generator
) -> torch.Tensor:
    """A parameter in bfloat16: a matrix [outputs, inputs], a norm of ones or a bias of zeros."""
    if len(shape) == 1:
        return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=torch.bfloat16)
    variance = 1 / shape[1]
    if _RESIDUAL_WRITER.search(name):  # the embedding has a variance of one over the hidden size
        variance /= 2 * depth * hidden_size
    weight = torch.empty(shape, dtype=torch.bfloat16)
    for rows in torch.split(weight, max(1, _DRAWN_AT_ONCE // shape[1])):
        rows.copy_(torch.randn(rows.shape, generator=generator) * math.sqrt(variance))
    return weight


def _write_tokenizer(vocabulary: int, directory: Path) -> None:
    """A byte-level BPE tokenizer, learned from the shipped text; tokens that the text never needs are named too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, _LEARNED_VOCABULARY),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(shipped_text("calibration"))], trainer)
    document = json.loads(tokenizer.to_str())
    document["model"]["vocab"].update(_unused_tokens(tokenizer.get_vocab_size(), vocabulary))
    (directory / TOKENIZER_NAME).write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), "utf-8")


def _unused_tokens(start: int, stop: int) -> Iterator[tuple[str, int]]:
    return ((f"<|unused_{token}|>", token) for token in range(start, stop))
