"""LaRoSA, layerwise rotated sparse activation (Liu et al., arXiv 2507.01299)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.errors import SparseccError
from sparsecc.methods.calibrated_model import CalibratedModel
from sparsecc.methods.projection_entry import projection_entry
from sparsecc.model_file import load_model
from sparsecc.passes import value_heads
from sparsecc.projections import Projection
from sparsecc.quantization.input_covariance import input_covariances
from sparsecc.recipe import ProjectionRecipe, Recipe, Rotations
from sparsecc.residual_stream import ResidualStream, UnknownResidualStreamError, find_residual_stream

ROTATION_TOKENS = 16_384
"""How much of the text the bases are computed from."""

Array = NDArray[np.float32]


def larosa(model: CalibratedModel, sparsity: float) -> Recipe:
    """Keep the largest entries of each hidden state, as many for every token, in bases that concentrate its energy.

    In layer l the residual stream, normalized, is in the basis Q_l of its principal components; the rotations are
    folded into the weights, with a residual adapter Q_l^T Q_(l+1) between layers (section 3). The adapters are read
    whole, so more of the projections is skipped for the model to skip ``sparsity`` of its projection weights. What o
    reads is rotated by key-value head, folded into v and o; the paper leaves it and what down reads as they are.

    Raises:
        SparseccError: the model's residual stream is not that of Llama and its kin, or the adapters alone exceed what
            may be read.
    """
    if sparsity == 0:
        return Recipe("larosa", sparsity, _entries(model, sparsity, 0.0), model.statistics.calibration)
    graph = load_model(model.dense.model_path).graph
    try:
        stream = find_residual_stream(graph)
    except UnknownResidualStreamError as error:
        raise SparseccError(f"larosa does not fit this model: {error}; choose another method") from error
    adapters = (stream.layers - 1) * stream.width**2
    size = sum(entry.weight_count for entry in model.projections)
    skipped = sparsity + adapters * model.cost_of_added_weight / size
    if skipped >= 1:
        raise SparseccError(
            f"larosa cannot skip {sparsity:.0%} of this model's weights: its residual adapters are "
            f"{skipped - sparsity:.0%} of them; ask for less sparsity or choose another method"
        )
    rotations = _rotations(model, graph, stream)
    entries = _entries(model, sparsity, skipped)
    return Recipe("larosa", sparsity, entries, model.statistics.calibration, rotations=rotations)


def _entries(model: CalibratedModel, sparsity: float, skipped: float) -> tuple[ProjectionRecipe, ...]:
    entries = []
    for projection in model.projections:
        kept = projection.channels - round(skipped * projection.channels)
        entry = projection_entry(
            projection, "larosa", sparsity, 1 - kept / projection.channels, np.zeros(1, np.float32)
        )
        entries.append(dataclasses.replace(entry, kept=kept))
    return tuple(entries)


def _rotations(model: CalibratedModel, graph: ir.Graph, stream: ResidualStream) -> Rotations:
    gains = stream.gains
    attended = _attended(model.projections) if value_heads(graph) else {}
    channels = {str(entry.input.name): entry.channels for entry in model.projections}
    layer_of = {str(entry.input.name): entry.layer for entry in model.projections}
    wanted = {name: count for name, count in channels.items() if name in gains or name in attended}
    windows = model.windows(ROTATION_TOKENS, model.dense.window)
    of_stream = [np.zeros((stream.width, stream.width)) for _ in range(stream.layers)]
    heads: dict[int, Array] = {}
    for name, covariance in input_covariances(model.dense, wanted, windows, threads=model.threads):
        if name in gains:
            of_stream[layer_of[name]] += _without_gain(covariance, gains[name])
        else:
            heads[layer_of[name]] = _head_bases(covariance, *(value_heads(graph) or [])[layer_of[name]])
    bases = tuple(principal_components(covariance) for covariance in of_stream)
    return Rotations(bases, tuple(heads[layer] for layer in sorted(heads)))


def principal_components(covariance: NDArray[np.floating]) -> Array:
    """The eigenvectors of a second moment [D, D] as columns float32 [D, D], those of the largest eigenvalues first."""
    _, vectors = np.linalg.eigh(covariance.astype(np.float64))
    return np.ascontiguousarray(vectors[:, ::-1], np.float32)


def _head_bases(covariance: Array, groups: int, size: int) -> Array:
    """float32 [G, H, H]: what the query heads of one key-value head attend to shares a basis."""
    heads = len(covariance) // size
    blocks = covariance.astype(np.float64).reshape(heads, size, heads, size)
    own = np.stack([blocks[head, :, head, :] for head in range(heads)])
    return np.stack([principal_components(block) for block in own.reshape(groups, -1, size, size).sum(axis=1)])


def _without_gain(covariance: Array, gain: Array) -> NDArray[np.float64]:
    """The second moment of the normalized hidden state before its gain; what a gain of 0 hides counts as 0."""
    inverse = np.divide(1.0, gain, out=np.zeros(gain.shape), where=gain != 0)
    without_gain: NDArray[np.float64] = covariance * np.outer(inverse, inverse)
    return without_gain


def _attended(projections: Sequence[Projection]) -> Mapping[str, int]:
    """The hidden states that o projections read, and their channels."""
    return {str(entry.input.name): entry.channels for entry in projections if entry.kind == "o"}
