"""A loaded model whose thresholds and low-rank branches can be changed, to try many on a text without compiling any."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.calibration import require_projections
from sparsecc.evaluation import Evaluation, evaluation, require_context
from sparsecc.model_file import load_model
from sparsecc.passes import (
    CountActivePass,
    ExposeBranchesPass,
    ExposeThresholdsPass,
    ShipFunctionsPass,
    active_count_name,
    direction_mask_name,
    threshold_input_name,
)
from sparsecc.projections import Projection, projections_and_head
from sparsecc.session import open_session, ops_library_path, run_prompt
from sparsecc.text import TokenWindows
from sparsecc.token_scores import TokenScores, log_softmax
from sparsecc.weight_traffic import WeightTraffic

Thresholds = Mapping[str, NDArray[np.float32]]
"""A threshold, float32 [1] or [K], by the name of its projection; a projection without one runs dense."""

Ranks = Mapping[str, int]
"""The rank of the low-rank branch beside a projection, by its name; a projection without one has no branch."""

_KEEP_ALL = np.zeros(1, np.float32)


class ThresholdSession:
    """A dense model on windows of a text, ready to be evaluated under any thresholds, and ranks of branches.

    What the dense model predicts is computed once, at the first evaluation, and kept in an unnamed temporary file of
    tokens x vocabulary x 4 bytes, which is mapped, so that it takes memory only while there is some.

    Attributes:
        projections: those of the model, its head among them, which thresholds are given for.
    """

    def __init__(
        self,
        dense: Artifact,
        windows: TokenWindows,
        *,
        branches: Mapping[str, NDArray[np.float32]] | None = None,
        threads: int = 0,
    ) -> None:
        """Load the model.

        ``branches`` are the low-rank branches of the largest ranks that will be asked for, as
        :attr:`sparsecc.recipe.ProjectionRecipe.branch`, by the name of the projection.

        Raises:
            SparseccError: a window is longer than the model's context, or the model has no projections.
        """
        require_context(dense, windows)
        self._dense = dense
        self._windows = windows
        model = load_model(dense.model_path)
        self._weights = WeightTraffic(model.graph)
        require_projections(model, dense.model_path)
        self.projections: Sequence[Projection] = projections_and_head(model.graph)
        self._directions = {name: len(branch) for name, branch in (branches or {}).items()}
        exposing = (ExposeThresholdsPass(), ExposeBranchesPass(branches or {}))
        for graph_pass in (*exposing, CountActivePass(), ShipFunctionsPass()):
            graph_pass(model)
        thresholds = [projection.threshold for projection in self.projections]
        self._counts = [active_count_name(node) for node in thresholds if node is not None]
        self._session = open_session(
            ir.to_proto(model).SerializeToString(),
            data_folder=dense.directory,
            ops_library=ops_library_path(),
            threads=threads,
        )
        self._reference: NDArray[np.float32] | None = None

    def evaluate(self, thresholds: Thresholds, ranks: Ranks | None = None) -> Evaluation:
        """Evaluate the model under thresholds on all windows, beside the dense model. Its sparsity knows no branches.

        Raises:
            ValueError: a threshold is for no projection, or has neither one entry nor one for each channel, or a rank
                is above that of its branch.
            SparseccError: the perplexity or the divergence is not finite.
        """
        *_, whole = self.evaluate_by_window(thresholds, ranks)
        return whole

    def evaluate_by_window(self, thresholds: Thresholds, ranks: Ranks | None = None) -> Iterator[Evaluation]:
        """As :meth:`evaluate`, but yield after each window what was seen until then, so that the caller may stop."""
        settings = self._settings(thresholds) | self._masks(ranks or {})
        reference = self._dense_log_probabilities()
        scores, active = TokenScores(), np.zeros(len(self._counts), np.int64)
        for index, window in enumerate(self._windows.ids):
            start = 0
            for logits, counts in self._run(window, settings):
                targets = window[1:][start : start + len(logits)]
                scores.add(logits, targets, reference[index, start : start + len(targets)])
                active += counts
                start += len(logits)
            seen = dataclasses.replace(self._windows, ids=self._windows.ids[: index + 1])
            rows = zip(self.projections, (active / seen.tokens).tolist(), strict=True)
            traffic = self._weights.of({entry.name: read for entry, read in rows if entry.name in thresholds})
            yield evaluation(scores, traffic, seen, self._dense.directory, has_reference=True)

    def idle_shares(self, thresholds: Thresholds) -> dict[str, float]:
        """For each projection the share of its input channels that thresholds keep a token from reading, on average.

        Raises:
            ValueError: as :meth:`evaluate`.
        """
        settings = self._settings(thresholds) | self._masks({})
        active = np.zeros(len(self._counts), np.int64)
        for window in self._windows.ids:
            for _, counts in self._run(window, settings):
                active += counts
        return {
            projection.name: 1 - float(count) / (projection.channels * self._windows.tokens)
            for projection, count in zip(self.projections, active, strict=True)
        }

    def _settings(self, thresholds: Thresholds) -> dict[str, NDArray[np.float32]]:
        channels = {projection.name: projection.channels for projection in self.projections}
        for name, threshold in thresholds.items():
            if threshold.shape not in ((1,), (channels.get(name, 0),)):
                raise ValueError(f"{name} takes no threshold of shape {threshold.shape}")
        return {
            threshold_input_name(name): np.asarray(thresholds.get(name, _KEEP_ALL), np.float32) for name in channels
        }

    def _masks(self, ranks: Ranks) -> dict[str, NDArray[np.float32]]:
        for name, rank in ranks.items():
            if not 0 <= rank <= self._directions.get(name, 0):
                raise ValueError(f"the branch of {name} has rank {self._directions.get(name, 0)}, not {rank}")
        return {
            direction_mask_name(name): (np.arange(directions) < ranks.get(name, 0)).astype(np.float32)
            for name, directions in self._directions.items()
        }

    def _run(
        self, window: NDArray[np.int64], settings: Thresholds
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """The logits float32 [T, vocabulary] and the active entries int64 [projections] of each piece."""
        outputs = [self._dense.logits_name, *self._counts]
        for logits, *counts in run_prompt(self._session, window, outputs, settings, **self._dense.cache_shape):
            yield logits[0], np.array(counts, np.int64)

    def _dense_log_probabilities(self) -> NDArray[np.float32]:
        """float32 [windows, window, vocabulary], computed once."""
        if self._reference is None:
            settings = self._settings({}) | self._masks({})
            with tempfile.TemporaryFile() as file:
                for window in self._windows.ids:
                    for logits, _ in self._run(window, settings):
                        file.write(log_softmax(logits).data)
                file.flush()
                self._reference = np.memmap(file, np.float32, "r", shape=(*self._windows.ids.shape, logits.shape[-1]))
        return self._reference
