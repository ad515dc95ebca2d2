"""The GPU's kernels against float64, for a process with TRITON_INTERPRET=1; test_triton_sparse_linear.py starts it."""

import pytest
import torch

from sparsecc.runtime_ops.triton import reference
from sparsecc.runtime_ops.triton.launch import Cut, launch_one_row
from sparsecc.runtime_ops.triton.projection import BlockedWeight, LowRank, PlainWeight, Projection, Weight
from sparsecc.runtime_ops.triton.sparse_linear import gated_linear, sparse_linear

CHANNELS, COLUMNS = 38, 104
NEARLY_FLOAT32 = 2e-6


def weight_of(kind: str, block_size: int = 32) -> Weight:
    if kind in ("float32", "float16", "bfloat16"):
        return PlainWeight(torch.randn(CHANNELS, COLUMNS).to(getattr(torch, kind)))
    scales = torch.randn(CHANNELS, -(-COLUMNS // block_size)).half()
    if kind == "int8":
        return BlockedWeight(torch.randint(-128, 128, (CHANNELS, COLUMNS)).to(torch.int8), scales, block_size)
    return BlockedWeight(torch.randint(0, 256, (CHANNELS, COLUMNS // 2)).to(torch.uint8), scales, block_size)


def thresholds(*widths: int) -> tuple[torch.Tensor, ...]:
    """One for all channels, one for each, and one that drops more."""
    return (torch.tensor([0.6]), torch.rand(CHANNELS), torch.tensor([1.2]))[: len(widths)]


def check(x: torch.Tensor, projection: Projection, *, gated: bool = False) -> None:
    y = (gated_linear if gated else sparse_linear)(x, projection)
    expected = (reference.gated_project if gated else reference.project)(x, projection, torch.float64)
    assert y.shape == expected.shape and y.dtype == x.dtype
    assert torch.linalg.norm(y - expected) <= NEARLY_FLOAT32 * torch.linalg.norm(expected)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_projects_weights_of_each_type(kind: str, rows: int) -> None:
    widths = (40, 32, 32)
    check(torch.randn(rows, CHANNELS), Projection(weight_of(kind), thresholds(*widths), widths, torch.randn(COLUMNS)))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", ["float16", "int4"])
@pytest.mark.parametrize("widths", [(COLUMNS,), (COLUMNS // 2, COLUMNS // 2)])
def test_gates(kind: str, widths: tuple[int, ...], rows: int) -> None:
    projection = Projection(weight_of(kind, 16), thresholds(*widths), widths, torch.randn(COLUMNS))
    check(torch.randn(rows, CHANNELS), projection, gated=True)


def test_scales_of_blocks_that_are_no_power_of_two() -> None:
    for kind in ("int8", "int4"):
        check(torch.randn(1, CHANNELS), Projection(weight_of(kind, 5), thresholds(COLUMNS), (COLUMNS,)))


@pytest.mark.parametrize("rows", [1, 2, 20])
def test_rows_that_nobody_needs_are_not_read(rows: int) -> None:
    values = torch.randn(CHANNELS, COLUMNS)
    x = torch.randn(rows, CHANNELS)
    x[:, 5], x[:, 6], x[:, 7] = 0.1, float("nan"), 0.0
    values[5], values[6], values[7] = float("nan"), float("inf"), float("nan")
    check(x, Projection(PlainWeight(values), (torch.tensor([0.6]),), (COLUMNS,)))


def test_no_active_channel_leaves_the_bias() -> None:
    projection = Projection(weight_of("float16"), (torch.tensor([9.0]),), (COLUMNS,), torch.randn(COLUMNS))
    check(torch.randn(1, CHANNELS).clamp(-8, 8), projection)


def test_more_rows_than_the_limit_pass_untouched() -> None:
    projection = Projection(weight_of("int8"), thresholds(COLUMNS), (COLUMNS,), max_sparse_rows=2)
    check(torch.randn(2, CHANNELS), projection)
    check(torch.randn(3, CHANNELS), projection)


def test_low_rank_serves_what_is_dropped() -> None:
    low_rank = LowRank(torch.randn(CHANNELS, 4), torch.randn(4, COLUMNS))
    projection = Projection(weight_of("float32"), thresholds(COLUMNS), (COLUMNS,), low_rank=low_rank)
    for rows in (1, 20):
        check(torch.randn(rows, CHANNELS), projection)


def test_every_cut_gives_the_same_every_time() -> None:
    projection = Projection(weight_of("float32"), thresholds(COLUMNS), (COLUMNS,))
    x = torch.randn(CHANNELS)
    expected = reference.project(x, projection, torch.float64)
    for cut in (Cut(32, 1, 1, 2, 64), Cut(32, 3, 2, 1, 64), Cut(128, 2, 4, 2, 64)):
        outs = []
        for _ in range(2):
            out = torch.full((COLUMNS,), float("nan"))
            launch_one_row(x, projection, cut, gated=False, out=out)
            outs.append(out)
        assert torch.equal(*outs)
        assert torch.linalg.norm(outs[0] - expected) <= NEARLY_FLOAT32 * torch.linalg.norm(expected)
