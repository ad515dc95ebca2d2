"""The sparsity methods. A method is a function from statistics to a recipe, and nothing else.

To add one: write a module with a function of the signature of :func:`sparsecc.methods.teal.teal` and name it here.
"""

from collections.abc import Callable, Sequence

from sparsecc.calibration_statistics import Statistics
from sparsecc.methods.teal import teal
from sparsecc.methods.wina import wina
from sparsecc.projections import Projection
from sparsecc.recipe import Recipe

Method = Callable[[Sequence[Projection], Statistics, float], Recipe]

METHODS: dict[str, Method] = {"teal": teal, "wina": wina}
