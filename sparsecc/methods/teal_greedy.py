"""TEAL with block-wise greedy allocation (Liu et al., arXiv 2408.14690, algorithm 1)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsecc.block_session import BlockSession, block_sessions
from sparsecc.errors import SparseccError
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.projections import Projection
from sparsecc.recipe import ProjectionRecipe, Recipe

STEP = 0.05
"""By how much a block's sparsity is raised at once."""
LARGEST_RISE = 0.2
"""By how much a projection's sparsity is raised at once. A step of the block would be all of a small projection."""
TOKENS = 1024
"""How much of the calibration text the blocks are run on."""


def teal_greedy(model: CalibratedModel, sparsity: float) -> Recipe:
    """Give every block the same sparsity, and within it raise that of the projection that costs least, step by step.

    A step of a projection skips ``STEP`` of the block's weights, so its own sparsity rises by STEP * F / f, with f of
    the block's F weights in it. It is taken where the block's output, on the dense model's hidden states, then
    differs least from the dense block's: where the squared error grows least for each weight that is skipped, which
    for steps of one size is the paper's choice. Steps are smaller in projections with few weights, such as k and v of
    grouped queries, and at the end, so that the target is met.
    """

    def entry(projection: Projection, level: float) -> ProjectionRecipe:
        return calibrated_threshold(projection, "teal-greedy", level, model.magnitudes(projection))

    entries: list[ProjectionRecipe] = []
    with tempfile.TemporaryDirectory(prefix="sparsecc-blocks-", dir=model.scratch) as scratch:
        for block in block_sessions(model.dense, model.pieces(TOKENS), Path(scratch), threads=model.threads):
            entries += allocated(block, sparsity, entry)
    return Recipe("teal-greedy", sparsity, tuple(entries), model.statistics.calibration)


def allocated(
    block: BlockSession, sparsity: float, entry: Callable[[Projection, float], ProjectionRecipe]
) -> list[ProjectionRecipe]:
    """The entries of a block's projections at the sparsities that :func:`greedy_levels` finds for its output."""

    def entries_at(levels: Sequence[float]) -> list[ProjectionRecipe]:
        return [entry(projection, level) for projection, level in zip(block.projections, levels, strict=True)]

    def error(levels: Sequence[float]) -> float:
        return block.error({each.name: each.threshold for each in entries_at(levels)})

    weights = [projection.weight_count for projection in block.projections]
    return entries_at(greedy_levels(weights, sparsity, error))


def greedy_levels(
    weights: Sequence[int],
    target: float,
    error: Callable[[Sequence[float]], float],
    *,
    step: float = STEP,
    largest_rise: float = LARGEST_RISE,
) -> list[float]:
    """The sparsities, one for each projection of so many weights, that algorithm 1 finds for a block.

    Args:
        weights: how many weights each projection has.
        target: the sparsity of the block, weighted by them, in [0, 1).
        error: the norm of what the block's output loses at given sparsities.
        step: by how much the block's sparsity is raised at once.
        largest_rise: by how much a projection's sparsity is raised at most at once.

    Raises:
        SparseccError: an error is not finite.
    """
    total = sum(weights)
    levels = [0.0] * len(weights)
    lost, remaining = 0.0, target * total
    while remaining > total * 1e-9:
        cheapest = math.inf
        for index, weight in enumerate(weights):
            rise = min(step * total / weight, largest_rise, remaining / weight, 1 - levels[index])
            if rise <= 0:
                continue
            raised = [*levels[:index], levels[index] + rise, *levels[index + 1 :]]
            loses = error(raised) ** 2
            if not math.isfinite(loses):
                raise SparseccError("a block of the model computes NaN or infinity; check the checkpoint")
            if (cost := (loses - lost) / (rise * weight)) < cheapest:
                cheapest, best, skips, best_loses = cost, raised, rise * weight, loses
        levels, lost, remaining = best, best_loses, remaining - skips
    return levels
