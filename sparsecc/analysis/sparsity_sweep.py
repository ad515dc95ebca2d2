"""What enforced sparsity costs in perplexity (figure 8 of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.analysis.components import (
    ATTENTION_INPUT,
    DOWN_INPUT,
    FFN_INPUT,
    FFN_NEURONS,
    O_INPUT,
    find_components,
)
from sparsecc.analysis.magnitude_distribution import SparsityThreshold
from sparsecc.artifact import Artifact
from sparsecc.calibration import require_projections
from sparsecc.model_file import load_model
from sparsecc.operators import is_threshold
from sparsecc.passes import (
    CountActivePass,
    ShipFunctionsPass,
    ThresholdValuesPass,
    active_count_name,
    threshold_input_name,
)
from sparsecc.progress import track
from sparsecc.session import open_session, ops_library_path, run_prompt
from sparsecc.text import TokenWindows
from sparsecc.token_scores import TokenScores

FILE = "sparsity_sweep.csv"
TARGETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)

SCOPES: Mapping[str, tuple[str, ...]] = {
    "ffn_neurons": FFN_NEURONS,
    "ffn": (FFN_INPUT, DOWN_INPUT),
    "all": (ATTENTION_INPUT, O_INPUT, FFN_INPUT, DOWN_INPUT),
}
"""The components that are thresholded: the paper's neurons; what the projections of feed-forward networks read, which
saves reading their weights; and what all projections read, as sparsecc compiles."""


@dataclasses.dataclass(frozen=True)
class SparsityPoint:
    """Perplexity with activations under a threshold set to zero in every token.

    Attributes:
        scope: which activations: a name of :data:`SCOPES`.
        target_sparsity: of :data:`TARGETS`; the quantile that each component's threshold is.
        achieved_sparsity: the share of those components' activations that were zero while the text ran.
        weights_not_read: the share of all projection weights whose input channel was zero.
        perplexity: NaN where it is not finite.
        tokens: of the text.
    """

    scope: str
    target_sparsity: float
    achieved_sparsity: float
    weights_not_read: float
    perplexity: float
    tokens: int


def sparsity_sweep(
    dense: Artifact, windows: TokenWindows, thresholds: Sequence[SparsityThreshold], *, threads: int = 0
) -> Iterator[SparsityPoint]:
    """A point for each scope and target. The model is loaded once; its thresholds are inputs of the graph.

    ``thresholds`` are those that :mod:`sparsecc.analysis.magnitude_distribution` found for :data:`TARGETS`.

    Raises:
        SparseccError: the model has no projections, or cannot be run.
    """
    model = _ThresholdedModel(dense, threads)
    unchanged = model.run(windows, {})
    for scope, components in SCOPES.items():
        for target in track(TARGETS, f"perplexity, {scope}", len(TARGETS)):
            chosen = {
                (entry.layer, entry.component): entry.threshold
                for entry in thresholds
                if entry.sparsity == target and entry.component in components
            }
            outcome = model.run(windows, chosen) if any(at > 0 for at in chosen.values()) else unchanged
            yield SparsityPoint(
                scope=scope,
                target_sparsity=target,
                achieved_sparsity=outcome.share_of_zeros(components),
                weights_not_read=outcome.weights_not_read,
                perplexity=outcome.perplexity,
                tokens=windows.tokens,
            )


def unmeasurable(windows: TokenWindows) -> Iterator[SparsityPoint]:
    """The points of a model that computes NaN or infinity, which a Threshold would hide: nothing but NaN."""
    for scope in SCOPES:
        for target in TARGETS:
            yield SparsityPoint(scope, target, np.nan, np.nan, np.nan, windows.tokens)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What a model did under some thresholds.

    Attributes:
        perplexity: NaN where it is not finite.
        zeros: how many of each component's activations were zero, of ``activations``.
        weights_not_read: the share of all projection weights whose input channel was zero.
    """

    perplexity: float
    zeros: Mapping[tuple[int, str], int]
    activations: Mapping[tuple[int, str], int]
    weights_not_read: float

    def share_of_zeros(self, names: Sequence[str]) -> float:
        zeros, activations = (
            sum(count for (_, name), count in counts.items() if name in names)
            for counts in (self.zeros, self.activations)
        )
        return zeros / activations if activations else np.nan


class _ThresholdedModel:
    """A loaded model with a Threshold behind every component, and a count of what each lets through."""

    def __init__(self, dense: Artifact, threads: int) -> None:
        model = load_model(dense.model_path)
        projections = require_projections(model, dense.model_path)
        components = find_components(projections)
        self._dense = dense
        self._values = {(part.layer, part.name): str(part.value.name) for part in components}
        self._neurons = {(part.layer, part.name): part.neurons for part in components}
        self._weights = sum(projection.weight_count for projection in projections)
        self._readers = Counter[tuple[int, str]]()
        for projection in projections:
            for part in components:
                if part.value is projection.input:
                    self._readers[part.layer, part.name] += projection.outputs
                    break
        ThresholdValuesPass(list(self._values.values()))(model)
        CountActivePass()(model)
        ShipFunctionsPass()(model)
        counts = {node.inputs[0]: active_count_name(node) for node in model.graph if is_threshold(node)}
        self._counts = [counts[part.value] for part in components]
        self._session = open_session(
            ir.to_proto(model).SerializeToString(),
            data_folder=dense.directory,
            ops_library=ops_library_path(),
            threads=threads,
        )

    def run(self, windows: TokenWindows, thresholds: Mapping[tuple[int, str], float]) -> _Outcome:
        """Run a text with thresholds on some components; the others keep every activation."""
        values = dict.fromkeys(self._values.values(), 0.0)
        for place, threshold in thresholds.items():
            values[self._values[place]] = max(values[self._values[place]], threshold)
        settings = {threshold_input_name(value): np.array([at], np.float32) for value, at in values.items()}
        scores, active = TokenScores(), np.zeros(len(self._counts), np.int64)
        for window in windows.ids:
            targets = window[1:]
            outputs = [self._dense.logits_name, *self._counts]
            for logits, *kept in run_prompt(self._session, window, outputs, settings, **self._dense.cache_shape):
                scores.add(logits[0], targets[: logits.shape[1]])
                targets = targets[logits.shape[1] :]
                active += np.array(kept, np.int64)
        activations = {place: neurons * windows.tokens for place, neurons in self._neurons.items()}
        zeros = {place: activations[place] - kept for place, kept in zip(self._values, active.tolist(), strict=True)}
        perplexity = scores.perplexity if np.isfinite(scores.perplexity) else np.nan
        skipped = sum(zeros[place] * outputs for place, outputs in self._readers.items())
        return _Outcome(perplexity, zeros, activations, skipped / (self._weights * windows.tokens))
