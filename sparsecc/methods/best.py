"""The method that loses least, of those that fit a model."""

from __future__ import annotations

import os
from collections.abc import Callable

from sparsecc.errors import MisfitError
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.fisher import fisher
from sparsecc.methods.rotated_fisher import ROTATION_TOKENS, rotated_fisher
from sparsecc.methods.teal import teal
from sparsecc.methods.wisparse import wisparse
from sparsecc.progress import console
from sparsecc.recipe import Recipe
from sparsecc.residual_rotation import SAMPLED_BYTES

_MOST_FOR_FISHER = 0.5
"""Above that sparsity ``fisher``, whose model of the loss holds for small changes, loses more than ``wisparse``."""
_LEAST_FOR_ROTATION_IN_INT4 = 0.3
"""Below that sparsity a rotation gains less than it costs in int4: rotated weights lose more where they are rounded."""
_COPIES = 3
"""Of the float32 weights: what differentiating a model takes beside a sample of its hidden states, roughly."""


def best(model: CalibratedModel, sparsity: float) -> Recipe:
    """The recipe of the first method that fits the model: ``rotated-fisher``, ``fisher`` or ``wisparse``, ``teal``.

    That is their order on the board of docs/leaderboard.md, ``fisher`` up to a sparsity of a half and ``wisparse``
    above, and no rotation beside int4 weights at a low sparsity. The first needs the residual stream of Llama and its
    kin and two windows of text, ``fisher`` a graph that can be differentiated in this machine's memory, ``wisparse``
    the text that was calibrated on, the last nothing. The recipe bears the name of the method that made it; why another
    did not is said on standard error.
    """
    for method in _promising(model, sparsity):
        try:
            return method(model, sparsity)
        except MisfitError as error:
            name = method.__name__.replace("_", "-")
            console.print(f"going on without {name}: {error}", markup=False, soft_wrap=True)
    return teal(model, sparsity)


def _promising(model: CalibratedModel, sparsity: float) -> list[Callable[[CalibratedModel, float], Recipe]]:
    """What to try before ``teal``, in order."""
    rotates = model.weights != "int4" or sparsity >= _LEAST_FOR_ROTATION_IN_INT4
    differentiating = [rotated_fisher] if rotates else []
    others = []
    if sparsity <= _MOST_FOR_FISHER:
        differentiating.append(fisher)
    else:
        others.append(wisparse)
    return [*differentiating, *others] if _can_differentiate(model) else others


def _can_differentiate(model: CalibratedModel) -> bool:
    """Whether this machine's memory is large enough; how much there is only POSIX says."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return True
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    weights = sum(4 * projection.weight_count for projection in model.projections)
    sampled = sum(8 * ROTATION_TOKENS * projection.channels for projection in model.projections)
    needed = _COPIES * weights + min(sampled, SAMPLED_BYTES)
    if needed > memory:
        console.print(
            f"going on without rotated-fisher and fisher: to differentiate this model takes about {needed / 1e9:.0f} "
            f"GB of memory, and here are {memory / 1e9:.0f}; --method rotated-fisher tries it nevertheless",
            markup=False,
            soft_wrap=True,
        )
    return needed <= memory
