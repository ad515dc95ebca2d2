"""R-Sparse, rank-aware activation sparsity (Zhang et al., arXiv 2504.19449)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from sparsecc.dropped_covariance import dropped_covariances
from sparsecc.errors import SparseccError
from sparsecc.low_rank import leading_output_directions, whitened
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.evolution import LARGEST_BRANCH, Candidate, Search, evolved
from sparsecc.methods.wina import norm_weighted_threshold
from sparsecc.projections import Projection
from sparsecc.quantization.finite_weight import weight_array
from sparsecc.recipe import ProjectionRecipe, Recipe
from sparsecc.threshold_session import ThresholdSession

SEED = 0
COVARIANCE_TOKENS = 8_192
"""How much of the text the covariance of what is dropped is computed from."""
LARGEST_SPARSITY = 0.99
"""Of one projection, so that its threshold is a quantile."""

Branches = Iterator[tuple[Projection, NDArray[np.float32]]]
"""For each projection the leading directions of its output, float32 [r, N]."""
Directions = Callable[[CalibratedModel, float, Mapping[str, int]], Branches]


def r_sparse(model: CalibratedModel, sparsity: float) -> Recipe:
    """Keep the channels that WINA keeps, and serve the others by the leading singular directions of the weights.

    y = x_kept W + (x - x_kept) A B, with A B the nearest matrix to W of its rank. Sparsity and rank of each projection
    are found by evolutionary search: of those that read 1 - ``sparsity`` of the weights, A and B included, the search
    looks for the one with the least mean KL divergence from the dense model's predictions.
    """
    return searched(model, sparsity, "r-sparse", singular_directions, Search())


def r_sparse_whitened(model: CalibratedModel, sparsity: float) -> Recipe:
    """As :func:`r_sparse`, with A B nearest to W on what is dropped of the calibration text.

    It minimizes the mean of norm2((x - x_kept) (W - A B)) squared, for what thresholds of ``sparsity`` drop.
    """
    return searched(model, sparsity, "r-sparse-whitened", directions_of_dropped, Search())


def r_sparse_of_rank(model: CalibratedModel, sparsity: float, rank: int) -> Recipe:
    """As :func:`r_sparse`, with one rank for every projection and no search: all of them skip the same share.

    Raises:
        SparseccError: the rank is negative, above the smaller side of a weight, or takes more than may be read.
    """
    _check_rank(model, sparsity, rank)
    added = sum(rank * (entry.channels + entry.outputs) for entry in model.projections)
    size = sum(entry.weight_count for entry in model.projections)
    skipped = sparsity + added * model.cost_of_added_weight / size
    if sparsity == 0 or rank == 0:
        return _recipe(model, sparsity, "r-sparse", dict.fromkeys(_names(model), sparsity), {})
    ranks = dict.fromkeys(_names(model), rank)
    branches = {projection.name: rows for projection, rows in singular_directions(model, sparsity, ranks)}
    return _recipe(model, sparsity, "r-sparse", dict.fromkeys(_names(model), skipped), branches)


def searched(model: CalibratedModel, sparsity: float, method: str, directions: Directions, search: Search) -> Recipe:
    """The recipe that an evolutionary search finds among thresholds and ranks."""
    if sparsity == 0:
        return _recipe(model, sparsity, method, dict.fromkeys(_names(model), 0.0), {})
    if sparsity > LARGEST_SPARSITY:
        raise SparseccError(f"{method} skips at most {LARGEST_SPARSITY:.0%} of the weights; ask for no more")
    budget = (1 - sparsity) / model.cost_of_added_weight
    limits = {entry.name: _largest_rank(entry, budget) for entry in model.projections}
    branches = {projection.name: rows for projection, rows in directions(model, sparsity, limits)}
    dense = model.dense
    window = min(dense.window, search.tokens)
    windows = model.windows(search.tokens, window)
    session = ThresholdSession(dense, windows, branches=branches, threads=model.threads)

    def loss(candidate: Candidate) -> float:
        sparsities, ranks = _shared_out(model, candidate, limits)
        thresholds = {entry.name: entry.threshold for entry in _entries(model, method, sparsities)}
        divergence = session.evaluate(thresholds, ranks).kl_divergence
        assert divergence is not None
        return divergence

    best = evolved(model.projections, 1 - sparsity, loss, search, np.random.default_rng(SEED))
    sparsities, ranks = _shared_out(model, best, limits)
    chosen = {name: branches[name][:rank] for name, rank in ranks.items() if rank}
    return _recipe(model, sparsity, method, sparsities, chosen)


def singular_directions(model: CalibratedModel, _sparsity: float, ranks: Mapping[str, int]) -> Branches:
    """The leading right singular vectors of each weight."""
    for projection in model.projections:
        yield projection, leading_output_directions(weight_array(projection), ranks[projection.name])


def directions_of_dropped(model: CalibratedModel, sparsity: float, ranks: Mapping[str, int]) -> Branches:
    """The directions of each output that most of what thresholds of ``sparsity`` drop would have had."""
    thresholds = {
        entry.name: entry.threshold
        for entry in _entries(model, "r-sparse-whitened", dict.fromkeys(_names(model), sparsity))
    }
    dense = model.dense
    windows = model.windows(COVARIANCE_TOKENS, dense.window)
    for projection, covariance in dropped_covariances(
        dense, model.projections, thresholds, windows, threads=model.threads
    ):
        product = whitened(weight_array(projection), covariance)
        yield projection, leading_output_directions(product, ranks[projection.name])


def _names(model: CalibratedModel) -> list[str]:
    return [projection.name for projection in model.projections]


def _largest_rank(projection: Projection, budget: float) -> int:
    """Of the largest branch that is tried."""
    size = projection.weight_count
    rank = int(LARGEST_BRANCH * budget * size / (projection.channels + projection.outputs))
    return min(rank, projection.channels, projection.outputs)


def _shared_out(
    model: CalibratedModel, candidate: Candidate, limits: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, int]]:
    """The sparsity and the rank of each projection; what a whole rank leaves over goes to the sparse part."""
    sparsities, ranks = {}, {}
    for projection, read, branch in zip(model.projections, candidate.read, candidate.branch, strict=True):
        one_rank = (1 / projection.channels + 1 / projection.outputs) * model.cost_of_added_weight
        rank = min(int(read * branch / one_rank), limits[projection.name])
        ranks[projection.name] = rank
        sparsities[projection.name] = float(np.clip(1 - read + rank * one_rank, 0, LARGEST_SPARSITY))
    return sparsities, ranks


def _entries(model: CalibratedModel, method: str, sparsities: Mapping[str, float]) -> Iterator[ProjectionRecipe]:
    for projection in model.projections:
        seen = model.statistics.projections[projection.name]
        yield norm_weighted_threshold(projection, method, sparsities[projection.name], seen)


def _recipe(
    model: CalibratedModel,
    sparsity: float,
    method: str,
    sparsities: Mapping[str, float],
    branches: Mapping[str, NDArray[np.float32]],
) -> Recipe:
    entries = [
        dataclasses.replace(entry, branch=branches.get(entry.name)) for entry in _entries(model, method, sparsities)
    ]
    return Recipe(method, sparsity, tuple(entries), model.statistics.calibration)


def _check_rank(model: CalibratedModel, sparsity: float, rank: int) -> None:
    smallest = min(model.projections, key=lambda entry: min(entry.channels, entry.outputs))
    largest = min(smallest.channels, smallest.outputs)
    if not 0 <= rank <= largest:
        raise SparseccError(
            f"rank {rank} does not fit: {smallest.name} is {smallest.channels} x {smallest.outputs}; "
            f"choose a rank from 0 to {largest}"
        )
    sides = sum(entry.channels + entry.outputs for entry in model.projections) * model.cost_of_added_weight
    size = sum(entry.weight_count for entry in model.projections)
    affordable = max(int((LARGEST_SPARSITY - sparsity) * size / sides), 0)
    if rank > affordable:
        raise SparseccError(
            f"branches of rank {rank} take {rank * sides / size:.0%} of the weights, and at sparsity {sparsity:g} "
            f"only {1 - sparsity:.0%} may be read; choose a rank up to {affordable}"
        )
