"""The sparsity methods. A method is a function from a calibrated model to a recipe, and nothing else.

To add one: write a module with a function of the signature of :func:`sparsecc.methods.teal.teal` and name it here.
"""

from collections.abc import Callable

from sparsecc.methods.best import best
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.cats import cats
from sparsecc.methods.ffn_threshold import ffn_threshold
from sparsecc.methods.fisher import fisher
from sparsecc.methods.larosa import larosa
from sparsecc.methods.r_sparse import r_sparse, r_sparse_whitened
from sparsecc.methods.relu import relu
from sparsecc.methods.rotated_fisher import rotated_fisher
from sparsecc.methods.teal import teal
from sparsecc.methods.teal_greedy import teal_greedy
from sparsecc.methods.wina import wina
from sparsecc.methods.wisparse import wisparse
from sparsecc.recipe import Recipe

Method = Callable[[CalibratedModel, float], Recipe]

__all__ = ["DEFAULT_METHOD", "DEFAULT_SPARSITY", "METHODS", "SEARCHABLE", "CalibratedModel", "Method"]

METHODS: dict[str, Method] = {
    "best": best,
    "teal": teal,
    "teal-greedy": teal_greedy,
    "wina": wina,
    "wisparse": wisparse,
    "r-sparse": r_sparse,
    "r-sparse-whitened": r_sparse_whitened,
    "larosa": larosa,
    "cats": cats,
    "ffn-threshold": ffn_threshold,
    "relu": relu,
    "fisher": fisher,
    "rotated-fisher": rotated_fisher,
}

DEFAULT_METHOD = "best"
DEFAULT_SPARSITY = 0.5

SEARCHABLE = ("teal", "teal-greedy", "wina", "wisparse", "ffn-threshold", "relu", "fisher")
"""Those that only threshold what projections read, so that ``sparsecc search`` can scale their thresholds."""
