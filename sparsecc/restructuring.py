"""Rewrite a dense model to one that computes the same, and whose weights a recipe can skip more of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from sparsecc.artifact import GENAI_CONFIG_NAME, Artifact, copy_companions, open_artifact
from sparsecc.errors import SparseccError
from sparsecc.model_file import MODEL_NAME, load_model, save_model
from sparsecc.passes import CleanUpPass, RotateHiddenStatesPass, SplitLowRankPass
from sparsecc.progress import console
from sparsecc.recipe import Recipe


def restructured(dense: Artifact, recipe: Recipe, directory: Path) -> Artifact:
    """The dense artifact itself where a recipe asks for nothing else, else a copy of it in an empty directory.

    The copy has the rotations and the low-rank branches of the recipe. One weight at a time is in memory.

    Raises:
        SparseccError: the model cannot be rewritten so.
    """
    passes = tuple(_passes(recipe))
    if not passes:
        return dense
    model = load_model(dense.model_path)
    try:
        for graph_pass in (*passes, CleanUpPass()):
            graph_pass(model)
    except ir.passes.PreconditionError as error:
        raise SparseccError(f"{recipe.method} does not fit this model: {error}; choose another method") from error
    with console.status("rewriting"):
        save_model(model, directory)
    copy_companions(dense, directory)
    config = dense.genai_config
    config = {**config, "model": {**config["model"], "decoder": {**dense.decoder, "filename": MODEL_NAME}}}
    (directory / GENAI_CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n", "utf-8")
    return open_artifact(directory)


def _passes(recipe: Recipe) -> Iterator[ir.passes.InPlacePass]:
    if recipe.rotations is not None:
        yield RotateHiddenStatesPass(recipe.rotations)
    if any(entry.rank for entry in recipe.projections):
        yield SplitLowRankPass(recipe)
