"""llama.cpp as a peer: its own benchmark, ``llama-bench``, run on a GGUF file."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from sparsecc.errors import SparseccError
from sparsecc.timed_model import Turn

EXECUTABLE = "llama-bench"
_MAGIC = b"GGUF"
_SET_FOR_TORCH = "OMP_WAIT_POLICY"
"""Which would take a third of its speed from llama.cpp."""


@dataclasses.dataclass(frozen=True)
class LlamaBench:
    """One GGUF file and the llama-bench that runs it.

    llama-bench decodes from an empty context, onnxruntime-genai after the prompt; at tens of tokens the cache is
    small beside the weights. The file is loaded anew for every turn, off the clock.
    """

    executable: Path
    gguf: Path

    def turn(self, threads: int, prompt_tokens: int, new_tokens: int) -> tuple[Turn, int]:
        """Read a prompt and decode, once; also how many bytes the file's tensors have.

        A decoded token's time is the mean of the turn: llama-bench times no single steps.

        Raises:
            SparseccError: llama-bench cannot be run, fails on the file, or prints something else than its JSON.
        """
        tests = self._run(threads, prompt_tokens, new_tokens)
        try:
            (prefill,) = [test for test in tests if test["n_gen"] == 0]
            (decode,) = [test for test in tests if test["n_prompt"] == 0]
            (prefill_nanoseconds,), (decode_nanoseconds,) = prefill["samples_ns"], decode["samples_ns"]
            turn = Turn([decode_nanoseconds / 1e9 / new_tokens], prefill_nanoseconds / 1e9, None)
            tensor_bytes = int(decode["model_size"])
            if min(prefill_nanoseconds, decode_nanoseconds, tensor_bytes) <= 0:
                raise ValueError("a time or a size is not positive")
        except (KeyError, TypeError, ValueError) as error:
            raise SparseccError(
                f"{self.executable} did not print what llama.cpp's `llama-bench -o json` prints; give another build"
            ) from error
        return turn, tensor_bytes

    def _run(self, threads: int, prompt_tokens: int, new_tokens: int) -> Any:
        command: list[str | Path] = [self.executable, "-m", self.gguf, "-o", "json", "-r", "1"]
        command += ["-t", str(threads), "-p", str(prompt_tokens), "-n", str(new_tokens)]
        environment = {name: value for name, value in os.environ.items() if name != _SET_FOR_TORCH}
        try:
            process = subprocess.run(
                command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
            )
        except OSError as error:
            raise SparseccError(f"{self.executable} cannot be run ({error.strerror}); give another build") from error
        if process.returncode != 0:
            lines = [line for line in process.stderr.splitlines() if line.strip()]
            reason = lines[-1] if lines else f"exit status {process.returncode}"
            raise SparseccError(f"{self.executable} fails on {self.gguf}: {reason}")
        try:
            return json.loads(process.stdout)
        except ValueError:
            return None


def find_llama_bench(executable: str | os.PathLike[str] | None) -> Path:
    """The llama-bench at a path, or the one that the shell would find.

    Raises:
        SparseccError: there is none, or it may not be executed.
    """
    found = shutil.which(executable or EXECUTABLE)
    if found is None:
        raise SparseccError(
            f"{executable} is not an executable file; build llama.cpp's target {EXECUTABLE} and give its path"
            if executable
            else f"there is no {EXECUTABLE} on the path; build llama.cpp and give --llama-bench PATH"
        )
    return Path(found).resolve()


def check_gguf(path: Path) -> None:
    """See that a file is what llama.cpp reads.

    Raises:
        SparseccError: it cannot be read or is no GGUF file.
    """
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise SparseccError(f"{path} cannot be read ({error.strerror}); give a GGUF file") from error
    if magic != _MAGIC:
        raise SparseccError(f"{path} is no GGUF file; convert the checkpoint with llama.cpp's convert_hf_to_gguf.py")
