"""The report that lies beside a compiled model: one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sparsecc.page import Plot, Table, drawn, write_page
from sparsecc.projections import HEAD
from sparsecc.recipe import ProjectionRecipe, Recipe
from sparsecc.report_plots import sparsity_plot, speed_plot

if TYPE_CHECKING:
    from sparsecc.compilation import Measurements


def write_report(recipe: Recipe, measurements: Measurements | None, model_name: str, path: Path) -> None:
    """Write what was done to each projection, and what was gained and lost if it was measured."""
    write_page(
        path,
        "report.html",
        model_name=model_name,
        recipe=recipe,
        findings=list(_findings(measurements)) if measurements else [],
        plots=list(_plots(recipe, measurements)),
        measured=list(_measured(measurements)) if measurements else [],
        projections=_projections(recipe),
    )


def _findings(measurements: Measurements) -> Iterator[str]:
    dense, sparse = measurements.dense, measurements.sparse
    before, after = measurements.dense_speed.decode_tokens_per_s, measurements.sparse_speed.decode_tokens_per_s
    rise = sparse.perplexity / dense.perplexity - 1
    head = ", the language-model head's among them," if HEAD in sparse.sparsity_by_kind else ""
    yield f"{100 * sparse.sparsity:.1f} % of the bytes of projection weights{head} are not read."
    yield (
        f"Perplexity {'rises' if rise >= 0 else 'falls'} by {100 * abs(rise):.1f} %, from {dense.perplexity:.2f} to "
        f"{sparse.perplexity:.2f}."
    )
    yield f"Decoding is {after / before:.2f} times as fast: {before:.1f} tokens/s dense, {after:.1f} sparse."


def _plots(recipe: Recipe, measurements: Measurements | None) -> Iterator[Plot]:
    if measurements:
        sparse = measurements.sparse_speed
        reached = sparse.decode_tokens_per_s / sparse.floor_tokens_per_s
        yield drawn(
            "speed",
            speed_plot(measurements.dense_speed, sparse),
            f"The sparse model decodes at {100 * reached:.0f} % of the speed that reading its weights would allow.",
            f"Medians and 10 to 90 % ranges, both models in turn in one run; the limit is "
            f"{measurements.read_bandwidth_gb_s:.1f} GB/s over the bytes that a token reads.",
        )
    if recipe.projections:
        most = max(recipe.projections, key=lambda entry: entry.calibrated_sparsity)
        least = min(recipe.projections, key=lambda entry: entry.calibrated_sparsity)
        yield drawn(
            "sparsity",
            sparsity_plot(recipe.projections),
            f"Skipped rows range from {100 * least.calibrated_sparsity:.0f} % ({_place(least)}) to "
            f"{100 * most.calibrated_sparsity:.0f} % ({_place(most)}).",
            "The share of weight rows that each projection skips on the calibration text, in %.",
        )


def _measured(measurements: Measurements) -> Iterator[Table]:
    dense, sparse = measurements.dense, measurements.sparse
    dense_speed, sparse_speed = measurements.dense_speed, measurements.sparse_speed
    yield Table(
        f"What was gained and lost. Perplexity over {sparse.tokens:,} tokens in windows of {sparse.window:,}; speeds "
        "are medians, both models in turn in one run.",
        ["", "dense", "sparse"],
        [
            ["perplexity", f"{dense.perplexity:.2f}", f"{sparse.perplexity:.2f}"],
            ["projection weights not read, % of bytes", f"{100 * dense.sparsity:.1f}", f"{100 * sparse.sparsity:.1f}"],
            [
                "decode, tokens/s",
                f"{dense_speed.decode_tokens_per_s:.1f}",
                f"{sparse_speed.decode_tokens_per_s:.1f}",
            ],
            [
                "limit set by memory, tokens/s",
                f"{dense_speed.floor_tokens_per_s:.1f}",
                f"{sparse_speed.floor_tokens_per_s:.1f}",
            ],
            ["prompt, tokens/s", f"{dense_speed.prefill_tokens_per_s:.0f}", f"{sparse_speed.prefill_tokens_per_s:.0f}"],
        ],
    )
    yield Table(
        "Achieved sparsity by kind of projection, measured on the evaluation text.",
        ["projection", "weights not read, %"],
        [[kind, f"{100 * sparsity:.1f}"] for kind, sparsity in sparse.sparsity_by_kind.items()],
    )


def _projections(recipe: Recipe) -> Table:
    entries = sorted(recipe.projections, key=lambda entry: entry.layer)
    has_branches = any(entry.rank for entry in entries)
    return Table(
        "Sparsity: the share of weight rows that are skipped on the calibration text."
        + (" Rank: of the low-rank branch beside the projection." if has_branches else ""),
        ["layer", "projection", "kept where", "sparsity, %", *(["rank"] if has_branches else [])],
        [
            [
                "" if entry.kind == HEAD else str(entry.layer),
                entry.kind,
                _kept_where(entry),
                f"{100 * entry.calibrated_sparsity:.1f}",
                *([str(entry.rank)] if has_branches else []),
            ]
            for entry in entries
        ],
    )


def _place(entry: ProjectionRecipe) -> str:
    return "the head" if entry.kind == HEAD else f"{entry.kind} in layer {entry.layer}"


def _kept_where(entry: ProjectionRecipe) -> str:
    if entry.kept is not None:
        return f"among the {entry.kept} largest"
    low, high = float(entry.threshold.min()), float(entry.threshold.max())
    return f"magnitude ≥ {low:.4g}" if low == high else f"magnitude ≥ {low:.4g} to {high:.4g}, by channel"
