"""WiSparse, weight-aware scores with budgets from coarse to fine (Chen et al., arXiv 2602.14452).

The paper's abstract says what is done: a score of the magnitude and a precomputed weight norm, a budget for each block
by evolutionary search, and finer budgets within each block by reconstruction error. The exponent of the norm, how
candidates are mutated, and the loop within a block are this project's choices where the abstract leaves them open.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecc import histogram
from sparsecc.block_session import BlockSession, block_sessions
from sparsecc.hidden_states import hidden_states_on
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.methods.teal_greedy import allocated
from sparsecc.progress import track
from sparsecc.projections import Projection
from sparsecc.recipe import ProjectionRecipe, Recipe
from sparsecc.threshold_session import ThresholdSession

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""How much a row's norm may matter: 0 is TEAL's score, 1 is WINA's."""
SCORE_TOKENS = 4096
BLOCK_TOKENS = 512
SEARCH_TOKENS = 1024
"""How much of the calibration text scores are calibrated, blocks and candidates are run on."""
GENERATIONS = 12
CHILDREN = 6
LARGEST_MOVE = 0.1
"""How much sparsity a mutation moves from one block to another at most."""

Scores = Mapping[float, NDArray[np.int64]]
"""For each exponent the histogram of a projection's scores, int64 [histogram.BINS]."""


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A projection with what its thresholds are calibrated by."""

    projection: Projection
    row_norms: NDArray[np.float32]
    scores: Scores

    def entry(self, exponent: float, sparsity: float) -> ProjectionRecipe:
        entry = calibrated_threshold(self.projection, "wisparse", sparsity, self.scores[exponent])
        return dataclasses.replace(entry, threshold=per_channel(entry.threshold, self.row_norms, exponent))


def wisparse(model: CalibratedModel, sparsity: float) -> Recipe:
    """Keep channel k where abs(x_k) * norm2(w_k)^a >= t, with a chosen for each projection and t by allocation.

    First each projection takes the exponent a that alone loses least of its block's output at the target. Then an
    evolutionary search moves sparsity between blocks where the model's predictions diverge less for it, all
    projections of a block being equally sparse. Last each block's share is allocated within it as by
    :func:`sparsecc.methods.teal_greedy.greedy_levels`.
    """
    scored = _scored(model)
    exponents: dict[str, float] = {}
    for block in _blocks(model):
        for projection in block.projections:
            exponents[projection.name] = _best_exponent(block, scored[projection.name], sparsity)

    def entry(projection: Projection, level: float) -> ProjectionRecipe:
        return scored[projection.name].entry(exponents[projection.name], level)

    shares = _shares_of_blocks(model, sparsity, entry)
    entries: list[ProjectionRecipe] = []
    for block, share in zip(_blocks(model), shares, strict=True):
        entries += allocated(block, share, entry)
    return Recipe("wisparse", sparsity, tuple(entries), model.statistics.calibration)


def per_channel(threshold: NDArray[np.float32], row_norms: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """float32 [K], t / norm2(w_k)^a; [1] where all are the same. A row of zeros needs no channel, unless a = 0."""
    if threshold[0] == 0 or exponent == 0:
        return threshold
    with np.errstate(divide="ignore"):
        return np.asarray(threshold / row_norms**exponent, np.float32)


def evolved_shares(
    sizes: Sequence[float],
    target: float,
    loss: Callable[[NDArray[np.float64]], float],
    *,
    generations: int = GENERATIONS,
    children: int = CHILDREN,
) -> NDArray[np.float64]:
    """The sparsity of each block, of so many weights, that an evolutionary search finds for a target over all of them.

    Of each generation's children, which are mutations of the best candidate so far, the best one replaces it if it is
    better. A mutation moves skipped weights from one block to another, so the target is always met.
    """
    rng = np.random.default_rng(0)
    weights = np.asarray(sizes, np.float64)
    best = np.full(len(weights), target)
    least = loss(best)
    for _ in track(range(generations), "sharing out among blocks", generations):
        for child in [_mutated(best, weights, rng) for _ in range(children)]:
            if (lost := loss(child)) < least:
                best, least = child, lost
    return best


def _mutated(
    shares: NDArray[np.float64], weights: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    if len(shares) < 2:
        return shares
    giving, taking = rng.choice(len(shares), 2, replace=False)
    most = min(LARGEST_MOVE * weights.min(), shares[giving] * weights[giving], (1 - shares[taking]) * weights[taking])
    moved = rng.uniform(0, most)
    child = shares.copy()
    child[giving] -= moved / weights[giving]
    child[taking] += moved / weights[taking]
    return child


def _shares_of_blocks(
    model: CalibratedModel, sparsity: float, entry: Callable[[Projection, float], ProjectionRecipe]
) -> NDArray[np.float64]:
    in_order = sorted(model.projections, key=lambda projection: projection.layer)
    blocks = [list(members) for _, members in groupby(in_order, lambda projection: projection.layer)]
    session = ThresholdSession(model.dense, model.pieces(SEARCH_TOKENS), threads=model.threads)

    def divergence(shares: NDArray[np.float64]) -> float:
        entries = [
            entry(projection, float(share))
            for members, share in zip(blocks, shares, strict=True)
            for projection in members
        ]
        return session.evaluate({each.name: each.threshold for each in entries}).kl_divergence or 0.0

    sizes = [sum(projection.weight_count for projection in members) for members in blocks]
    return evolved_shares(sizes, sparsity, divergence, generations=GENERATIONS, children=CHILDREN)


def _best_exponent(block: BlockSession, scored: _Scored, sparsity: float) -> float:
    def error(exponent: float) -> float:
        return block.error({scored.projection.name: scored.entry(exponent, sparsity).threshold})

    return min(EXPONENTS, key=error)


def _blocks(model: CalibratedModel) -> Iterator[BlockSession]:
    with tempfile.TemporaryDirectory(prefix="sparsecc-blocks-", dir=model.scratch) as scratch:
        yield from block_sessions(model.dense, model.pieces(BLOCK_TOKENS), Path(scratch), threads=model.threads)


def _scored(model: CalibratedModel) -> dict[str, _Scored]:
    counts = {
        projection.name: {exponent: np.zeros(histogram.BINS, np.int64) for exponent in EXPONENTS}
        for projection in model.projections
    }
    norms = {name: seen.row_norms for name, seen in model.statistics.projections.items()}
    names = list(dict.fromkeys(str(projection.input.name) for projection in model.projections))
    windows = model.pieces(SCORE_TOKENS)
    for piece in hidden_states_on(model.dense, names, windows, "scoring", threads=model.threads):
        for projection in model.projections:
            magnitudes = np.abs(piece[str(projection.input.name)])
            for exponent in EXPONENTS:
                weighted = magnitudes * norms[projection.name] ** np.float32(exponent)
                counts[projection.name][exponent] += histogram.bin_counts(weighted)
    return {
        projection.name: _Scored(projection, norms[projection.name], counts[projection.name])
        for projection in model.projections
    }
