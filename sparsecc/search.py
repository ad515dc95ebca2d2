"""From a model to the recipe file that a search found for it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import sqlalchemy

from sparsecc.allocation_search import AllocationSearch, SearchResult, open_study
from sparsecc.artifact import Artifact, scratch_beside
from sparsecc.compilation import check_choices, load_statistics, make_recipe, open_dense
from sparsecc.errors import SparseccError
from sparsecc.methods import METHODS, SEARCHABLE
from sparsecc.model_file import load_model
from sparsecc.projections import budgeted_projections
from sparsecc.recipe import Recipe, read_recipe_document
from sparsecc.scaled_recipe import ScaledRecipe
from sparsecc.text import DEFAULT_TOKENS, TokenWindows, load_tokenizer, read_text, shipped_text, token_windows
from sparsecc.threshold_session import ThresholdSession

SEARCH_TOKENS = 4_096
SEARCH_WINDOW = 512
DEFAULT_TRIALS = 100
_SQLITE_SUFFIX = ".sqlite3"


def search(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    method: str = "teal",
    sparsity: float = 0.5,
    trials: int = DEFAULT_TRIALS,
    text: str | os.PathLike[str] | None = None,
    tokens: int = SEARCH_TOKENS,
    storage: str | None = None,
    study: str | None = None,
    threads: int = 2,
    overwrite: bool = False,
) -> SearchResult:
    """Search for the best share of a model's budget for every layer and kind, and write a recipe for ``compile``.

    Every process that names the same storage and study searches along, on this machine or another. A search that was
    stopped goes on when it is started again.

    Args:
        model: a checkpoint's directory or hub id, or a dense ONNX decoder's directory.
        output: the recipe file to write.
        method: whose thresholds are scaled.
        sparsity: the share of the model's projection weights to skip, in [0, 1).
        trials: how many candidates all workers try together.
        text: what to calibrate and to try candidates on; sparsecc's calibration text by default.
        tokens: how much of it candidates are tried on.
        storage: the URL of a database that Optuna supports; by default an SQLite file beside the output.
        study: the name of the search in that database; by default made of method and sparsity.
        threads: the size of the intra-op pool.
        overwrite: whether a recipe at ``output`` may be replaced.

    Raises:
        SparseccError: any of these is a mistake, or the budget cannot be met.
    """
    output = Path(output)
    source = Path(text) if text else shipped_text("calibration")
    if method in METHODS and method not in SEARCHABLE:
        raise SparseccError(
            f"method {method} does more than to threshold hidden states; search from one of {', '.join(SEARCHABLE)}"
        )
    check_choices(method, sparsity, methods=SEARCHABLE)
    _check_recipe_target(output, overwrite=overwrite)
    read_text(source)
    with scratch_beside(output) as scratch:
        dense = open_dense(os.fspath(model), scratch)
        windows = _windows(dense, source, tokens)
        statistics = load_statistics(dense, source, tokens=DEFAULT_TOKENS, threads=threads)
        base = make_recipe(dense, statistics, method, sparsity, source, threads=threads, scratch=scratch)
        graph = load_model(dense.model_path).graph
        projections = budgeted_projections(graph, {entry.name for entry in base.projections})
        scaled = ScaledRecipe(base, dense, projections, windows, threads=threads)
        identity = {
            **dataclasses.asdict(statistics.calibration),
            "method": method,
            "target_sparsity": sparsity,
            "search_tokens": windows.tokens,
            "search_window": windows.window,
            "thresholds": len(scaled.groups),
        }
        scaled.within_budget([1.0] * len(scaled.groups), sparsity)  # before anything is written
        shared = open_study(storage or _beside(output), study or f"{method}-{sparsity:g}", identity)
        worker = AllocationSearch(shared, scaled, ThresholdSession(dense, windows, threads=threads), sparsity)
        result = worker.run(trials)
        result = dataclasses.replace(result, recipe=_named(result.recipe))
        staged = scratch / "recipe.json"
        staged.write_text(result.recipe.to_json(measured=_measured(result)), "utf-8")
        staged.replace(output)
    return result


def _beside(output: Path) -> str:
    """The URL of an SQLite file named after the output, and never the output itself, which would replace it."""
    is_named_so = output.suffix.lower() == _SQLITE_SUFFIX
    name = output.name + _SQLITE_SUFFIX if is_named_so else output.with_suffix(_SQLITE_SUFFIX).name
    database = output.parent.resolve() / name
    return sqlalchemy.URL.create("sqlite", database=str(database)).render_as_string(hide_password=False)


def _windows(dense: Artifact, text: Path, tokens: int) -> TokenWindows:
    window = min(SEARCH_WINDOW, tokens, dense.context_length)
    return token_windows(text, load_tokenizer(dense.directory), tokens=tokens, window=window)


def _named(recipe: Recipe) -> Recipe:
    """The recipe and its entries say that a search changed what the method had decided."""
    method = f"{recipe.method}, searched"
    entries = tuple(dataclasses.replace(entry, method=method) for entry in recipe.projections)
    return dataclasses.replace(recipe, method=method, projections=entries)


def _measured(result: SearchResult) -> dict[str, Any]:
    return {
        "kl_divergence": {"start": result.start.kl_divergence, "found": result.found.kl_divergence},
        "sparsity": result.found.sparsity,
        "tokens": result.found.tokens,
        "trials": result.trials,
    }


def _check_recipe_target(output: Path, *, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite and output.is_file():
        raise SparseccError(f"{output} exists already; add --overwrite to replace it")
    try:
        read_recipe_document(output)
    except SparseccError as error:
        raise SparseccError(f"{output} exists and is no recipe; choose another output") from error
