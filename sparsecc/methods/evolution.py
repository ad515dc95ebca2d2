"""Evolutionary search for how the weights that may be read are shared out (R-Sparse, arXiv 2504.19449, algorithm 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecc.progress import track
from sparsecc.projections import Projection

LARGEST_BRANCH = 0.25
"""The most of what is read of a projection that a branch is tried with; where all have one share, 0.05 is typical."""
_BRANCHES = (0.0, 0.0, 0.02, 0.05, 0.1, LARGEST_BRANCH)
_SPREAD = 0.25
"""The standard deviation of the logarithm of what a mutation multiplies shares by."""
_BISECTIONS = 60

Shares = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Search:
    """How long to search: each generation tries ``population`` candidates on ``tokens`` tokens of the text."""

    population: int = 16
    generations: int = 10
    tokens: int = 1024


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to share out what is read.

    Attributes:
        read: float64 [projections], how many weights are read for a projection, relative to those that it has.
        branch: float64 [projections], the share of these that the low-rank branch has.
    """

    read: Shares
    branch: Shares


def evolved(
    projections: Sequence[Projection],
    budget: float,
    loss: Callable[[Candidate], float],
    search: Search,
    rng: np.random.Generator,
) -> Candidate:
    """The best candidate found that reads ``budget``, in (0, 1], of all weights of the projections.

    The first generation has the uniform candidates, with and without branches, and mutations of them; the best
    ``population`` of parents and children are the next parents. Children take each layer from one of two parents. A
    mutation changes all projections of one kind, of one layer, or one projection.
    """
    sizes = np.array([projection.weight_count for projection in projections], np.float64)
    layers = np.array([projection.layer for projection in projections])
    groups = _groups(projections)

    def settled(read: Shares, branch: Shares) -> Candidate:
        return Candidate(within_budget(read, sizes, budget), branch)

    def mutated(candidate: Candidate) -> Candidate:
        read, branch = candidate.read.copy(), candidate.branch.copy()
        for _ in range(rng.integers(1, 4)):
            group = groups[rng.integers(len(groups))]
            if rng.random() < 0.6:
                read[group] *= np.exp(rng.normal(0, _SPREAD))
            else:
                branch[group] = rng.choice(_BRANCHES)
        return settled(read, branch)

    def crossed(first: Candidate, second: Candidate) -> Candidate:
        is_first = rng.random(layers.max() + 1)[layers] < 0.5
        return settled(np.where(is_first, first.read, second.read), np.where(is_first, first.branch, second.branch))

    uniform = np.full(len(sizes), budget)
    first = [settled(uniform, np.full(len(sizes), branch)) for branch in dict.fromkeys(_BRANCHES)][: search.population]
    first += [mutated(first[0]) for _ in range(search.population - len(first))]
    waiting = [*first]
    scored: list[tuple[float, Candidate]] = []
    trials = search.population * (1 + search.generations)
    for _ in track(range(trials), "searching", trials):
        if not waiting:
            scored = sorted(scored, key=lambda entry: entry[0])[: search.population]
            parents = [candidate for _, candidate in scored]
            pairs = rng.integers(0, len(parents), (search.population, 2))
            waiting = [mutated(crossed(parents[a], parents[b])) for a, b in pairs]
        candidate = waiting.pop()
        scored.append((loss(candidate), candidate))
    return min(scored, key=lambda entry: entry[0])[1]


def within_budget(read: Shares, sizes: Shares, budget: float) -> Shares:
    """Shares multiplied by one number, and cut at 1, so that they are ``budget`` of all ``sizes``."""
    low, high = 0.0, 1 / max(read.min(), 1e-9)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if np.minimum(read * middle, 1) @ sizes < budget * sizes.sum():
            low = middle
        else:
            high = middle
    settled: Shares = np.minimum(read * high, 1)
    return settled


def _groups(projections: Sequence[Projection]) -> list[NDArray[np.int64]]:
    """What a mutation changes together: a kind, a layer, or a projection."""
    kinds = np.array([projection.kind for projection in projections])
    layers = np.array([projection.layer for projection in projections])
    groups = [np.flatnonzero(kinds == kind) for kind in dict.fromkeys(kinds)] * len(set(layers))
    groups += [np.flatnonzero(layers == layer) for layer in dict.fromkeys(layers)]
    return groups + [np.array([index]) for index in range(len(kinds))]
