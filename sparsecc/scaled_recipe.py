"""A recipe whose thresholds are scaled, projection by projection, without leaving the model's budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsecc import histogram
from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError
from sparsecc.hidden_states import hidden_states_on
from sparsecc.projections import Projection
from sparsecc.recipe import ProjectionRecipe, Recipe
from sparsecc.text import TokenWindows

_BISECTIONS = 60
_LARGEST_SCALE = 1e12
"""More than any threshold is away from the largest value that it is compared with."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Projections that read one hidden state under one threshold, and keep sharing it.

    Attributes:
        layer: of all of them.
        kind: their kinds, as in ``q+k+v``.
        members: their indices in the recipe.
        weights: how many weights they have together.
        ratios: int64 [histogram.BINS], the histogram of abs(x_k) / T_k on the calibration text: what is below 1 is
            skipped, and below s if the threshold is scaled by s.
    """

    layer: int
    kind: str
    members: tuple[int, ...]
    weights: int
    ratios: NDArray[np.int64]


class ScaledRecipe:
    """A recipe and what each of its thresholds would skip, scaled by any number.

    Attributes:
        groups: what can be scaled by a number of its own.
    """

    def __init__(
        self,
        recipe: Recipe,
        dense: Artifact,
        projections: Sequence[Projection],
        windows: TokenWindows,
        *,
        threads: int = 0,
    ) -> None:
        """Run the dense model on ``windows`` to see what its hidden states are beside the thresholds.

        Raises:
            SparseccError: the recipe does more than to threshold, or names a projection that the model has not.
        """
        self._recipe = recipe
        self._total = sum(projection.weight_count for projection in projections)
        by_name = {projection.name: projection for projection in projections}
        members: dict[tuple[str, bytes], list[int]] = {}
        for index, entry in enumerate(recipe.projections):
            if entry.kept is not None or entry.selected_by != "input" or recipe.is_restructuring:
                raise SparseccError(f"method {recipe.method} does more than to threshold; search from another method")
            if entry.name not in by_name:
                raise SparseccError(f"the recipe names {entry.name}, which the model does not have")
            members.setdefault((str(by_name[entry.name].input.name), entry.threshold.tobytes()), []).append(index)
        counts = self._ratio_histograms(dense, members, windows, threads)
        self.groups = [self._group(indices, counts[key], by_name) for key, indices in members.items()]

    def within_budget(self, scales: Sequence[float], sparsity: float) -> Recipe:
        """The recipe with each group's thresholds scaled, and all by one more number so that the budget is met.

        Args:
            scales: a positive number for each group.
            sparsity: the share of the weights of all projections of the model to skip on the calibration text.

        Raises:
            SparseccError: no thresholds of this recipe's projections skip so much, or so little.
        """
        low, high = 1 / _LARGEST_SCALE, _LARGEST_SCALE
        if not self._sparsity(scales, low) <= sparsity <= self._sparsity(scales, high):
            raise SparseccError(
                f"no thresholds for the projections of {self._recipe.method} skip {sparsity:.1%} of the model's "
                f"weights: they can skip {self._sparsity(scales, low):.1%} to {self._sparsity(scales, high):.1%}"
            )
        for _ in range(_BISECTIONS):
            middle = np.sqrt(low * high)
            if self._sparsity(scales, middle) < sparsity:
                low = middle
            else:
                high = middle
        entries = list(self._recipe.projections)
        for group, scale in zip(self.groups, scales, strict=True):
            for index in group.members:
                entries[index] = _scaled(entries[index], scale * high, _skipped(group, scale * high))
        return dataclasses.replace(self._recipe, target_sparsity=sparsity, projections=tuple(entries))

    def _sparsity(self, scales: Sequence[float], common: float) -> float:
        skipped = (_skipped(group, s * common) * group.weights for group, s in zip(self.groups, scales, strict=True))
        return sum(skipped) / self._total

    def _group(self, indices: Sequence[int], ratios: NDArray[np.int64], by_name: Mapping[str, Projection]) -> Group:
        entries = [self._recipe.projections[index] for index in indices]
        weights = sum(by_name[entry.name].weight_count for entry in entries)
        kind = "+".join(entry.kind for entry in entries)
        return Group(entries[0].layer, kind, tuple(indices), weights, ratios)

    def _ratio_histograms(
        self, dense: Artifact, members: Mapping[tuple[str, bytes], Sequence[int]], windows: TokenWindows, threads: int
    ) -> dict[tuple[str, bytes], NDArray[np.int64]]:
        counts = {key: np.zeros(histogram.BINS, np.int64) for key in members}
        names = list(dict.fromkeys(name for name, _ in members))
        for piece in hidden_states_on(dense, names, windows, "measuring thresholds", threads=threads):
            for key, indices in members.items():
                threshold = self._recipe.projections[indices[0]].threshold
                with np.errstate(divide="ignore", invalid="ignore"):
                    ratios = np.abs(piece[key[0]]) / threshold
                ratios[np.isnan(ratios)] = 0  # a zero is skipped under any threshold, 0 among them
                counts[key] += histogram.bin_counts(np.asarray(ratios, np.float32))
        return counts


def _skipped(group: Group, scale: float) -> float:
    return histogram.share_below(group.ratios, scale)


def _scaled(entry: ProjectionRecipe, scale: float, skipped: float) -> ProjectionRecipe:
    threshold = (entry.threshold * np.float64(scale)).astype(np.float32)
    return dataclasses.replace(entry, threshold=threshold, target_sparsity=skipped, calibrated_sparsity=skipped)
