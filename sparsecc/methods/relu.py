"""The zeros that ReLU leaves, and thresholds for what they do not save yet."""

from __future__ import annotations

import dataclasses

from sparsecc.errors import SparseccError
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.projections import Projection
from sparsecc.recipe import ProjectionRecipe, Recipe

_STEPS = 50
"""Of the bisection: enough for every bit of a float."""


def relu(model: CalibratedModel, sparsity: float) -> Recipe:
    """Skip what ReLU zeroes in front of ``down`` anyway, and threshold only as far as ``sparsity`` asks for more.

    With z the share of exact zeros in a hidden state, which costs no accuracy to skip (Mirzadeh et al., arXiv
    2310.04564), and p the same for the whole model, each projection keeps channel k where abs(x_k) >= t, t being the
    max(p, z)-quantile of abs(x), or 0 where p <= z. p is the least for which the weights skipped are ``sparsity`` of
    all projections' weights: where the zeros alone are as many, p is 0 and the model computes what it did.

    Raises:
        SparseccError: no ReLU lies before a ``down`` projection.
    """
    if not any(map(_reads_relu, model.projections)):
        raise SparseccError("method relu needs a model whose feed-forward networks have ReLU; use another")
    zeros = {projection.name: _zero_share(model, projection) for projection in model.projections}
    total = sum(projection.weight_count for projection in model.projections)

    def skipped(share: float) -> float:
        return sum(projection.weight_count * max(share, zeros[projection.name]) for projection in model.projections)

    low, high = 0.0, 1.0 if skipped(0.0) < sparsity * total else 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if skipped(middle) < sparsity * total else (low, middle)
    entries = [_entry(model, projection, high, zeros[projection.name]) for projection in model.projections]
    return Recipe("relu", sparsity, tuple(entries), model.statistics.calibration)


def _reads_relu(projection: Projection) -> bool:
    node = projection.input.producer()
    return projection.kind == "down" and node is not None and node.op_type == "Relu"


def _zero_share(model: CalibratedModel, projection: Projection) -> float:
    """The share of calibrated entries that are 0, or so near that float32 products of them are."""
    magnitudes = model.magnitudes(projection)
    return float(magnitudes[0] / magnitudes.sum())


def _entry(model: CalibratedModel, projection: Projection, share: float, zeros: float) -> ProjectionRecipe:
    magnitudes = model.magnitudes(projection)
    if share > zeros:
        return calibrated_threshold(projection, "relu", share, magnitudes)
    entry = calibrated_threshold(projection, "relu", 0.0, magnitudes)
    return dataclasses.replace(entry, target_sparsity=share, calibrated_sparsity=zeros)
