"""The method that loses least, of those that fit a model."""

from __future__ import annotations

import os
from collections.abc import Callable

from sparsecc.errors import SparseccError
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.fisher import fisher
from sparsecc.methods.rotated_fisher import rotated_fisher
from sparsecc.methods.teal import teal
from sparsecc.progress import console
from sparsecc.recipe import Recipe

_SHARE_OF_MEMORY = 0.25
"""That float32 weights may take: to differentiate a model takes several times as much as they do."""


def best(model: CalibratedModel, sparsity: float) -> Recipe:
    """The recipe of the first of ``rotated-fisher``, ``fisher`` and ``teal`` that fits the model.

    That is their order on the board of docs/leaderboard.md. The first needs the residual stream of Llama and its kin
    and two windows of text, the second a graph that can be differentiated in this machine's memory, the last nothing.
    The recipe bears the name of the method that made it; why another did not is said on standard error.
    """
    for method in _differentiating_methods(model):
        try:
            return method(model, sparsity)
        except SparseccError as error:
            console.print(f"going on to the next method: {error}", markup=False)
    return teal(model, sparsity)


def _differentiating_methods(model: CalibratedModel) -> tuple[Callable[[CalibratedModel, float], Recipe], ...]:
    """None where memory is short; how much there is only POSIX says."""
    weights = sum(4 * projection.weight_count for projection in model.projections)
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if weights > _SHARE_OF_MEMORY * memory:
            console.print(
                f"going on to teal: to differentiate {weights / 1e9:.0f} GB of float32 weights takes more than the "
                f"{memory / 1e9:.0f} GB of memory here; --method rotated-fisher tries it nevertheless",
                markup=False,
            )
            return ()
    return rotated_fisher, fisher
