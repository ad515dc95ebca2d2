"""Methods that skip weights in a part of the model only: how much there, for a target over the whole model."""

from __future__ import annotations

from collections.abc import Sequence

from sparsecc.errors import SparseccError
from sparsecc.projections import Projection

FEED_FORWARD_KINDS = {"gate", "up", "gate_up", "down"}


def skipped_share(
    method: str, sparsity: float, projections: Sequence[Projection], skippable: Sequence[Projection]
) -> float:
    """The share of the ``skippable`` projections' weights, in [0, 1), that is ``sparsity`` of all projections' weights.

    Raises:
        SparseccError: they have too few weights.
    """
    total = sum(projection.weight_count for projection in projections)
    available = sum(projection.weight_count for projection in skippable)
    if sparsity * total >= available:
        raise SparseccError(beyond_reach(method, sparsity, available / total))
    return sparsity * total / available


def beyond_reach(method: str, sparsity: float, share: float) -> str:
    """What to say where a method skips no more than a share of the model's weights."""
    return (
        f"method {method} can skip {share:.1%} of this model's projection weights at most, and sparsity {sparsity:g} "
        "is to skip more; give a smaller sparsity or another method"
    )
