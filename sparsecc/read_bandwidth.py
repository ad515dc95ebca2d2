"""How fast this machine reads memory, the limit of decoding."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

_BYTES = 1 << 28
"""What is read, by all threads together: more than any cache holds."""
_PASSES = 5


class ReadBandwidth:
    """Memory that is read again and again, as long as bandwidth is to be measured."""

    def __init__(self, threads: int) -> None:
        self._blocks = np.array_split(np.ones(_BYTES, np.uint8), threads)

    def measure(self) -> float:
        """GB/s at which all threads together read memory: the best of some passes.

        numpy's maximum of bytes costs one instruction for each vector that it loads: from a cache it runs at twice the
        rate at which memory serves a core, so a loop in C reads memory no faster.
        """
        with ThreadPoolExecutor(len(self._blocks)) as pool:
            return _BYTES / min(_seconds(pool, self._blocks) for _ in range(_PASSES)) / 1e9


def _seconds(pool: ThreadPoolExecutor, blocks: list[NDArray[np.uint8]]) -> float:
    start = time.perf_counter()
    list(pool.map(np.max, blocks))
    return time.perf_counter() - start
