"""Apply a recipe to a dense graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sparsecc.errors import SparseccError
from sparsecc.passes import (
    AnnotatePass,
    CleanUpPass,
    FoldBiasPass,
    GateFeedForwardPass,
    InsertGatherActivePass,
    InsertKeepLargestPass,
    InsertThresholdPass,
    LimitSparseRowsPass,
    ReplaceMatMulPass,
    ShipFunctionsPass,
)
from sparsecc.recipe import Recipe

MAX_SPARSE_ROWS = 4
"""Rows up to which a compiled model is sparse: of more rows' active channels the union is nearly every channel."""


def sparsify(model: ir.Model, recipe: Recipe, storage: Sequence[ir.passes.InPlacePass] = ()) -> None:
    """Rewrite a dense model in place: Threshold -> GatherActive -> SparseMatMul for every projection of the recipe.

    Where the recipe has a gate select, up and down are rewritten to GatherMatMul and SparseMatMul behind it.
    Or KeepLargest in the place of Threshold, where the recipe keeps a count of channels.

    ``storage`` are the passes of :func:`sparsecc.weight_storage.storage_passes`; without any the weights stay float32.

    Raises:
        SparseccError: the recipe does not fit the model.
    """
    passes = (
        GateFeedForwardPass(recipe),
        InsertThresholdPass(recipe),
        InsertKeepLargestPass(recipe),
        LimitSparseRowsPass(MAX_SPARSE_ROWS),
        InsertGatherActivePass(),
        ReplaceMatMulPass(),
        FoldBiasPass(),
        *storage,
        AnnotatePass(recipe),
        ShipFunctionsPass(),
        CleanUpPass(),
    )
    try:
        for graph_pass in passes:
            graph_pass(model)
    except ir.passes.PreconditionError as error:
        raise SparseccError(f"the recipe does not fit the model: {error}") from error
