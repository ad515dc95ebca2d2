"""The report that lies beside a compiled model: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sparsecc.recipe import ProjectionRecipe, Recipe

if TYPE_CHECKING:
    from sparsecc.compilation import Measurements


def write_report(recipe: Recipe, measurements: Measurements | None, model_name: str, path: Path) -> None:
    """Write what was done to each projection, and what was gained and lost if it was measured."""
    environment = Environment(loader=PackageLoader("sparsecc"), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("report.html")
    path.write_text(template.render(_content(recipe, measurements, model_name)), "utf-8")


def _content(recipe: Recipe, measurements: Measurements | None, model_name: str) -> Mapping[str, Any]:
    layers = groupby(sorted(recipe.projections, key=lambda entry: entry.layer), key=lambda entry: entry.layer)
    return {
        "model_name": model_name,
        "recipe": recipe,
        "measurements": measurements,
        "layers": {layer: [_projection_row(entry) for entry in entries] for layer, entries in layers},
    }


def _projection_row(entry: ProjectionRecipe) -> Mapping[str, Any]:
    low, high = float(entry.threshold.min()), float(entry.threshold.max())
    return {
        "kind": entry.kind,
        "threshold": f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}, by channel",
        "calibrated_sparsity": entry.calibrated_sparsity,
    }
