"""Time a model in a process of its own, which keeps it loaded and whose memory is the model's alone.

The process reads a line for each turn and answers with one JSON object, as it does once when the model is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime_genai as og

from sparsecc.artifact import Artifact, open_artifact
from sparsecc.device import Device
from sparsecc.errors import SparseccError, runtime_failures
from sparsecc.generation import load_generator_model
from sparsecc.text import first_tokens, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Turn:
    """What was measured while one model had its turn.

    Attributes:
        token_seconds: of each decode step.
        prefill_seconds: for the whole prompt.
        resident_bytes: the memory that the model took, weights and buffers, once it had decoded; None if unknown. Of a
            model on a GPU it is memory of the GPU.
    """

    token_seconds: list[float]
    prefill_seconds: float
    resident_bytes: int | None


class TimedModel:
    """An artifact loaded in another process, by onnxruntime-genai or on a GPU by the executor."""

    def __init__(self, process: subprocess.Popen[str], directory: Path) -> None:
        self._process = process
        self._directory = directory

    def turn(self) -> Turn:
        """Read the prompt and decode, once, on the clock.

        Raises:
            SparseccError: the model cannot be run, or its process ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print("turn", file=self._process.stdin, flush=True)
        return Turn(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise SparseccError(
                f"the process that ran {self._directory} ended with {code}; see that there is memory for the model"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SparseccError(answer["error"])
        return answer


@contextlib.contextmanager
def timed_model(
    artifact: Artifact, threads: int, prompt_tokens: int, new_tokens: int, device: Device
) -> Iterator[TimedModel]:
    """Load a model in another process, which ends with the block.

    Raises:
        SparseccError: the model cannot be loaded.
    """
    # -P, since in a clone Python would take the sources of the folder instead of the installed package.
    command = [sys.executable, "-P", "-m", "sparsecc.timed_model", str(artifact.directory)]
    command += [str(number) for number in (threads, prompt_tokens, new_tokens)]
    command.append(device)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            model = TimedModel(process, artifact.directory)
            model._answer()
            yield model
        finally:
            process.kill()


def _serve(directory: Path, threads: int, prompt_tokens: int, new_tokens: int, device: Device) -> None:
    try:
        artifact = open_artifact(directory)
        prompt = _prompt(artifact, prompt_tokens)
        serve_on_device = _serve_on_gpu if device is Device.CUDA else _serve_on_cpu
        serve_on_device(artifact, threads, prompt, new_tokens)
    except SparseccError as error:
        print(json.dumps({"error": str(error)}), flush=True)


def _serve_on_gpu(artifact: Artifact, _threads: int, prompt: list[int], new_tokens: int) -> None:
    from sparsecc.gpu_timing import TimedDecoder

    decoder = TimedDecoder(artifact, len(prompt) + new_tokens + 1)
    print("{}", flush=True)
    for _ in sys.stdin:
        prefill_seconds, token_seconds = decoder.decode(prompt, new_tokens)
        turn = Turn(token_seconds, prefill_seconds, decoder.memory_bytes)
        print(json.dumps(dataclasses.asdict(turn)), flush=True)


def _serve_on_cpu(artifact: Artifact, threads: int, prompt: list[int], new_tokens: int) -> None:
    before = _resident_bytes()
    model = load_generator_model(artifact, threads)
    with runtime_failures("onnxruntime-genai cannot run the model"):
        _decode(model, prompt, 2)  # weights that nothing has read yet are not in memory
        print("{}", flush=True)
        for _ in sys.stdin:
            prefill_seconds, token_seconds = _decode(model, prompt, new_tokens)
            after = _resident_bytes()
            resident = after - before if before is not None and after is not None else None
            turn = Turn(token_seconds, prefill_seconds, resident)
            print(json.dumps(dataclasses.asdict(turn)), flush=True)


def _prompt(artifact: Artifact, tokens: int) -> list[int]:
    token_ids = first_tokens(load_tokenizer(artifact.directory), tokens)
    if len(token_ids) < tokens:
        raise SparseccError(f"the shipped text has {len(token_ids)} tokens; ask for a prompt of at most as many")
    return token_ids


def _decode(model: og.Model, prompt: list[int], new_tokens: int) -> tuple[float, list[float]]:
    """The seconds that the prompt took, and each token.

    The first token is sampled from the prompt's logits and costs no decode step, so it is not timed.
    """
    parameters = og.GeneratorParams(model)
    length = len(prompt) + new_tokens + 1
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, parameters)
    start = time.perf_counter()
    generator.append_tokens(prompt)
    prefill_seconds = time.perf_counter() - start
    generator.generate_next_token()
    token_seconds = []
    for _ in range(new_tokens):
        start = time.perf_counter()
        generator.generate_next_token()
        token_seconds.append(time.perf_counter() - start)
    return prefill_seconds, token_seconds


def _resident_bytes() -> int | None:
    """This process's resident memory, files that are mapped and touched included; None where no /proc says it."""
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return None
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(kilobytes) * 1024


if __name__ == "__main__":
    artifact_directory, *numbers, device_name = sys.argv[1:]
    threads, prompt_tokens, new_tokens = map(int, numbers)
    _serve(Path(artifact_directory), threads, prompt_tokens, new_tokens, Device(device_name))
