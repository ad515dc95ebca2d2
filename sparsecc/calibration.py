"""Run a text through a dense model and gather the statistics of every hidden state that a projection reads."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.calibration_statistics import (
    HiddenStateStatistics,
    ProjectionStatistics,
    Statistics,
    StatisticsOnDemand,
    read_statistics,
    write_statistics,
)
from sparsecc.errors import SparseccError
from sparsecc.hidden_states import hidden_states_on
from sparsecc.model_file import load_model, model_sha256
from sparsecc.operators import is_selection, is_sparse_linear
from sparsecc.projections import Projection, find_projections
from sparsecc.recipe import Calibration
from sparsecc.text import TokenWindows

logger = logging.getLogger(__name__)


def calibrate(dense: Artifact, windows: TokenWindows, *, threads: int = 0) -> Statistics:
    """Statistics of a dense model on a text, in memory bounded by the hidden states of a few hundred tokens.

    Raises:
        SparseccError: the model has no projections, or its hidden states are not finite.
    """
    projections = require_projections(load_model(dense.model_path), dense.model_path)
    return _gather(dense, projections, windows, _calibration(dense, windows), threads)


def calibrate_once(dense: Artifact, windows: TokenWindows, *, threads: int = 0) -> Statistics:
    """As :func:`calibrate`, but statistics of the same model, text and tokens are kept and read back the next time."""
    return _calibrate_once(dense, windows, _calibration(dense, windows), threads)


def calibrate_on_demand(dense: Artifact, windows: TokenWindows, *, threads: int = 0) -> StatisticsOnDemand:
    """As :func:`calibrate_once`, when they are asked for."""
    calibration = _calibration(dense, windows)
    return StatisticsOnDemand(calibration, functools.partial(_calibrate_once, dense, windows, calibration, threads))


def _calibrate_once(dense: Artifact, windows: TokenWindows, calibration: Calibration, threads: int) -> Statistics:
    projections = require_projections(load_model(dense.model_path), dense.model_path)
    kept = _read_kept(projections, calibration)
    if kept is not None:
        return kept
    statistics = _gather(dense, projections, windows, calibration, threads)
    _keep(statistics)
    return statistics


def require_projections(model: ir.Model, path: Path) -> list[Projection]:
    """The projections of a dense model.

    Raises:
        SparseccError: there are none, or the model is sparse already.
    """
    if any(is_selection(node) or is_sparse_linear(node) for node in model.graph):
        raise SparseccError(f"{path} is sparse already; give the dense model it was compiled from")
    projections = find_projections(model.graph)
    if not projections:
        raise SparseccError(f"{path} has no projection to rewrite; give a decoder with float32 MatMul projections")
    return projections


def require_statistics_of(projections: Sequence[Projection], statistics: Statistics, source: Path) -> None:
    """Refuse statistics, read from ``source``, that lack a projection or its hidden state, or have others of that name.

    Raises:
        SparseccError: the statistics do not fit.
    """
    for projection in projections:
        hidden_state = str(projection.input.name)
        of_projection = statistics.projections.get(projection.name)
        of_hidden_state = statistics.hidden_states.get(hidden_state)
        if (
            of_projection is None
            or of_hidden_state is None
            or of_projection.hidden_state != hidden_state
            or not of_projection.row_norms.size == of_hidden_state.channels == projection.channels
        ):
            raise SparseccError(
                f"{source} holds no statistics that fit {projection.name}; run `sparsecc calibrate` on this model"
            )


def _calibration(dense: Artifact, windows: TokenWindows) -> Calibration:
    return Calibration(windows.text_sha256, model_sha256(dense.model_path), windows.tokens, windows.window)


def _gather(
    dense: Artifact, projections: Sequence[Projection], windows: TokenWindows, calibration: Calibration, threads: int
) -> Statistics:
    hidden_states = {str(projection.input.name): projection.channels for projection in projections}
    seen_states = {name: HiddenStateStatistics.empty(channels) for name, channels in hidden_states.items()}
    seen_projections = {projection.name: ProjectionStatistics.empty(projection) for projection in projections}
    for piece in hidden_states_on(dense, list(hidden_states), windows, "calibrating", threads=threads):
        for name, hidden in piece.items():
            _add_piece(name, hidden, seen_states, seen_projections)
    return Statistics(calibration, seen_states, seen_projections)


def _add_piece(
    name: str,
    hidden: NDArray[np.float32],
    seen_states: dict[str, HiddenStateStatistics],
    seen_projections: dict[str, ProjectionStatistics],
) -> None:
    magnitudes = np.abs(hidden)
    seen_states[name].add(hidden, magnitudes)
    for projection in seen_projections.values():
        if projection.hidden_state == name:
            projection.add(magnitudes)


def _read_kept(projections: Sequence[Projection], calibration: Calibration) -> Statistics | None:
    """What :func:`_keep` kept of the same calibration, or None where that is missing, damaged or out of reach."""
    try:
        path = _cache_path(calibration)
        statistics = read_statistics(path)
        require_statistics_of(projections, statistics, path)
    except (SparseccError, OSError, RuntimeError):
        return None
    return statistics if statistics.calibration == calibration else None


def _keep(statistics: Statistics) -> None:
    """Write statistics where :func:`_read_kept` finds them, if that can be done: nothing depends on it."""
    try:
        path = _cache_path(statistics.calibration)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            write_statistics(statistics, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        logger.warning("the statistics are not kept for the next time: %s", error)


def _cache_path(calibration: Calibration) -> Path:
    """The hashes are cut: what is read from there may be of another calibration."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    model, text = calibration.model_sha256[:16], calibration.text_sha256[:16]
    return base / "sparsecc" / "statistics" / f"{model}-{text}-{calibration.tokens}-{calibration.window}.h5"
