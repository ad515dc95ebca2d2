"""What a sparse projection needs on a GPU: weights as the file stores them, thresholds by column, bias, correction.

Several thresholds are for q, k and v (or gate and up) as one matrix under thresholds of their own, and the correction
is for R-Sparse's low-rank branch. Only tests ask for either so far: the graphs that sparsecc writes merge what has one
threshold and keep a branch in nodes of its own, so the executor passes one threshold and no correction.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from sparsecc.errors import SparseccError

MOST_SEGMENTS = 3
"""Ranges of columns with thresholds of their own that one launch serves: q, k and v."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PlainWeight:
    """W[K, N] in float32, float16 or bfloat16: input channel k is one contiguous row."""

    values: torch.Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype not in FLOATS or not self.values.is_contiguous():
            raise SparseccError("a weight on the GPU is a contiguous [K, N] of float32, float16 or bfloat16")

    @property
    def shape(self) -> tuple[int, int]:
        """K input channels and N columns."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def row_bytes(self) -> int:
        """What reading one input channel moves."""
        return self.values.shape[1] * self.values.element_size()

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """W[K, N] to multiply by."""
        return self.values.to(dtype)


@dataclass(frozen=True)
class BlockedWeight:
    """W[k, n] = codes[k, n] * scales[k, n // block_size], int8 or int4.

    codes is int8 [K, N], or for int4 uint8 [K, N / 2] as ONNX packs INT4: two's complement, the even column in the low
    nibble. scales is float16 [K, ceil(N / block_size)].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    block_size: int

    def __post_init__(self) -> None:
        channels, columns = self.shape
        blocks = -(-columns // self.block_size) if self.block_size > 0 else -1
        if self.codes.ndim != 2 or self.codes.dtype not in (torch.int8, torch.uint8):
            raise SparseccError("quantized weights on the GPU are [K, N] of int8 or packed int4")
        if self.scales.dtype != torch.float16 or self.scales.shape != (channels, blocks):
            raise SparseccError(f"scales of quantized weights are float16 [{channels}, {blocks}]")
        if not (self.codes.is_contiguous() and self.scales.is_contiguous()):
            raise SparseccError("quantized weights on the GPU are contiguous")

    @property
    def is_packed(self) -> bool:
        """Whether two int4 share a byte."""
        return self.codes.dtype == torch.uint8

    @property
    def shape(self) -> tuple[int, int]:
        """K input channels and N columns."""
        return self.codes.shape[0], self.codes.shape[1] * (2 if self.is_packed else 1)

    @property
    def row_bytes(self) -> int:
        """What reading one input channel moves, scales included."""
        return self.codes.shape[1] + 2 * self.scales.shape[1]

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """W[K, N] to multiply by, computed in float32 first as DequantizeLinear does."""
        codes = unpacked_int4(self.codes) if self.is_packed else self.codes
        by_column = self.scales.float().repeat_interleave(self.block_size, dim=1)[:, : self.shape[1]]
        return (codes * by_column).to(dtype)


Weight = PlainWeight | BlockedWeight


def unpacked_int4(packed: torch.Tensor) -> torch.Tensor:
    """int8 of twice as many columns from uint8, the low nibble first; two's complement."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
    return (nibbles ^ 8).to(torch.int8) - 8


@dataclass(frozen=True)
class LowRank:
    """A[K, R] and B[R, N], which serve the part of a hidden state that is not kept (R-Sparse, arXiv 2504.19449)."""

    left: torch.Tensor
    right: torch.Tensor


@dataclass(frozen=True)
class Norm:
    """The RMS norm of a hidden state x[K] that is taken where x is read: x / sqrt(mean of x² + epsilon) * gain.

    gain is [K] in the type of x. squares is float32 [parts] and adds up to the sum of x², if x is one row.
    """

    gain: torch.Tensor
    squares: torch.Tensor
    epsilon: float


@dataclass(frozen=True)
class Residual:
    """What a projection's outputs [N] are added to, and float32 squares [parts] to fill: the sum of squares of that."""

    hidden: torch.Tensor
    squares: torch.Tensor


@dataclass(frozen=True)
class Projection:
    """y[..., N] = kept(x)[..., K] @ W + bias, the columns in up to three segments with thresholds of their own.

    thresholds[s] is float32 [1] or [K] and rules the next widths[s] columns. bias is [N]. With a low rank,
    (x - kept(x)) @ A @ B is added; there is one segment then.
    More than max_sparse_rows rows are all kept, unless max_sparse_rows is 0.
    """

    weight: Weight
    thresholds: tuple[torch.Tensor, ...]
    widths: tuple[int, ...]
    bias: torch.Tensor | None = None
    max_sparse_rows: int = 0
    low_rank: LowRank | None = None

    def __post_init__(self) -> None:
        channels, columns = self.weight.shape
        if channels < 1:
            raise SparseccError("a projection has at least one input channel")
        if not 0 < len(self.thresholds) == len(self.widths) <= MOST_SEGMENTS:
            raise SparseccError(f"a projection has 1 to {MOST_SEGMENTS} thresholds, and as many widths")
        if sum(self.widths) != columns or min(self.widths) < 1:
            raise SparseccError(f"the widths of segments add up to the {columns} columns of the weight")
        if any(t.shape not in ((1,), (channels,)) or t.dtype != torch.float32 for t in self.thresholds):
            raise SparseccError(f"a threshold is float32 [1] or [{channels}]")
        if self.bias is not None and self.bias.shape != (columns,):
            raise SparseccError(f"the bias of a projection to {columns} columns is [{columns}]")
        if self.low_rank is not None:
            self._check_low_rank(self.low_rank)

    def _check_low_rank(self, low_rank: LowRank) -> None:
        channels, columns = self.weight.shape
        rank = low_rank.left.shape[-1]
        if low_rank.left.shape != (channels, rank) or low_rank.right.shape != (rank, columns):
            raise SparseccError(f"a low-rank correction is [{channels}, R] and [R, {columns}]")
        if len(self.thresholds) != 1:
            raise SparseccError("a projection with a low-rank correction has one threshold")

    @functools.cached_property
    def packed_thresholds(self) -> torch.Tensor:
        """Contiguous float32 [segments, 1], or [segments, K] if any segment has one threshold for each channel.

        Kept from its first use, which must not be while a graph is captured.
        """
        first, *others = self.thresholds
        if not others:
            return first[None].contiguous()
        longest = max(threshold.shape[0] for threshold in self.thresholds)
        return torch.stack([threshold.expand(longest) for threshold in self.thresholds])

    def is_dense(self, rows: int) -> bool:
        """Whether that many rows pass untouched."""
        return 0 < self.max_sparse_rows < rows
