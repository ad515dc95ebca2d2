"""Thresholds by Fisher information, with one level for the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc import histogram
from sparsecc.artifact import Artifact
from sparsecc.errors import MisfitError
from sparsecc.hidden_state_gradients import hidden_state_gradients
from sparsecc.hidden_states import weighted_magnitudes
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.model_budget import beyond_reach
from sparsecc.methods.projection_entry import projection_entry
from sparsecc.model_file import load_model
from sparsecc.progress import track
from sparsecc.projections import HEAD, Projection, projections_and_head
from sparsecc.recipe import ProjectionRecipe, Recipe
from sparsecc.text import TokenWindows
from sparsecc.threshold_session import ThresholdSession

GRADIENT_TOKENS = 8_192
"""How much of the text is differentiated: as much as 32,768 tokens, to the fourth digit of the divergence."""
BUDGET_TOKENS = 8_192
"""How much of the text the thresholded model is run on, to see what it skips."""
_BUDGET_ROUNDS = 3
"""Each leaves about a twentieth of what was missing before, where not nearly all is to be skipped."""
_MOST_BUDGET_ROUNDS = 10
_MAY_BE_MISSING = 0.002
"""Of the model's weights."""

Array = NDArray[np.float32]


def fisher(model: CalibratedModel, sparsity: float) -> Recipe:
    """Keep channel k of a hidden state where x_k^2 * F_k / N >= a level, which is the same in the whole model.

    Zeroing x_k makes the model's predictions diverge by x_k^2 * F_k / 2 nats, where F_k is the Fisher information of
    what it predicts with respect to x_k (see :mod:`sparsecc.hidden_state_gradients`), and spares N weights, the outputs
    of all projections that read the hidden state. So the least divergence for a given number of weights is what one
    level of their ratio gives, and it decides how sparse every layer and every kind of projection becomes. This is what
    optimal brain damage (LeCun et al., 1989) asks of a weight, asked of an activation. The level is a quantile over all
    weights of the model and all tokens; it is folded into a threshold per channel, T_k = sqrt(level * N / F_k).
    The language-model head is one of the projections here: its N is the vocabulary.
    Projections that read one hidden state share it, hence one pass over wide rows.

    What is zeroed changes later hidden states, so the ``sparsity`` quantile of the dense model skips another share of
    the weights than that, by about a percent. So the thresholded model is run, and the quantile moved by what was
    missing until the model skips ``sparsity`` of its weights.

    Raises:
        MisfitError: the model cannot be differentiated, or cannot skip so many of its weights.
    """
    windows = model.calibration_windows
    return Recipe(
        "fisher",
        sparsity,
        thresholded(
            model.dense,
            thresholdable(load_model(model.dense.model_path).graph, model.weights),
            windows,
            budget_windows(windows),
            sparsity,
            method="fisher",
            threads=model.threads,
        ),
        model.statistics.calibration,
    )


def thresholdable(graph: ir.Graph, weights: str) -> list[Projection]:
    """The projections and the head, but no head that would be stored in more bits than where it is read whole.

    In int4 that is one with an odd vocabulary, since two weights of a row share a byte.
    """
    found = projections_and_head(graph)
    return [entry for entry in found if entry.kind != HEAD or weights != "int4" or entry.outputs % 2 == 0]


def thresholded(
    dense: Artifact,
    projections: Sequence[Projection],
    windows: TokenWindows,
    budget: TokenWindows,
    sparsity: float,
    *,
    method: str,
    threads: int = 0,
) -> tuple[ProjectionRecipe, ...]:
    """An entry for every projection of a dense model, by what :func:`fisher` says of its hidden states.

    ``budget`` is the text on which the thresholded model has to skip ``sparsity`` of its weights.

    Raises:
        MisfitError: it cannot.
    """
    outputs = outputs_behind(projections)
    if sparsity == 0:
        return tuple(
            projection_entry(projection, method, 0.0, 0.0, np.zeros(1, np.float32)) for projection in projections
        )
    importance = _importance(dense, outputs, windows)
    scores = weighted_magnitudes(dense, importance, windows, "scoring", threads=threads)
    by_weights = np.sum([outputs[name] * counts for name, counts in scores.items()], axis=0)
    session = ThresholdSession(dense, budget, threads=threads)
    share = sparsity
    for turn in track(range(_MOST_BUDGET_ROUNDS), "meeting the budget", _BUDGET_ROUNDS):
        thresholds = _thresholds(histogram.quantile(by_weights, share), importance, projections)
        skipped = session.idle_shares(thresholds)
        missing = sparsity - _share_of_weights(projections, skipped)
        if turn + 1 >= _BUDGET_ROUNDS and missing <= _MAY_BE_MISSING:
            break
        share = max(0.0, min(share + missing, (1 + share) / 2))
    else:
        raise MisfitError(beyond_reach(method, sparsity, sparsity - missing))
    return tuple(
        projection_entry(projection, method, sparsity, skipped[projection.name], thresholds[projection.name])
        for projection in projections
    )


def budget_windows(windows: TokenWindows) -> TokenWindows:
    """As much of a text as the thresholded model is run on."""
    return windows.first(max(1, BUDGET_TOKENS // windows.window))


def _thresholds(
    root_of_level: float, importance: Mapping[str, Array], projections: Sequence[Projection]
) -> dict[str, Array]:
    """sqrt(level * N / F_k) for each channel; infinite, at any level, where nothing depends on it."""
    by_hidden_state = {
        name: np.divide(root_of_level, weights, out=np.full_like(weights, np.inf), where=weights > 0)
        for name, weights in importance.items()
    }
    return {projection.name: by_hidden_state[str(projection.input.name)] for projection in projections}


def _share_of_weights(projections: Sequence[Projection], shares: Mapping[str, float]) -> float:
    """The mean of shares by projection, each as often as it has weights."""
    weights = [projection.weight_count for projection in projections]
    return float(np.average([shares[projection.name] for projection in projections], weights=weights))


def outputs_behind(projections: Sequence[Projection]) -> dict[str, int]:
    """N, how many outputs read each hidden state: the weights that a skipped channel spares."""
    outputs: dict[str, int] = {}
    for projection in projections:
        name = str(projection.input.name)
        outputs[name] = outputs.get(name, 0) + projection.outputs
    return outputs


def _importance(dense: Artifact, outputs: Mapping[str, int], windows: TokenWindows) -> dict[str, Array]:
    """sqrt(F_k / N) for each hidden state, float32 [K]."""
    some = windows.first(max(1, GRADIENT_TOKENS // windows.window))
    squares = {name: np.zeros(1) for name in outputs}
    for observed in hidden_state_gradients(dense, list(outputs), some):
        for name, (_, gradient) in observed.items():
            squares[name] = squares[name] + gradient.double().square().sum(0).cpu().numpy()
    return {name: np.sqrt(squares[name] / (some.tokens * outputs[name])).astype(np.float32) for name in outputs}
