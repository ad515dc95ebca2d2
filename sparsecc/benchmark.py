"""Decode and prompt speed of several models, measured in turn in one run, beside the limit that memory sets."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from sparsecc.artifact import Artifact
from sparsecc.device import Device
from sparsecc.errors import SparseccError
from sparsecc.llama_bench import LlamaBench, check_gguf, find_llama_bench
from sparsecc.model_file import load_model, model_files
from sparsecc.operators import DOMAIN
from sparsecc.progress import track
from sparsecc.read_bandwidth import ReadBandwidth
from sparsecc.timed_model import TimedModel, Turn, timed_model

if TYPE_CHECKING:
    from sparsecc.gpu_timing import GpuReadBandwidth

ROUNDS = 5
_LINEAR_OPS = {
    ("", "Gemm"),
    ("", "MatMul"),
    ("com.microsoft", "MatMulNBits"),
    (DOMAIN, "SparseLinear"),
    (DOMAIN, "SparseLinearNBits"),
    (DOMAIN, "SparseMatMul"),
    (DOMAIN, "SparseMatMulNBits"),
    (DOMAIN, "GatherMatMul"),
    (DOMAIN, "GatherMatMulNBits"),
}
_MEMORY_PER_MODEL_BYTE = 2
"""onnxruntime repacks dense weights at load and may keep both copies."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """One model's speed.

    Attributes:
        artifact: its directory, or its GGUF file.
        runtime: ``onnxruntime-genai``, ``sparsecc`` for the executor on a GPU, or ``llama.cpp``.
        decode_tokens_per_s: one over the median time of a token, and the same for the fastest and slowest tenth.
        prefill_tokens_per_s: the prompt's tokens over the median time to read it.
        ratio: decode speed over that of the first model.
        bytes_per_token: what decoding one token must read of the weights, at the calibrated sparsity; all tensors of a
            GGUF file.
        active_gb_s: ``bytes_per_token`` times the decode speed.
        floor_tokens_per_s: the read bandwidth over ``bytes_per_token``: a token takes at least the time to read its
            weights, so this is the speed that memory allows.
        model_bytes: the size of the model's files.
        resident_bytes: the memory that the model takes once it has decoded; None where it was not measured.
    """

    artifact: Path
    runtime: str
    decode_tokens_per_s: float
    decode_tokens_per_s_p10: float
    decode_tokens_per_s_p90: float
    prefill_tokens_per_s: float
    ratio: float
    bytes_per_token: int
    active_gb_s: float
    floor_tokens_per_s: float
    model_bytes: int
    resident_bytes: int | None


@dataclasses.dataclass(frozen=True)
class _Setting:
    threads: int
    prompt_tokens: int
    new_tokens: int
    device: Device


class _ArtifactContestant:
    """An artifact, which stays loaded between its turns where there is memory for all, else is loaded for each."""

    def __init__(self, artifact: Artifact, setting: _Setting) -> None:
        self.runtime = "sparsecc" if setting.device is Device.CUDA else "onnxruntime-genai"
        self._artifact = artifact
        self._setting = setting
        self._loaded: TimedModel | None = None
        self.path = artifact.directory
        self.model_bytes = sum(file.stat().st_size for file in model_files(artifact.model_path))
        self.bytes_per_token = bytes_per_token(artifact, setting.device)

    @contextlib.contextmanager
    def kept_loaded(self) -> Iterator[None]:
        with self._load() as self._loaded:
            yield

    def turn(self) -> Turn:
        with contextlib.nullcontext(self._loaded) if self._loaded else self._load() as model:
            return model.turn()

    def _load(self) -> contextlib.AbstractContextManager[TimedModel]:
        setting = self._setting
        return timed_model(self._artifact, setting.threads, setting.prompt_tokens, setting.new_tokens, setting.device)


class _GgufContestant:
    """A GGUF file, which llama-bench maps for each turn."""

    runtime = "llama.cpp"

    def __init__(self, llama_bench: LlamaBench, setting: _Setting) -> None:
        self._llama_bench = llama_bench
        self._setting = setting
        self.path = llama_bench.gguf
        self.model_bytes = llama_bench.gguf.stat().st_size
        self.bytes_per_token = self.model_bytes

    @contextlib.contextmanager
    def kept_loaded(self) -> Iterator[None]:
        yield

    def turn(self) -> Turn:
        setting = self._setting
        turn, self.bytes_per_token = self._llama_bench.turn(setting.threads, setting.prompt_tokens, setting.new_tokens)
        return turn


_Contestant = _ArtifactContestant | _GgufContestant


def benchmark(
    artifacts: Sequence[Artifact],
    *,
    device: Device = Device.CPU,
    threads: int = 2,
    prompt_tokens: int = 64,
    new_tokens: int = 32,
    ggufs: Sequence[Path] = (),
    llama_bench: str | os.PathLike[str] | None = None,
) -> tuple[list[Speed], float]:
    """Measure each model ``ROUNDS`` times, all of them in turn in each round, on real text.

    The read bandwidth is measured before every turn, and the best is what the limits are computed from.

    Args:
        artifacts: dense or sparse; at least one.
        device: where artifacts run; a GPU computes in bfloat16.
        threads: the size of each runtime's pool, and how many threads read to measure bandwidth.
        prompt_tokens: the length of the prompt.
        new_tokens: how many tokens to decode in each round.
        ggufs: peers in llama.cpp's format.
        llama_bench: llama.cpp's benchmark, if the shell would not find it by its name.

    Returns:
        The speeds, artifacts before peers, and the read bandwidth in GB/s.

    Raises:
        SparseccError: there is no such device, the tokens do not fit a model's context, or a model or llama-bench is
            missing or cannot be run.
    """
    for artifact in artifacts:
        if prompt_tokens + new_tokens + 1 > artifact.context_length:
            raise SparseccError(
                f"{prompt_tokens} + {new_tokens} + 1 tokens exceed the context of {artifact.directory}, "
                f"{artifact.context_length}; ask for fewer"
            )
    setting = _Setting(threads, prompt_tokens, new_tokens, device)
    contestants: list[_Contestant] = [_ArtifactContestant(artifact, setting) for artifact in artifacts]
    contestants += _gguf_contestants(ggufs, llama_bench, setting)
    read_bandwidth = _read_bandwidth(device, threads)
    bandwidths: list[float] = []
    turns: list[list[Turn]] = [[] for _ in contestants]
    with contextlib.ExitStack() as stack:
        if _fit_in_memory(contestants, device):
            for contestant in track(contestants, "loading", len(contestants)):
                stack.enter_context(contestant.kept_loaded())
        order = [index for _ in range(ROUNDS) for index in range(len(contestants))]
        for index in track(order, "timing", len(order)):
            bandwidths.append(read_bandwidth.measure())
            turns[index].append(contestants[index].turn())
    bandwidth = max(bandwidths)  # others, and threads that wait for their next turn, can only have taken from it
    speeds = [
        _speed(contestant, taken, prompt_tokens, bandwidth)
        for contestant, taken in zip(contestants, turns, strict=True)
    ]
    first = speeds[0].decode_tokens_per_s
    return [dataclasses.replace(speed, ratio=speed.decode_tokens_per_s / first) for speed in speeds], bandwidth


def _read_bandwidth(device: Device, threads: int) -> ReadBandwidth | GpuReadBandwidth:
    if device is Device.CUDA:
        from sparsecc.gpu_timing import GpuReadBandwidth

        return GpuReadBandwidth()
    return ReadBandwidth(threads)


def bytes_per_token(artifact: Artifact, device: Device = Device.CPU) -> int:
    """The weight bytes that decoding a token reads: all constants of matrix products, at the calibrated sparsity.

    On a GPU float32 weights are bfloat16.
    """
    total = 0.0
    for node in load_model(artifact.model_path).graph:
        if (node.domain, node.op_type) in _LINEAR_OPS:
            constants = [value.const_value for value in node.inputs if value is not None]
            read = sum(_bytes_on(device, constant) for constant in constants if constant is not None)
            total += read * (1 - _calibrated_sparsity(node))
    return round(total)


def _bytes_on(device: Device, constant: ir.TensorProtocol) -> int:
    is_halved = device is Device.CUDA and constant.dtype == ir.DataType.FLOAT
    return constant.nbytes // 2 if is_halved else constant.nbytes


def _calibrated_sparsity(linear: ir.Node) -> float:
    """The share of its weight rows that a matrix product skips: none if it is no sparse operator."""
    if linear.domain != DOMAIN:
        return 0.0
    note = linear.metadata_props.get("calibrated_sparsity", "")
    try:
        sparsity = float(note)
    except ValueError:
        sparsity = -1.0
    if not 0 <= sparsity <= 1:
        raise SparseccError(f"{linear.name} does not say its calibrated sparsity; compile the model again")
    return sparsity


def _gguf_contestants(
    ggufs: Sequence[Path], llama_bench: str | os.PathLike[str] | None, setting: _Setting
) -> list[_GgufContestant]:
    if not ggufs and llama_bench is None:
        return []
    executable = find_llama_bench(llama_bench)
    if not ggufs:
        raise SparseccError(f"there is nothing for {executable} to run; give --gguf FILE")
    for gguf in ggufs:
        check_gguf(gguf)
    return [_GgufContestant(LlamaBench(executable, gguf), setting) for gguf in ggufs]


def _fit_in_memory(contestants: Sequence[_Contestant], device: Device) -> bool:
    """Whether half of the free memory holds all models at once: then each is loaded once, not once a round."""
    available = _free_bytes(device)
    return sum(contestant.model_bytes for contestant in contestants) * _MEMORY_PER_MODEL_BYTE < available / 2


def _free_bytes(device: Device) -> int:
    """The memory that is free, as far as the system says it."""
    if device is Device.CUDA:
        import torch

        return int(torch.cuda.mem_get_info()[0])
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
    except OSError:
        return 0
    return int(fields["MemAvailable"].split()[0]) * 1024


def _speed(contestant: _Contestant, turns: Sequence[Turn], prompt_tokens: int, bandwidth: float) -> Speed:
    token_seconds = [seconds for turn in turns for seconds in turn.token_seconds]
    deciles = statistics.quantiles(token_seconds, n=10, method="inclusive")
    decode_tokens_per_s = 1 / statistics.median(token_seconds)
    resident = [turn.resident_bytes for turn in turns if turn.resident_bytes is not None]
    return Speed(
        artifact=contestant.path,
        runtime=contestant.runtime,
        decode_tokens_per_s=decode_tokens_per_s,
        decode_tokens_per_s_p10=1 / deciles[-1],
        decode_tokens_per_s_p90=1 / deciles[0],
        prefill_tokens_per_s=prompt_tokens / statistics.median(turn.prefill_seconds for turn in turns),
        ratio=1.0,
        bytes_per_token=contestant.bytes_per_token,
        active_gb_s=contestant.bytes_per_token * decode_tokens_per_s / 1e9,
        floor_tokens_per_s=bandwidth * 1e9 / contestant.bytes_per_token,
        model_bytes=contestant.model_bytes,
        resident_bytes=max(resident, default=None),
    )
