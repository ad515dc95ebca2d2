"""What transformers computes for a checkpoint: the truth that an export is held to.

Run as ``python -m sparsecc.reference_logits CHECKPOINT OUTPUT.npy TOKEN_ID...``: in a process of its own, which gives
torch's memory back when it ends.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecc.errors import SparseccError


def reference_logits(checkpoint: Path, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits [S, vocabulary] of a checkpoint in fp32.

    Raises:
        SparseccError: transformers cannot load the checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "logits.npy"
        command = [sys.executable, "-m", "sparsecc.reference_logits", str(checkpoint), str(output)]
        command += [str(token_id) for token_id in token_ids]
        process = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder
        )
        if process.returncode != 0:
            reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise SparseccError(f"transformers cannot run {checkpoint}: {reason}")
        logits: NDArray[np.float32] = np.load(output, allow_pickle=False)
    return logits


def _write_logits(checkpoint: str, output: str, *token_ids: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    with torch.inference_mode():
        logits = model(torch.tensor([[int(token_id) for token_id in token_ids]])).logits[0]
    np.save(output, logits.numpy())


if __name__ == "__main__":
    _write_logits(*sys.argv[1:])
