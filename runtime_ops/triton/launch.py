"""How a projection is cut into programs, and the launch of its kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from sparsecc.runtime_ops.triton.few_rows import few_rows_kernel
from sparsecc.runtime_ops.triton.one_row import one_row_kernel
from sparsecc.runtime_ops.triton.projection import Norm, Projection, Residual
from sparsecc.runtime_ops.triton.storage import VECTOR_BYTES, Stored, stored
from sparsecc.runtime_ops.triton.workspace import workspace

_THREADS = 32


@dataclass(frozen=True)
class Cut:
    """A projection of one row cut into programs.

    block: columns of a program, a power of two, of each half if gated. splits: slices of the input channels. warps of
    32 threads. unroll: groups of rows that are under way at a time. registers that a thread may use: without a bound
    the compiler saves registers and has only one or two loads under way. compact: find the active channels of a slice
    first and read only their rows; else go through all of it and leave loads out. early: start before the kernel ahead
    ends (compute capability 9.0 and up), and prefetch that many bytes of weights in all.

    Without compaction loads begin a microsecond sooner, but take as many instructions as if none were left out, so
    either may be faster. Programs of one or two warps were the fastest on an H200: nothing in them waits for another
    warp, and what a program does before and after reading takes no time of others.
    """

    block: int
    splits: int
    warps: int
    unroll: int
    registers: int
    compact: bool = True
    early: bool = False
    prefetch: int = 0


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU."""
    return bool(triton.knobs.runtime.interpret)


def _compiler_options(cut: Cut) -> dict[str, int | bool]:
    """Options that the interpreter does not know."""
    return {} if interpreting() else {"maxnreg": cut.registers, "launch_pdl": cut.early}


def _slots_at_once(cut: Cut, halves: int) -> int:
    """How many programs' sums to read at a time: what half of the registers hold, and no less than one for each thread.

    Where two threads read the same slot, one may find it empty and the other not.
    """
    threads, width = cut.warps * _THREADS, cut.block * halves
    held = cut.registers // 2 * threads // width
    others = int(triton.next_power_of_2(max(cut.splits - 1, 1)))
    return max(1, threads // width, min(1 << held.bit_length() - 1, others))


@dataclass(frozen=True)
class OneRowLaunch:
    """The kernel of one row with its grid, its arguments, and the constants and options to compile with."""

    grid: tuple[int, int]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        one_row_kernel[self.grid](*self.arguments, **self.options)

    def compile(self) -> None:
        one_row_kernel.warmup(*self.arguments, grid=self.grid, **self.options)


def parts_of(projection: Projection, cut: Cut) -> int:
    """Into how many tiles of columns the outputs of a projection that is not gated are cut."""
    return _tiles(projection.widths, cut.block)


def launched_widths(projection: Projection, *, gated: bool) -> tuple[int, ...]:
    """The widths of the segments of columns that programs take their tiles from: gate's alone stand for up's too."""
    return (projection.weight.shape[1] // 2,) if gated else projection.widths


def launched_weight(projection: Projection, *, gated: bool) -> Stored:
    """The weight as a launch reads it."""
    return stored(projection.weight, launched_widths(projection, gated=gated) * (2 if gated else 1))


def _tiles(widths: tuple[int, ...], block: int) -> int:
    """Into how many tiles of so many columns segments are cut."""
    return sum(-(-width // block) for width in widths)


def one_row_launch(
    x: torch.Tensor,
    projection: Projection,
    cut: Cut,
    *,
    gated: bool,
    out: torch.Tensor,
    norm: Norm | None = None,
    residual: Residual | None = None,
) -> OneRowLaunch:
    """out[N], or [N / 2] if gated, of x[K]; both contiguous. The residual's squares have :func:`parts_of` entries."""
    channels, columns = projection.weight.shape
    halves = 2 if gated else 1
    widths = launched_widths(projection, gated=gated)
    weight = launched_weight(projection, gated=gated)
    thresholds = projection.packed_thresholds
    length = -(-channels // cut.splits)
    slots = _tiles(widths, cut.block)
    vector = VECTOR_BYTES * 8 // weight.bits
    group = max(1, cut.warps * _THREADS * vector // (cut.block * halves))
    slice_length = triton.next_power_of_2(max(length, 2))
    space = workspace(x.device)
    grid = (slots, cut.splits)
    row_bytes = columns * weight.bits // 8
    arguments = (
        x,
        thresholds,
        weight.weights,
        weight.scales,
        x if projection.bias is None else projection.bias.contiguous(),
        out,
        space.indices(slots * cut.splits * slice_length),
        space.slots(slots * (cut.splits - 1) * cut.block * halves),
        norm.gain.contiguous() if norm else x,
        norm.squares.contiguous() if norm else thresholds,
        norm.squares.numel() if norm else 0,
        norm.epsilon if norm else 0.0,
        residual.hidden.contiguous() if residual else x,
        residual.squares if residual else thresholds,
        channels,
        columns,
        weight.blocks,
        weight.block_size,
        row_bytes,
        *(*widths, 0, 0)[:3],
        length,
        cut.prefetch // (cut.splits * row_bytes),
    )
    options = dict(
        KIND=weight.kind,
        GATED=gated,
        BLOCK=cut.block,
        RUN=weight.run,
        GROUP=group,
        UNROLL=cut.unroll,
        SLICE=slice_length,
        SPLITS=cut.splits,
        AT_ONCE=_slots_at_once(cut, halves),
        EVEN=all(width % cut.block == 0 for width in widths),
        COMPACT=cut.compact,
        PER_CHANNEL=thresholds.shape[1] > 1,
        SHARED=not gated or len(projection.thresholds) == 1,
        BIAS=projection.bias is not None,
        EARLY=cut.early,
        NORMED=norm is not None,
        PARTS=triton.next_power_of_2(norm.squares.numel()) if norm else 1,
        ADDED=residual is not None,
        num_warps=cut.warps,
        **_compiler_options(cut),
    )
    return OneRowLaunch(grid, arguments, options)


_ROWS = 16
_FEW_ROWS_BLOCK = 64
_FEW_ROWS_CHANNELS = 32
_FEW_ROWS_PROGRAMS = 512


def launch_few_rows(x: torch.Tensor, projection: Projection, *, gated: bool, out: torch.Tensor) -> None:
    """out[rows, N], or [rows, N / 2] if gated, of x[rows, K] with 1 to 16 rows; both contiguous."""
    rows = x.shape[0]
    channels, columns = projection.weight.shape
    halves = 2 if gated else 1
    widths = launched_widths(projection, gated=gated)
    weight = launched_weight(projection, gated=gated)
    thresholds = projection.packed_thresholds
    tiles = _tiles(widths, _FEW_ROWS_BLOCK)
    splits = max(1, min(8, _FEW_ROWS_PROGRAMS // tiles, channels // _FEW_ROWS_CHANNELS))
    length = -(-channels // splits)
    slice_length = triton.next_power_of_2(max(length, 2))
    space = workspace(x.device)
    few_rows_kernel[(tiles, splits)](
        x,
        thresholds,
        weight.weights,
        weight.scales,
        x if projection.bias is None else projection.bias.contiguous(),
        out,
        space.indices(tiles * splits * slice_length),
        space.slots(tiles * (splits - 1) * halves * _ROWS * _FEW_ROWS_BLOCK),
        rows,
        channels,
        columns,
        weight.blocks,
        weight.block_size,
        *(*widths, 0, 0)[:3],
        length,
        KIND=weight.kind,
        GATED=gated,
        ROWS=_ROWS,
        BLOCK=_FEW_ROWS_BLOCK,
        CHANNELS=_FEW_ROWS_CHANNELS,
        SLICE=slice_length,
        SPLITS=splits,
        AT_ONCE=4,
        PER_CHANNEL=thresholds.shape[1] > 1,
        SHARED=not gated or len(projection.thresholds) == 1,
        BIAS=projection.bias is not None,
    )
