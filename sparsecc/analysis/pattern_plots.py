"""The plots of how alike the activation patterns of similar prompts are."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparsecc.analysis.averages import mean, means
from sparsecc.analysis.components import DOWN_INPUT
from sparsecc.analysis.predictability import POSITIONS, UNRELATED, PatternMatch, Patterns
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.inline_svg import COLORS, count_along, legend_above, line_styles, new_plot, ordered_color

_HEATMAP_COLUMNS = 64
_HEATMAP_HEIGHT = 5.2


def similarity_plot(study: StudyTables) -> Figure:
    """How alike the patterns of similar prompts are, where a token was kept and where it was replaced."""
    figure, axes = new_plot("tokens that two prompts share, %", "intersection over union, %")
    rows = [row for row in study.matches if row.component == DOWN_INPUT]
    related = [row for row in rows if row.similarity != UNRELATED]
    named = {"kept": "same token", "all": "all tokens", "replaced": "other token"}
    for positions, style in line_styles(list(named)):
        of = [row for row in related if row.positions == positions]
        line = sorted(means(of, lambda row: row.similarity, lambda row: row.intersection_over_union).items())
        axes.plot([100 * x for x, _ in line], [100 * y for _, y in line], label=named[positions], **style)
    unrelated = mean(row.intersection_over_union for row in rows if row.similarity == UNRELATED)
    axes.axhline(100 * unrelated, color=COLORS[-1], linestyle="--", label="unrelated prompts")
    axes.set_ylim(0, 101)
    legend_above(axes, 2)
    return figure


def match_rate_plot(study: StudyTables) -> Figure:
    """The match rate by layer, a line for each similarity."""
    figure, axes = new_plot("layer", "match rate, %")
    rows = [row for row in study.matches if row.component == DOWN_INPUT and row.positions == POSITIONS[0]]
    similarities = sorted({row.similarity for row in rows}, reverse=True)
    for place, similarity in enumerate(similarities):
        line = means([row for row in rows if row.similarity == similarity], lambda row: row.layer, _match_rate)
        is_related = similarity != UNRELATED
        axes.plot(
            list(line),
            [100 * rate for rate in line.values()],
            label=f"{100 * similarity:.0f} % shared" if is_related else "unrelated",
            color=ordered_color(place, len(similarities)) if is_related else COLORS[-1],
            linestyle="-" if is_related else "--",
            marker="o",
            markersize=4,
        )
    axes.set_ylim(0, 101)
    count_along(axes)
    legend_above(axes, 3)
    return figure


def heatmap_plot(study: StudyTables, match: PatternMatch) -> Figure:
    """Where a variant's pattern is that of its prompt, token by token, and which tokens are others."""
    same, replaced = compared_patterns(study.patterns, match)
    figure, axes = new_plot("neuron", "token", height=_HEATMAP_HEIGHT)
    tokens, neurons = same.shape
    image = axes.imshow(
        100 * _binned(same),
        aspect="auto",
        interpolation="none",
        vmin=0,
        vmax=100,
        extent=(0, neurons, tokens, 0),
    )
    axes.grid(visible=False)
    rows = np.flatnonzero(replaced) + 0.5
    axes.plot(
        np.full(len(rows), 1.02 * neurons),
        rows,
        "<",
        color=COLORS[1],
        markersize=5,
        clip_on=False,
        label="token that is another",
    )
    figure.colorbar(image, ax=axes, location="bottom", label="neurons in the same state, %")
    axes.set_xlim(0, neurons)
    legend_above(axes, 1)
    return figure


def compared_patterns(patterns: Patterns, match: PatternMatch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of a variant and its prompt: bool [tokens, neurons], where both are active or both inactive; and bool [tokens],
    where the tokens differ.
    """
    variant = list(patterns.similarities).index(match.similarity)
    active, ids = patterns.of(match.layer, match.component)[match.prompt], patterns.token_ids[match.prompt]
    return active[0] == active[variant], ids[0] != ids[variant]


def _binned(same: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The mean of neighbouring neurons, so that a page has room for all."""
    parts = np.array_split(same, min(_HEATMAP_COLUMNS, same.shape[1]), axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1)


def _match_rate(row: PatternMatch) -> float:
    return row.match_rate
