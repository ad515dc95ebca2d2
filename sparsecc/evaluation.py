"""Perplexity and achieved sparsity of a model on a text, measured through onnxruntime."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError
from sparsecc.fusion import unfuse
from sparsecc.model_file import load_model
from sparsecc.operators import is_threshold
from sparsecc.passes import (
    CountActivePass,
    LimitSparseRowsPass,
    ShipFunctionsPass,
    UnfuseSparseLinearPass,
    active_count_name,
)
from sparsecc.progress import track
from sparsecc.projections import Projection, find_projections
from sparsecc.session import open_session, run_prompt
from sparsecc.text import TokenWindows

_ROWS_AT_ONCE = 128


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model was seen to do on a text.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of every token of a window but its first.
        sparsity: the share of projection bytes that no token needed to read, over the whole model.
        sparsity_by_kind: the same for each kind of projection.
        tokens, window: how much text was read, in tokens, and in windows of how many.
    """

    perplexity: float
    sparsity: float
    sparsity_by_kind: Mapping[str, float]
    tokens: int
    window: int


def evaluate(artifact: Artifact, windows: TokenWindows, *, threads: int = 0) -> Evaluation:
    """Evaluate a dense or sparse artifact. Every token is thresholded, also where decoding would run prompts dense.

    Raises:
        SparseccError: a window is longer than the model's context.
    """
    if windows.window > artifact.context_length:
        raise SparseccError(
            f"windows of {windows.window} tokens exceed the model's context of {artifact.context_length}"
        )
    projections = _projections(artifact)
    model = load_model(artifact.model_path)
    try:
        for graph_pass in (UnfuseSparseLinearPass(), ShipFunctionsPass(), LimitSparseRowsPass(0), CountActivePass()):
            graph_pass(model)
    except ir.passes.PreconditionError as error:
        raise SparseccError(f"{artifact.model_path} cannot be measured: {error}; compile it again") from error
    counted = [node for node in model.graph if is_threshold(node)]
    session = open_session(
        ir.to_proto(model).SerializeToString(),
        data_folder=artifact.directory,
        ops_library=artifact.ops_library,
        threads=threads,
    )
    outputs = [artifact.logits_name, *(active_count_name(node) for node in counted)]
    negative_log_likelihood, active = 0.0, np.zeros(len(counted), np.int64)
    for window in track(windows.ids, "evaluating", len(windows.ids)):
        targets = window[1:]
        for logits, *counts in run_prompt(session, window, outputs, **artifact.cache_shape):
            predicted, targets = targets[: logits.shape[1]], targets[logits.shape[1] :]
            negative_log_likelihood += _negative_log_likelihood(logits[0, : len(predicted)], predicted)
            active += np.array(counts, np.int64)
    active_rows = {
        node.name or "": count / windows.tokens for node, count in zip(counted, active.tolist(), strict=True)
    }
    sparsity, by_kind = _weighted_sparsity(projections, active_rows)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(negative_log_likelihood / (windows.tokens - len(windows.ids))))
    if not np.isfinite(perplexity):
        raise SparseccError(f"{artifact.directory} computes no finite perplexity; check the checkpoint")
    return Evaluation(perplexity, sparsity, by_kind, windows.tokens, windows.window)


def _projections(artifact: Artifact) -> list[Projection]:
    """Each projection of its own, also where the model merges several into one product."""
    model = load_model(artifact.model_path)
    unfuse(model)
    return find_projections(model.graph)


def _negative_log_likelihood(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """The summed -log softmax(logits)[target] of logits [T, vocabulary], in float64, some rows at a time."""
    total = 0.0
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        rows = logits[start : start + _ROWS_AT_ONCE].astype(np.float64)
        chosen = np.take_along_axis(rows, targets[start : start + _ROWS_AT_ONCE, None], axis=1)[:, 0]
        largest = rows.max(axis=1, keepdims=True)
        log_partition = np.log(np.exp(rows - largest).sum(axis=1)) + largest[:, 0]
        total += float((log_partition - chosen).sum())
    return total


def _weighted_sparsity(
    projections: list[Projection], active_rows: Mapping[str, float]
) -> tuple[float, dict[str, float]]:
    """The share of weights not read, over the model and by kind; a projection without a threshold reads all rows.

    ``active_rows`` are the rows that a token reads on average, by the name of the Threshold.
    """
    skipped: defaultdict[str, float] = defaultdict(float)
    stored: defaultdict[str, float] = defaultdict(float)
    for projection in projections:
        threshold = projection.threshold
        rows_read = active_rows[threshold.name or ""] if threshold is not None else float(projection.channels)
        skipped[projection.kind] += (projection.channels - rows_read) * projection.outputs
        stored[projection.kind] += projection.channels * projection.outputs
    model_level = sum(skipped.values()) / sum(stored.values()) if stored else 0.0
    return model_level, {kind: skipped[kind] / stored[kind] for kind in stored}
