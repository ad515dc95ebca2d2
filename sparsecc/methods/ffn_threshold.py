"""Thresholds in the feed-forward networks alone (Dhar et al., arXiv 2412.12178)."""

from __future__ import annotations

from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.calibrated_threshold import calibrated_threshold
from sparsecc.methods.model_budget import FEED_FORWARD_KINDS, skipped_share
from sparsecc.recipe import Recipe


def ffn_threshold(model: CalibratedModel, sparsity: float) -> Recipe:
    """Zero what gate, up and down are given below one percentile of its magnitudes; attention stays dense.

    abs(x_k) >= t is kept, t being the p-quantile of abs(x) for each projection of the feed-forward networks, with the
    same p everywhere. p is ``sparsity`` x all projections' weights / the feed-forward networks' weights, so that
    ``sparsity`` means as many bytes as it does with methods that also thin out attention.

    Raises:
        SparseccError: the feed-forward networks have too few weights for that.
    """
    feed_forward = [projection for projection in model.projections if projection.kind in FEED_FORWARD_KINDS]
    share = skipped_share("ffn-threshold", sparsity, model.projections, feed_forward)
    entries = []
    for projection in model.projections:
        wanted = share if projection in feed_forward else 0.0
        entries.append(calibrated_threshold(projection, "ffn-threshold", wanted, model.magnitudes(projection)))
    return Recipe("ffn-threshold", sparsity, tuple(entries), model.statistics.calibration)
