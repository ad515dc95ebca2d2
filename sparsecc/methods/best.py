"""The method that loses least, of those that fit a model."""

from __future__ import annotations

import os

from sparsecc.errors import MisfitError
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.fisher import fisher
from sparsecc.methods.rotated_fisher import ROTATION_TOKENS, rotated_fisher
from sparsecc.methods.teal import teal
from sparsecc.progress import console
from sparsecc.recipe import Recipe
from sparsecc.residual_rotation import SAMPLED_BYTES

_LEAST_FOR_ROTATION_IN_INT4 = 0.3
"""Below that sparsity a rotation gains less than it costs in int4: rotated weights lose more where they are rounded."""
_COPIES = 3
"""Of the float32 weights: what differentiating a model takes beside a sample of its hidden states, roughly."""


def best(model: CalibratedModel, sparsity: float) -> Recipe:
    """The recipe of the first method that fits the model: ``rotated-fisher``, ``fisher``, ``teal``.

    By far the least is lost by the first. It needs the residual stream of Llama and its kin and two windows of text,
    and is left out beside int4 weights at a low sparsity. The second loses least where no residual stream can be
    rotated, above all behind ReLU. Both need the text that was calibrated on and memory to differentiate the model in;
    the last needs nothing. The recipe bears the name of the method that made it; why another did not is said on
    standard error.
    """
    for name, method in (("rotated-fisher", _rotated_fisher), ("fisher", fisher)):
        try:
            _require_memory(model)
            return method(model, sparsity)
        except MisfitError as error:
            console.print(f"going on without {name}: {error}", markup=False, soft_wrap=True)
    return teal(model, sparsity)


def _rotated_fisher(model: CalibratedModel, sparsity: float) -> Recipe:
    if model.weights == "int4" and sparsity < _LEAST_FOR_ROTATION_IN_INT4:
        raise MisfitError(f"sparsity {sparsity:g} gains less than rotated weights lose in int4; use another method")
    return rotated_fisher(model, sparsity)


def _require_memory(model: CalibratedModel) -> None:
    """How much there is only POSIX says."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", ()):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    weights = sum(4 * projection.weight_count for projection in model.projections)
    read = {str(projection.input.name): projection.channels for projection in model.projections}
    needed = _COPIES * weights + min(8 * ROTATION_TOKENS * sum(read.values()), SAMPLED_BYTES)
    if needed > memory:
        raise MisfitError(
            f"to differentiate this model takes about {needed / 1e9:.0f} GB of memory, and here are "
            f"{memory / 1e9:.0f}; --method rotated-fisher tries it nevertheless"
        )
