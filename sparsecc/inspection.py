"""What was done to a compiled model, projection by projection."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.artifact import RECIPE_NAME, Artifact
from sparsecc.errors import SparseccError
from sparsecc.fusion import unfuse
from sparsecc.model_file import load_model
from sparsecc.operators import block_size_of
from sparsecc.passes import low_rank_branch
from sparsecc.projections import HEAD, Projection, projections_and_head, weight_of
from sparsecc.recipe import recipe_from_document

_STORED_AS = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.INT8: "int8",
    ir.DataType.INT4: "int4",
}


@dataclasses.dataclass(frozen=True)
class InspectedProjection:
    """One projection of a compiled model; what it has from its recipe is None where it runs dense."""

    name: str
    layer: int
    kind: str
    input_channels: int
    output_channels: int
    weights: str
    """What they are stored as, one of :data:`sparsecc.recipe.WEIGHTS`."""
    block_size: int
    """How many consecutive weights of a row share a scale; 1 where nothing is quantized."""
    method: str | None
    target_sparsity: float | None
    calibrated_sparsity: float | None
    rank: int
    """Of the low-rank branch beside it; 0 without one."""
    kept: int | None
    """How many channels every token keeps; None where a threshold decides."""
    threshold: tuple[float, float] | None
    """The smallest and the largest of its finite thresholds, None if it has none: an infinite one skips its row."""


def inspect(artifact: Artifact) -> list[InspectedProjection]:
    """The projections of an artifact in graph order, with what was done to each; the head where it is thresholded.

    Raises:
        SparseccError: the recipe is damaged or names a projection that the model does not have.
    """
    model = load_model(artifact.model_path)
    unfuse(model)
    graph = model.graph
    tensors = {name: value.const_value for name, value in graph.initializers.items()}
    thresholds = {name: tensor.numpy() for name, tensor in tensors.items() if tensor and name.endswith("/T")}
    document = artifact.recipe_document
    entries: Mapping[str, Any] = {}
    if document is not None:
        entries = {entry.name: entry for entry in recipe_from_document(document, thresholds).projections}
    projections = [entry for entry in projections_and_head(graph) if entry.kind != HEAD or entry.selection]
    unknown = set(entries) - {projection.name for projection in projections}
    if unknown:
        path = artifact.directory / RECIPE_NAME
        raise SparseccError(f"{path} names {min(unknown)}, which the model does not have; compile it again")
    inspected = []
    for projection in projections:
        entry = entries.get(projection.name)
        inspected.append(
            InspectedProjection(
                name=projection.name,
                layer=projection.layer,
                kind=projection.kind,
                input_channels=projection.channels,
                output_channels=projection.outputs,
                weights=_stored_as(projection),
                block_size=block_size_of(projection.node),
                method=entry.method if entry else None,
                target_sparsity=entry.target_sparsity if entry else None,
                calibrated_sparsity=entry.calibrated_sparsity if entry else None,
                rank=_rank(projection),
                kept=entry.kept if entry else None,
                threshold=_finite_range(entry.threshold) if entry and entry.kept is None else None,
            )
        )
    return inspected


def _stored_as(projection: Projection) -> str:
    tensor = projection.weight.const_value
    assert tensor is not None
    return _STORED_AS[tensor.dtype]


def _rank(projection: Projection) -> int:
    branch = low_rank_branch(projection)
    outer = weight_of(branch[1]) if branch is not None else None
    return int(outer.const_value.shape.numpy()[0]) if outer is not None and outer.const_value is not None else 0


def _finite_range(thresholds: NDArray[np.float32]) -> tuple[float, float] | None:
    finite = thresholds[np.isfinite(thresholds)]
    return (float(finite.min()), float(finite.max())) if finite.size else None
