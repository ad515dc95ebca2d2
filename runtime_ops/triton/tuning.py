"""Which cut of a projection is the fastest on this GPU: measured once, then remembered on disk."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
import triton

from sparsecc.runtime_ops.triton import cut_file
from sparsecc.runtime_ops.triton.launch import Cut, launched_weight, one_row_launch
from sparsecc.runtime_ops.triton.projection import BlockedWeight, PlainWeight, Projection, Weight
from sparsecc.runtime_ops.triton.storage import VECTOR_BYTES

SAFE_CUT = Cut(block=64, splits=8, warps=1, unroll=16, registers=128)
"""Runs any projection where nothing can be measured."""
SMALL_CUT = Cut(block=64, splits=2, warps=1, unroll=2, registers=128)
"""Takes the interpreter little time."""
_LAYOUT = 4
"""Of the file and of what it says about; a change makes older files of no use."""
_EXPECTED_KEPT = 0.5
_HALF_NORMAL_MEDIAN = 0.6745
_REGISTERS = 65536
"""Of a multiprocessor."""
_MOST_SPLITS = 64
_SPREAD = 0.9
"""Of what is read at once, the active channels that a slice has on average, so that few slices have more."""
_PREFETCH = 2 << 20
_OUTSIDE_CACHE = 256 << 20
"""Bytes of weights that are read before any is read again, more than the L2 cache keeps."""
_MOST_COPIES = 64
"""Of weights, so that tuning for small ones takes no minutes; a model has not many more of them."""
_REPLAYS = 11
_THREADS = 32


class Form(NamedTuple):
    """A program: its columns for weights of 16 bits, how often such programs fill the GPU, and the rest as in Cut."""

    width: int
    waves: float
    warps: int
    unroll: int
    registers: int
    compact: bool


_PLAIN_FORMS = (
    Form(64, 1, 1, 16, 128, compact=False),
    Form(64, 2, 1, 16, 128, compact=False),
    Form(64, 1, 2, 16, 128, compact=False),
    Form(128, 1, 2, 16, 128, compact=False),
    Form(64, 1, 2, 8, 80, compact=True),
    Form(64, 2, 2, 8, 80, compact=True),
    Form(128, 1, 2, 16, 128, compact=True),
    Form(128, 2, 2, 16, 128, compact=True),
    Form(128, 1, 1, 8, 128, compact=True),
)
_QUANTIZED_FORMS = (
    Form(16, 1, 1, 8, 128, compact=True),
    Form(16, 2, 1, 8, 128, compact=True),
    Form(32, 1, 1, 8, 168, compact=True),
    Form(32, 2, 1, 8, 168, compact=True),
    Form(32, 1, 1, 16, 255, compact=True),
    Form(32, 1, 2, 4, 128, compact=True),
    Form(32, 1, 2, 8, 128, compact=True),
    Form(64, 1, 1, 4, 168, compact=True),
    Form(64, 1, 1, 8, 168, compact=True),
    Form(32, 1, 1, 16, 168, compact=False),
)
"""Of some hundreds that were measured on an H200 with the matrices of an 8B model, those that were the fastest for one,
or nearly so and more even."""


def candidates(projection: Projection, multiprocessors: int, *, gated: bool, early: bool) -> Iterable[Cut]:
    """Cuts whose programs fill the GPU as often as a form says, if no slice gets shorter than what is read at once."""
    channels, columns = projection.weight.shape
    halves = 2 if gated else 1
    bits = launched_weight(projection, gated=gated).bits
    vector = VECTOR_BYTES * 8 // bits

    def cut(form: Form) -> Cut:
        width = form.width * vector // 8
        resident = multiprocessors * (_REGISTERS // (form.registers * _THREADS)) // form.warps
        at_once = form.warps * _THREADS * vector // width * form.unroll
        slices = channels * _EXPECTED_KEPT / (at_once * _SPREAD) if form.compact else channels / at_once
        splits = max(1, min(round(form.waves * resident * width / columns), _MOST_SPLITS, math.ceil(slices)))
        return Cut(width // halves, splits, *form[2:], early=early, prefetch=_PREFETCH if early else 0)

    forms = _PLAIN_FORMS if bits >= 16 else _QUANTIZED_FORMS
    return dict.fromkeys(map(cut, forms))


def cut_for(projection: Projection, x: torch.Tensor, *, gated: bool) -> Cut:
    """The fastest cut for a projection of x[K]; measured on first use, which takes some seconds.

    Where that cannot be measured, while a graph is captured or for want of memory, it is SAFE_CUT.
    """
    key = _key(projection, x, gated=gated)
    known = _known()
    if key not in known:
        cuts = _candidates_on(x.device, projection, gated=gated)
        cut = _remembered(key, cuts)
        if cut is None and torch.cuda.is_current_stream_capturing():
            return SAFE_CUT
        known[key] = cut or _measured(key, cuts, projection, x, gated=gated)
    return known[key]


@functools.cache
def _known() -> dict[str, Cut]:
    """What this process has read or measured, by key."""
    return {}


def _key(projection: Projection, x: torch.Tensor, *, gated: bool) -> str:
    """All that a measurement depends on."""
    shape = "x".join(map(str, (*projection.weight.shape, *projection.widths)))
    name, form = torch.cuda.get_device_name(x.device), "gated" if gated else "plain"
    return f"{_LAYOUT} {name} triton {triton.__version__} {shape} {_storage(projection.weight)} {x.dtype} {form}"


def _storage(weight: Weight) -> str:
    if isinstance(weight, PlainWeight):
        return str(weight.values.dtype)
    return f"{'int4' if weight.is_packed else 'int8'}/{weight.block_size}"


def _candidates_on(device: torch.device, projection: Projection, *, gated: bool) -> tuple[Cut, ...]:
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    early = torch.cuda.get_device_capability(device) >= (9, 0)
    return tuple(candidates(projection, multiprocessors, gated=gated, early=early))


def _remembered(key: str, cuts: Iterable[Cut]) -> Cut | None:
    """The candidate that the file names; whatever else it says is not launched."""
    entry = cut_file.remembered().get(key)
    return next((cut for cut in cuts if asdict(cut) == entry), None)


def _measured(key: str, cuts: Sequence[Cut], projection: Projection, x: torch.Tensor, *, gated: bool) -> Cut:
    """The fastest of cuts, which is remembered for the next process."""
    try:
        cut = _fastest(cuts, projection, x, gated=gated)
    except torch.OutOfMemoryError:
        return SAFE_CUT
    cut_file.remember(key, asdict(cut))
    return cut


def _fastest(cuts: Sequence[Cut], projection: Projection, like: torch.Tensor, *, gated: bool) -> Cut:
    """The cut with the least median time on random hidden states of which half is kept."""
    channels, columns = projection.weight.shape
    copies = min(1 + _OUTSIDE_CACHE // (projection.weight.row_bytes * channels), _MOST_COPIES)
    threshold = torch.full((1,), _HALF_NORMAL_MEDIAN, device=like.device)
    measured = [
        replace(projection, weight=_copy(projection.weight), thresholds=(threshold,) * len(projection.thresholds))
        for _ in range(copies)
    ]
    x = torch.randn(channels, device=like.device).to(like.dtype)
    out = x.new_empty(columns // 2 if gated else columns)
    times: dict[Cut, float] = {}
    with ThreadPoolExecutor() as threads, triton.AsyncCompileMode(threads):
        for cut in cuts:
            one_row_launch(x, measured[0], cut, gated=gated, out=out).compile()
    for cut in cuts:

        def run(cut: Cut = cut) -> None:
            for one in measured:
                one_row_launch(x, one, cut, gated=gated, out=out).run()

        times[cut] = graph_milliseconds(run)
    return min(times, key=times.__getitem__)


def _copy(weight: Weight) -> Weight:
    if isinstance(weight, PlainWeight):
        return PlainWeight(weight.values.clone())
    return BlockedWeight(weight.codes.clone(), weight.scales.clone(), weight.block_size)


def graph_milliseconds(run: Callable[[], None]) -> float:
    """Median time of a recorded graph of what ``run`` launches."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
        times = []
        for _ in range(_REPLAYS + 1):
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(begin.elapsed_time(end))
    torch.cuda.current_stream().wait_stream(stream)
    return float(statistics.median(times[1:]))
