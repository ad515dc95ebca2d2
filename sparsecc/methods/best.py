"""The method that loses least, of those that fit a model."""

from __future__ import annotations

from sparsecc.errors import SparseccError
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.fisher import fisher
from sparsecc.methods.rotated_fisher import rotated_fisher
from sparsecc.methods.teal import teal
from sparsecc.progress import console
from sparsecc.recipe import Recipe


def best(model: CalibratedModel, sparsity: float) -> Recipe:
    """The recipe of the first of ``rotated-fisher``, ``fisher`` and ``teal`` that fits the model.

    That is their order on the board of docs/leaderboard.md. The first needs the residual stream of Llama and its kin,
    the second a graph that can be differentiated, the last nothing. The recipe bears the name of the method that made
    it; why another did not is said on standard error.
    """
    for method in (rotated_fisher, fisher):
        try:
            return method(model, sparsity)
        except SparseccError as error:
            console.print(f"going on to the next method: {error}", markup=False)
    return teal(model, sparsity)
