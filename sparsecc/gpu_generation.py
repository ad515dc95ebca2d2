"""Generate text with the executor on a GPU, in bfloat16."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from tokenizers.decoders import DecodeStream

from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model
from sparsecc.runtime_ops.triton.decoder import Decoder
from sparsecc.runtime_ops.triton.decoding import open_decoder, require_gpu
from sparsecc.runtime_ops.triton.operators.operator import Placement
from sparsecc.text import load_tokenizer


def generate_on_gpu(artifact: Artifact, prompt: str, *, max_new_tokens: int, temperature: float) -> Iterator[str]:
    """As :func:`sparsecc.generation.generate`.

    Raises:
        SparseccError: there is no GPU, the prompt is empty or leaves no room in the context, or the model cannot be
            run.
    """
    yield from continue_prompt(artifact, prompt, Placement(require_gpu(), torch.bfloat16), max_new_tokens, temperature)


def continue_prompt(
    artifact: Artifact, prompt: str, placement: Placement, max_new_tokens: int, temperature: float
) -> Iterator[str]:
    """As :func:`generate_on_gpu`, on any device and in any type."""
    tokenizer = load_tokenizer(artifact.directory)
    token_ids = tokenizer.encode(prompt.encode("utf-8", "replace").decode("utf-8")).ids
    if not token_ids:
        raise SparseccError("the prompt is empty; give some text to continue")
    if len(token_ids) >= artifact.context_length:
        raise SparseccError(
            f"the prompt has {len(token_ids)} tokens, the model's context {artifact.context_length}; shorten it"
        )
    capacity = min(len(token_ids) + max_new_tokens, artifact.context_length)
    decoder = load_decoder(artifact, capacity, placement)
    stream = DecodeStream(skip_special_tokens=True)
    for token in _tokens(decoder, token_ids, capacity - len(token_ids), temperature):
        if token in _end_tokens(artifact):
            return
        yield stream.step(tokenizer, token) or ""


def load_decoder(artifact: Artifact, capacity: int, placement: Placement) -> Decoder:
    """The model on a device, with room for ``capacity`` tokens.

    Raises:
        SparseccError: the executor cannot compute a node of the model.
    """
    return open_decoder(
        load_model(artifact.model_path),
        capacity,
        logits_name=artifact.logits_name,
        device=placement.device,
        dtype=placement.dtype,
        **artifact.cache_shape,
    )


def _tokens(decoder: Decoder, token_ids: list[int], count: int, temperature: float) -> Iterator[int]:
    """The tokens that follow, as many as ``count``: at temperature 0 the likeliest, above drawn."""
    logits = decoder.start(token_ids)
    for index in range(count):
        if temperature > 0:
            probabilities = torch.softmax(logits.float() / temperature, dim=-1)
            token = int(torch.multinomial(probabilities, 1))
        else:
            token = int(decoder.next_token)
        yield token
        if index + 1 < count:
            logits = decoder.step(token)


def _end_tokens(artifact: Artifact) -> Collection[int]:
    """The tokens that end a text, by the model's configuration."""
    end = artifact.genai_config["model"].get("eos_token_id", [])
    return end if isinstance(end, list) else [end]
