"""Generate text with onnxruntime-genai, which deployments use too."""

from __future__ import annotations

import json
from collections.abc import Iterator

import onnxruntime_genai as og

from sparsecc.artifact import Artifact
from sparsecc.device import Device
from sparsecc.errors import SparseccError, runtime_failures


def load_generator_model(artifact: Artifact, threads: int = 0) -> og.Model:
    """The model as onnxruntime-genai loads it; ``threads`` is the size of the intra-op pool, 0 the runtime's choice.

    Raises:
        SparseccError: onnxruntime-genai cannot load it.
    """
    with runtime_failures("onnxruntime-genai cannot load the model"):
        config = og.Config(str(artifact.directory.resolve()))
        if threads:
            config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        return og.Model(config)


def generate(
    artifact: Artifact,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    threads: int = 0,
    device: Device = Device.CPU,
) -> Iterator[str]:
    """Stream a continuation of ``prompt``, piece by piece as tokens are decoded.

    At temperature 0 each token is the likeliest; above, tokens are drawn from the softened distribution. Generation
    ends at the end-of-text token, after ``max_new_tokens``, or when the model's context is full. A GPU computes in
    bfloat16.

    Raises:
        SparseccError: the prompt is empty or leaves no room in the context, or the model cannot be run.
    """
    if device is Device.CUDA:
        from sparsecc.gpu_generation import generate_on_gpu

        yield from generate_on_gpu(artifact, prompt, max_new_tokens=max_new_tokens, temperature=temperature)
        return
    model = load_generator_model(artifact, threads)
    yield from continue_prompt(
        model, prompt, context_length=artifact.context_length, max_new_tokens=max_new_tokens, temperature=temperature
    )


def continue_prompt(
    model: og.Model, prompt: str, *, context_length: int, max_new_tokens: int, temperature: float
) -> Iterator[str]:
    """As :func:`generate`, with a model that is loaded already."""
    with runtime_failures("onnxruntime-genai cannot run the model"):
        tokenizer = og.Tokenizer(model)
        token_ids = tokenizer.encode(prompt.encode("utf-8", "replace").decode("utf-8"))
        _check_prompt(len(token_ids), context_length)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(
            max_length=min(len(token_ids) + max_new_tokens, context_length),
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else 1.0,
            top_k=0,
        )
        generator = og.Generator(model, parameters)
        generator.append_tokens(token_ids)
        stream = tokenizer.create_stream()
        while not generator.is_done():
            generator.generate_next_token()
            yield stream.decode(generator.get_next_tokens()[0])


def _check_prompt(tokens: int, context_length: int) -> None:
    if tokens == 0:
        raise SparseccError("the prompt is empty; give some text to continue")
    if tokens >= context_length:
        raise SparseccError(f"the prompt has {tokens} tokens, the model's context {context_length}; shorten it")
