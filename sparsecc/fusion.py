"""Two forms of a sparse graph: one to look at, and one with fewer and larger operators that runs faster."""

from __future__ import annotations

import onnx_ir as ir

from sparsecc.errors import SparseccError
from sparsecc.passes import (
    CleanUpPass,
    FuseSparseLinearPass,
    FuseSwiGLUPass,
    MergeProductsPass,
    ShipFunctionsPass,
    SplitProductsPass,
    UnfuseSparseLinearPass,
    UnfuseSwiGLUPass,
)


def fuse(model: ir.Model) -> None:
    """Rewrite a sparse model in place for speed: one product for all that share channels, one operator for several."""
    for graph_pass in (
        MergeProductsPass(),
        FuseSparseLinearPass(),
        FuseSwiGLUPass(),
        ShipFunctionsPass(),
        CleanUpPass(),
    ):
        graph_pass(model)


def unfuse(model: ir.Model) -> None:
    """Rewrite a fused model in place so that each projection has its own Threshold, GatherActive and product again.

    A model that is not fused stays as it is.

    Raises:
        SparseccError: the fused operators do not say what they were made of.
    """
    try:
        for graph_pass in (UnfuseSwiGLUPass(), UnfuseSparseLinearPass(), SplitProductsPass(), ShipFunctionsPass()):
            graph_pass(model)
    except ir.passes.PreconditionError as error:
        raise SparseccError(f"the model is damaged: {error}; compile it again") from error
