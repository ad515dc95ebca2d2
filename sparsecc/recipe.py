"""The recipe: what a method decided for every projection, and all that a pass needs to know."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsecc.errors import SparseccError

FORMAT = "sparsecc-recipe"
VERSION = 1
WEIGHTS = ("fp32", "fp16", "int8", "int4")
"""What weights can be stored as."""
SELECTED_BY = ("input", "gate")
"""What a threshold is compared with."""
COMPILE_AGAIN = "compile the model again"
"""What mends the recipe of a compiled model."""


@dataclasses.dataclass(frozen=True)
class ProjectionRecipe:
    """What to do to one projection.

    Attributes:
        name, layer, kind: the projection or head, as :class:`sparsecc.projections.Projection` describes it.
        method: the method that set the threshold.
        target_sparsity: the share of weights to skip, in [0, 1]: of this projection, which may be skipped whole where a
            method shares a budget among projections, or of all where it decides for all at once.
        calibrated_sparsity: the share that the threshold skips on the calibration text.
        threshold: float32 [1], or [K] for one threshold per input channel; smaller magnitudes are zeroed. 0 where
            ``kept`` says what is.
        kept: how many channels every token keeps, those of the largest magnitudes; None where the threshold decides.
        selected_by: ``input`` where the threshold is for the hidden state that the projection reads; ``gate`` where it
            is for the activated gate of its network, whose small entries stand for output channels of ``up`` and input
            channels of ``down``, which have the same threshold then.
        branch: float32 [r, N] with orthonormal rows, the directions of the output that a low-rank branch serves for
            what the threshold drops; None without one.
    """

    name: str
    layer: int
    kind: str
    method: str
    target_sparsity: float
    calibrated_sparsity: float
    threshold: NDArray[np.float32] = dataclasses.field(compare=False)
    kept: int | None = None
    selected_by: str = "input"
    branch: NDArray[np.float32] | None = dataclasses.field(default=None, compare=False)

    @property
    def rank(self) -> int:
        """Of the low-rank branch; 0 without one."""
        return 0 if self.branch is None else len(self.branch)


@dataclasses.dataclass(frozen=True)
class Rotations:
    """Orthogonal bases that hidden states are written in, folded into the weights around them.

    Attributes:
        residual: for each layer float32 [D, D], whose columns are the basis of the residual stream there.
        heads: for each layer float32 [G, H, H], the bases of what the G key-value heads of size H attend to; empty
            where those are left as they are.
    """

    residual: tuple[NDArray[np.float32], ...]
    heads: tuple[NDArray[np.float32], ...] = ()


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Where the statistics behind a recipe came from."""

    text_sha256: str
    model_sha256: str
    tokens: int
    window: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method's decisions for a whole model, and what its weights are stored as.

    A dense model has a recipe without projections.
    """

    method: str
    target_sparsity: float
    projections: tuple[ProjectionRecipe, ...] = ()
    calibration: Calibration | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weights: str = "fp32"
    rotations: Rotations | None = dataclasses.field(default=None, compare=False)
    """What a model is rewritten by before anything is selected. Not in the JSON: it lies in the weights."""

    @property
    def is_restructuring(self) -> bool:
        """Whether the model's weights are rewritten, by what the JSON does not have but says."""
        return self.rotations is not None or any(entry.rank for entry in self.projections)

    def to_json(self, places: Mapping[str, str] | None = None, measured: Mapping[str, Any] | None = None) -> str:
        """The recipe as JSON text, with null for a number that is not finite.

        Args:
            places: for each projection the initializer of the compiled model that holds its threshold. It is written
                where the threshold is one per channel; a scalar is written as a number. Without a place the threshold
                is a list.
            measured: what was seen on an evaluation text, in JSON values.
        """
        document: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "target_sparsity": self.target_sparsity,
            "weights": self.weights,
            **({"restructured": True} if self.is_restructuring else {}),
            "calibration": dataclasses.asdict(self.calibration) if self.calibration else None,
            "versions": dict(self.versions),
            "projections": [_projection_to_json(projection, places or {}) for projection in self.projections],
        }
        if measured:
            document["measured"] = dict(measured)
        return json.dumps(finite_or_null(document), indent=1, allow_nan=False) + "\n"


def recipe_from_document(
    document: Mapping[str, Any], initializers: Mapping[str, NDArray[np.float32]], *, remedy: str = COMPILE_AGAIN
) -> Recipe:
    """Read a recipe back from what :func:`parse_recipe_document` or :func:`read_recipe_document` returned.

    ``initializers`` are the compiled model's, where thresholds per channel are kept. ``remedy`` is what a message says
    is to be done about a mistake.

    Raises:
        SparseccError: the recipe is damaged or names what is not there.
    """
    try:
        calibration = document["calibration"]
        return Recipe(
            method=str(document["method"]),
            target_sparsity=float(document["target_sparsity"]),
            projections=tuple(_projection_from_json(entry, initializers) for entry in document["projections"]),
            calibration=Calibration(
                text_sha256=str(calibration["text_sha256"]),
                model_sha256=str(calibration["model_sha256"]),
                tokens=int(calibration["tokens"]),
                window=int(calibration["window"]),
            )
            if calibration
            else None,
            versions={str(key): str(value) for key, value in document["versions"].items()},
            weights=WEIGHTS[WEIGHTS.index(document["weights"])],
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise SparseccError(f"the recipe is damaged ({error!r}); {remedy}") from error


def read_recipe_document(path: Path, *, remedy: str = COMPILE_AGAIN) -> dict[str, Any]:
    """The JSON object of a recipe file, as :func:`parse_recipe_document` checks it.

    Raises:
        SparseccError: the file cannot be read, or is no recipe.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SparseccError(f"{path} is not a readable UTF-8 text; {remedy}") from error
    try:
        return parse_recipe_document(text, remedy=remedy)
    except SparseccError as error:
        raise SparseccError(f"{path}: {error}") from error


def parse_recipe_document(text: str, *, remedy: str = COMPILE_AGAIN) -> dict[str, Any]:
    """The JSON object of a recipe, checked to be one of this version.

    Raises:
        SparseccError: it is not.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SparseccError(f"the recipe is not valid JSON ({error}); {remedy}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SparseccError(f"this is no sparsecc recipe; {remedy}")
    if document.get("version") != VERSION:
        raise SparseccError(
            f"the recipe has version {document.get('version')}, this sparsecc reads version {VERSION}; {remedy}"
        )
    return document


def finite_or_null(value: Any) -> Any:
    """A JSON value with None for each infinity and NaN in it: JSON can say neither."""
    if isinstance(value, Mapping):
        return {key: finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite_or_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _projection_to_json(projection: ProjectionRecipe, places: Mapping[str, str]) -> dict[str, Any]:
    threshold = projection.threshold
    scalar = float(threshold[0]) if threshold.size == 1 else None
    place = places.get(projection.name)
    by_channel: Any = {"initializer": place} if place is not None else threshold.tolist()
    return {
        "name": projection.name,
        "layer": projection.layer,
        "kind": projection.kind,
        "method": projection.method,
        "target_sparsity": projection.target_sparsity,
        "calibrated_sparsity": projection.calibrated_sparsity,
        "threshold": by_channel if scalar is None else scalar,
        **({"kept": projection.kept} if projection.kept is not None else {}),
        **({"selected_by": projection.selected_by} if projection.selected_by != SELECTED_BY[0] else {}),
        **({"rank": projection.rank} if projection.rank else {}),
    }


def _projection_from_json(entry: dict[str, Any], initializers: Mapping[str, NDArray[np.float32]]) -> ProjectionRecipe:
    threshold = entry["threshold"]
    place = threshold["initializer"] if isinstance(threshold, dict) else None
    numbers = threshold if isinstance(threshold, list) else [threshold]
    kept = entry.get("kept")
    return ProjectionRecipe(
        name=str(entry["name"]),
        layer=int(entry["layer"]),
        kind=str(entry["kind"]),
        method=str(entry["method"]),
        target_sparsity=float(entry["target_sparsity"]),
        calibrated_sparsity=float(entry["calibrated_sparsity"]),
        threshold=_thresholds(numbers) if place is None else initializers[place],
        kept=None if kept is None else operator.index(kept),
        selected_by=SELECTED_BY[SELECTED_BY.index(entry.get("selected_by", SELECTED_BY[0]))],
    )


def _thresholds(numbers: Sequence[Any]) -> NDArray[np.float32]:
    """float32, infinite where JSON, which has no infinity, says null."""
    if not numbers:
        raise ValueError("a threshold has no entries")
    thresholds = np.array([math.inf if number is None else float(number) for number in numbers], np.float32)
    if not (thresholds >= 0).all():
        raise ValueError("a threshold is negative, or no number")
    return thresholds
