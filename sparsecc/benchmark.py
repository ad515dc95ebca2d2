"""Decode and prefill speed of several artifacts, measured in turn in one run, beside the floor that memory sets."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime_genai as og

from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError, runtime_failures
from sparsecc.generation import load_generator_model
from sparsecc.model_file import load_model
from sparsecc.progress import track
from sparsecc.projections import find_projections, is_linear, weight_of
from sparsecc.text import first_tokens, load_tokenizer

ROUNDS = 5
_BANDWIDTH_BYTES = 1 << 28
"""Memory that is read to measure bandwidth, by all threads together: more than any cache holds."""
_BANDWIDTH_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Speed:
    """One artifact's speed.

    Attributes:
        artifact: its directory.
        decode_tokens_per_s: one over the median time of a token, and the same for the fastest and slowest tenth.
        prefill_tokens_per_s: the prompt's tokens over the median time to read it.
        bytes_per_token: what decoding one token must read of the weights, at the calibrated sparsity.
        floor_tokens_per_s: the read bandwidth over ``bytes_per_token``.
        ratio: decode speed over that of the first artifact.
    """

    artifact: Path
    decode_tokens_per_s: float
    decode_tokens_per_s_p10: float
    decode_tokens_per_s_p90: float
    prefill_tokens_per_s: float
    bytes_per_token: int
    floor_tokens_per_s: float
    ratio: float


@dataclasses.dataclass
class _Timings:
    token_seconds: list[float] = dataclasses.field(default_factory=list)
    prefill_seconds: list[float] = dataclasses.field(default_factory=list)


def benchmark(
    artifacts: Sequence[Artifact], *, threads: int = 2, prompt_tokens: int = 64, new_tokens: int = 32
) -> tuple[list[Speed], float]:
    """Measure each artifact ``ROUNDS`` times, all of them in turn in each round, on real text.

    Returns:
        The speeds in the order given, and the read bandwidth in GB/s with as many threads.

    Raises:
        SparseccError: the prompt and the new tokens do not fit a model's context.
    """
    for artifact in artifacts:
        if prompt_tokens + new_tokens + 1 > artifact.context_length:
            raise SparseccError(
                f"{prompt_tokens} + {new_tokens} + 1 tokens exceed the context of {artifact.directory}, "
                f"{artifact.context_length}; ask for fewer"
            )
    bandwidth = read_bandwidth(threads)
    prompts = [_prompt(artifact, prompt_tokens) for artifact in artifacts]
    timings = [_Timings() for _ in artifacts]
    turns = [turn for _ in range(ROUNDS) for turn in range(len(artifacts))]
    for turn in track(turns, "timing", len(turns)):
        model = load_generator_model(artifacts[turn], threads)
        with runtime_failures("onnxruntime-genai cannot run the model"):
            _time_generation(model, prompts[turn], new_tokens, timings[turn])
        del model  # one model in memory at a time
    speeds = [
        _speed(artifact, timing, prompt_tokens, bandwidth) for artifact, timing in zip(artifacts, timings, strict=True)
    ]
    first = speeds[0].decode_tokens_per_s
    return [dataclasses.replace(speed, ratio=speed.decode_tokens_per_s / first) for speed in speeds], bandwidth


def read_bandwidth(threads: int) -> float:
    """GB/s at which ``threads`` threads read memory that no cache holds: the best of some passes."""
    blocks = np.array_split(np.ones(_BANDWIDTH_BYTES // 8, np.int64), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_BANDWIDTH_ROUNDS):
            start = time.perf_counter()
            list(pool.map(np.max, blocks))
            best = max(best, _BANDWIDTH_BYTES / (time.perf_counter() - start))
    return best / 1e9


def bytes_per_token(artifact: Artifact) -> int:
    """The weight bytes that decoding a token reads: all constant matrices, the projections' at calibrated sparsity."""
    graph = load_model(artifact.model_path).graph
    sparsity = {}
    for projection in find_projections(graph):
        if projection.threshold is not None:
            sparsity[projection.node] = _calibrated_sparsity(projection.threshold)
    total = 0.0
    for node in graph:
        if is_linear(node):
            weight = weight_of(node)
            assert weight is not None
            assert weight.const_value is not None
            total += weight.const_value.nbytes * (1 - sparsity.get(node, 0.0))
    return round(total)


def _calibrated_sparsity(threshold: ir.Node) -> float:
    note = threshold.metadata_props.get("calibrated_sparsity", "")
    try:
        sparsity = float(note)
    except ValueError:
        sparsity = -1.0
    if not 0 <= sparsity <= 1:
        raise SparseccError(f"{threshold.name} does not say its calibrated sparsity; compile the model again")
    return sparsity


def _prompt(artifact: Artifact, tokens: int) -> list[int]:
    token_ids = first_tokens(load_tokenizer(artifact.directory), tokens)
    if len(token_ids) < tokens:
        raise SparseccError(f"the shipped text has {len(token_ids)} tokens; ask for a prompt of at most as many")
    return token_ids


def _time_generation(model: og.Model, prompt: list[int], new_tokens: int, timings: _Timings) -> None:
    """Once to warm up, with the weights not yet in memory, and once on the clock.

    The first token of a run is sampled from the prompt's logits and costs no decode step, so it is not timed.
    """
    parameters = og.GeneratorParams(model)
    length = len(prompt) + new_tokens + 1
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    warm_up = og.Generator(model, parameters)
    warm_up.append_tokens(prompt)
    warm_up.generate_next_token()
    warm_up.generate_next_token()
    generator = og.Generator(model, parameters)
    start = time.perf_counter()
    generator.append_tokens(prompt)
    timings.prefill_seconds.append(time.perf_counter() - start)
    generator.generate_next_token()
    for _ in range(new_tokens):
        start = time.perf_counter()
        generator.generate_next_token()
        timings.token_seconds.append(time.perf_counter() - start)


def _speed(artifact: Artifact, timings: _Timings, prompt_tokens: int, bandwidth: float) -> Speed:
    deciles = statistics.quantiles(timings.token_seconds, n=10)
    per_token = bytes_per_token(artifact)
    return Speed(
        artifact=artifact.directory,
        decode_tokens_per_s=1 / statistics.median(timings.token_seconds),
        decode_tokens_per_s_p10=1 / deciles[-1],
        decode_tokens_per_s_p90=1 / deciles[0],
        prefill_tokens_per_s=prompt_tokens / statistics.median(timings.prefill_seconds),
        bytes_per_token=per_token,
        floor_tokens_per_s=bandwidth * 1e9 / per_token,
        ratio=1.0,
    )
