"""Time the executor on a GPU, and the GPU's memory."""

from __future__ import annotations

import time

import torch

from sparsecc.artifact import Artifact
from sparsecc.gpu_generation import load_decoder
from sparsecc.runtime_ops.triton.decoding import require_gpu
from sparsecc.runtime_ops.triton.operators.operator import Placement

_BYTES = 1 << 31
"""What is read to measure bandwidth: more than any cache holds."""
_PASSES = 10


class TimedDecoder:
    """An artifact on the GPU.

    Attributes:
        memory_bytes: the GPU's memory that the model takes, weights and buffers.
    """

    def __init__(self, artifact: Artifact, capacity: int) -> None:
        self._decoder = load_decoder(artifact, capacity, Placement(require_gpu(), torch.bfloat16))
        self.memory_bytes = torch.cuda.memory_reserved()

    def decode(self, prompt: list[int], new_tokens: int) -> tuple[float, list[float]]:
        """The seconds that the prompt took, and each token; the host reads every token before it asks for the next."""
        start = time.perf_counter()
        self._decoder.start(prompt)
        int(self._decoder.next_token)
        prefill_seconds = time.perf_counter() - start
        token_seconds = []
        for _ in range(new_tokens):
            start = time.perf_counter()
            self._decoder.step()
            int(self._decoder.next_token)
            token_seconds.append(time.perf_counter() - start)
        self.memory_bytes = torch.cuda.memory_reserved()
        return prefill_seconds, token_seconds


class GpuReadBandwidth:
    """Memory of the GPU that is read again and again, as long as bandwidth is to be measured."""

    def __init__(self) -> None:
        self._block = torch.ones(_BYTES // 4, device=require_gpu())
        self._block.sum()

    def measure(self) -> float:
        """GB/s at which a sum reads memory: the best of some passes."""
        return _BYTES / min(self._seconds() for _ in range(_PASSES)) / 1e9

    def _seconds(self) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._block.sum()
        torch.cuda.synchronize()
        return time.perf_counter() - start
