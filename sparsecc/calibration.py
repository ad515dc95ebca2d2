"""Run a text through a dense model and gather the statistics of every hidden state that a projection reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model, model_sha256
from sparsecc.passes import TapValuesPass
from sparsecc.progress import track
from sparsecc.projections import Projection, find_projections
from sparsecc.recipe import Calibration
from sparsecc.session import open_session, run_prompt
from sparsecc.statistics import (
    HiddenStateStatistics,
    ProjectionStatistics,
    Statistics,
    read_statistics,
    write_statistics,
)
from sparsecc.text import TokenWindows


def calibrate(dense: Artifact, windows: TokenWindows, *, threads: int = 0) -> Statistics:
    """Statistics of a dense model on a text, in memory bounded by the hidden states of a few hundred tokens.

    Raises:
        SparseccError: the model has no projections, or its hidden states are not finite.
    """
    model = load_model(dense.model_path)
    projections = require_projections(model, dense.model_path)
    hidden_states = {str(projection.input.name): projection.channels for projection in projections}
    seen_states = {name: HiddenStateStatistics.empty(channels) for name, channels in hidden_states.items()}
    seen_projections = {projection.name: ProjectionStatistics.empty(projection) for projection in projections}
    TapValuesPass(list(hidden_states))(model)
    session = open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=threads)
    for window in track(windows.ids, "calibrating", len(windows.ids)):
        for piece in run_prompt(session, window, list(hidden_states), **dense.cache_shape):
            for name, hidden in zip(hidden_states, piece, strict=True):
                _add_piece(name, hidden.reshape(-1, hidden.shape[-1]), seen_states, seen_projections)
    calibration = Calibration(windows.text_sha256, model_sha256(dense.model_path), windows.tokens, windows.window)
    return Statistics(calibration, seen_states, seen_projections)


def calibrate_once(dense: Artifact, windows: TokenWindows, *, threads: int = 0) -> Statistics:
    """As :func:`calibrate`, but statistics of the same model, text and tokens are kept and read back the next time."""
    model_hash = model_sha256(dense.model_path)
    key = f"{model_hash[:16]}-{windows.text_sha256[:16]}-{windows.tokens}-{windows.window}"
    path = _cache_directory() / f"{key}.h5"
    if path.is_file():
        try:
            return read_statistics(path)
        except SparseccError:
            path.unlink()
    statistics = calibrate(dense, windows, threads=threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        write_statistics(statistics, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return statistics


def require_projections(model: ir.Model, path: Path) -> list[Projection]:
    """The projections of a dense model.

    Raises:
        SparseccError: there are none, or the model is sparse already.
    """
    projections = find_projections(model.graph)
    if not projections:
        raise SparseccError(f"{path} has no projection to rewrite; give a decoder with float32 MatMul projections")
    if any(projection.threshold is not None for projection in projections):
        raise SparseccError(f"{path} is sparse already; give the dense model it was compiled from")
    return projections


def _add_piece(
    name: str,
    hidden: NDArray[np.float32],
    seen_states: dict[str, HiddenStateStatistics],
    seen_projections: dict[str, ProjectionStatistics],
) -> None:
    magnitudes = np.abs(hidden)
    if not np.isfinite(magnitudes.max()):
        raise SparseccError(f"the dense model computes NaN or infinity in {name}; check the checkpoint")
    seen_states[name].add(hidden, magnitudes)
    for projection in seen_projections.values():
        if projection.hidden_state == name:
            projection.add(magnitudes)


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sparsecc" / "statistics"
