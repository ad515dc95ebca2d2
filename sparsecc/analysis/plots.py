"""The plots of a study, drawn from its tables alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, TypeVar

from matplotlib import colormaps
from matplotlib.figure import Figure

from sparsecc.analysis.averages import mean, means
from sparsecc.analysis.components import DOWN_INPUT
from sparsecc.analysis.findings import SCOPE_WORDS, thresholds_by_layer
from sparsecc.analysis.important_neurons import HOT_SHARE
from sparsecc.analysis.natural_sparsity import BOUNDS
from sparsecc.analysis.predictability import UNRELATED
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.analysis.wording import component_words
from sparsecc.inline_svg import COLORS, MARKERS, count_along, legend_above, new_plot

Row = TypeVar("Row")
_LOWEST_MAGNITUDE = 1e-5
_MANY_LAYERS = 12
"""Above that, not every layer is named in a legend."""


def natural_sparsity_plot(study: StudyTables) -> Figure:
    """The share of activations that are no larger than a bound, a line for each component."""
    figure, axes = new_plot("bound on the magnitude", "activations within it, %")
    shares = means(study.natural, lambda row: (row.component, row.bound), lambda row: row.share)
    for component, style in _styles(_components(study)):
        points = [100 * shares[component, bound] for bound in BOUNDS]
        axes.plot(range(len(BOUNDS)), points, label=_words(study, component), **style)
    axes.set_xticks(range(len(BOUNDS)), ["0" if bound == 0 else f"{bound:g}" for bound in BOUNDS])
    axes.set_ylim(bottom=0)
    legend_above(axes, 2)
    return figure


def weights_plot(study: StudyTables) -> Figure:
    """The histogram of weights of each kind of projection."""
    figure, axes = new_plot("magnitude of a weight", "weights in a bin, % (log)")
    finite = [row for row in study.weights if not math.isnan(row.upper)]
    kinds = list(dict.fromkeys(row.kind for row in finite))
    for kind, style in _styles(kinds):
        counts: dict[float, int] = {}
        for row in finite:
            if row.kind == kind:
                counts[row.lower] = counts.get(row.lower, 0) + row.count
        total = sum(counts.values())
        points = [(lower, 100 * count / total) for lower, count in counts.items() if count]
        axes.plot(*zip(*points, strict=True), label=kind, color=style["color"], linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    legend_above(axes, 7)
    return figure


def distribution_plot(study: StudyTables, component: str) -> Figure:
    """The cumulative distribution of a component's magnitudes, a line for each layer."""
    figure, axes = new_plot("magnitude (log)", "activations at or below it, %")
    layers = sorted({row.layer for row in study.distribution if row.component == component})
    for index, layer in enumerate(layers):
        points = [
            (max(row.magnitude, _LOWEST_MAGNITUDE), 100 * row.share)
            for row in study.distribution
            if (row.layer, row.component) == (layer, component) and not math.isnan(row.magnitude)
        ]
        if points:
            is_named = len(layers) <= _MANY_LAYERS or layer in (layers[0], layers[-1])
            color = colormaps["viridis"](0.92 * index / max(len(layers) - 1, 1))
            label = f"layer {layer}" if is_named else None
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.2, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    legend_above(axes, 4)
    return figure


def thresholds_plot(study: StudyTables) -> Figure:
    """The threshold of each component at the study's sparsity, by layer."""
    figure, axes = new_plot("layer", f"{100 * study.facts.sparsity:.0f} % quantile of magnitudes (log)")
    for component, style in _styles(_components(study)):
        cuts = thresholds_by_layer(study, component)
        axes.plot(
            list(cuts), [cut if cut > 0 else math.nan for cut in cuts.values()], label=_words(study, component), **style
        )
    axes.set_yscale("log")
    count_along(axes)
    legend_above(axes, 2)
    return figure


def important_neurons_plot(study: StudyTables) -> Figure:
    """How many neurons hold most of what is important, by layer."""
    figure, axes = new_plot("layer", "neurons, %")
    for component, style in _styles(_components(study)):
        rows = [row for row in study.important if row.component == component]
        shares = [100 * row.hot_neurons / row.neurons if row.hot_neurons else math.nan for row in rows]
        axes.plot([row.layer for row in rows], shares, label=_words(study, component), **style)
    axes.axhline(100 * HOT_SHARE, color=COLORS[-1], linestyle=":", label="spread evenly")
    axes.set_ylim(0, 100)
    count_along(axes)
    legend_above(axes, 2)
    return figure


def predictability_plot(study: StudyTables) -> Figure:
    """How alike the patterns of similar prompts are, where a token was kept and where it was replaced."""
    figure, axes = new_plot("tokens that two prompts share, %", "intersection over union, %")
    rows = [row for row in study.matches if row.component == DOWN_INPUT]
    related = [row for row in rows if row.similarity != UNRELATED]
    named = {"kept": "same token", "all": "all tokens", "replaced": "other token"}
    for positions, style in _styles(list(named)):
        of = [row for row in related if row.positions == positions]
        line = means(of, lambda row: row.similarity, lambda row: row.intersection_over_union)
        axes.plot(*_percentages(line), label=named[positions], **style)
    unrelated = mean(row.intersection_over_union for row in rows if row.similarity == UNRELATED)
    axes.axhline(100 * unrelated, color=COLORS[-1], linestyle="--", label="unrelated prompts")
    axes.set_ylim(0, 101)
    legend_above(axes, 2)
    return figure


def prediction_plot(study: StudyTables, component: str) -> Figure:
    """The recall of each predictor and of the baselines, by the layer that is predicted."""
    figure, axes = new_plot("layer whose active neurons are predicted", "active neurons found, %")
    rows = [row for row in study.predictions if row.component == component]
    sources = sorted({row.source_layer for row in rows})
    styles = iter(_styles([*sources, "hot", "previous"]))
    for source, (_, style) in zip(sources, styles, strict=False):
        line = {row.layer: row.recall for row in rows if row.source_layer == source}
        axes.plot(*_shares(line), label=f"network, from layer {source}", **style)
    baselines: Mapping[str, Callable[..., float]] = {
        "hottest neurons": lambda row: row.hot_recall,
        "previous token's set": lambda row: row.previous_recall,
        "blind guess": lambda row: row.active_share,
    }
    for (name, value), color in zip(baselines.items(), COLORS[-3:], strict=True):
        of_first = [row for row in rows if row.source_layer == sources[0]] if sources else []
        axes.plot(
            *_shares({row.layer: value(row) for row in of_first}), label=name, color=color, linestyle="--", marker="."
        )
    count_along(axes)
    legend_above(axes, 2)
    return figure


def sweep_plot(study: StudyTables) -> Figure:
    """Perplexity over the share of activations that are zero."""
    figure, axes = new_plot("activations that are zero, %", "perplexity (log)")
    for scope, style in _styles(list(SCOPE_WORDS)):
        points = [(100 * row.achieved_sparsity, row.perplexity) for row in study.sweep if row.scope == scope]
        if points:
            axes.plot(*zip(*points, strict=True), label=SCOPE_WORDS[scope], **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    legend_above(axes, 1)
    return figure


def _styles(names: Sequence[Row]) -> Iterable[tuple[Row, dict[str, Any]]]:
    """A colour and a marker for each line, so that lines can be told apart in print as well."""
    for name, color, marker in zip(names, cycle(COLORS), cycle(MARKERS), strict=False):
        yield name, {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.4}


def _components(study: StudyTables) -> list[str]:
    return list(dict.fromkeys(row.component for row in study.important))


def _words(study: StudyTables, component: str) -> str:
    return component_words(component, is_gated=study.facts.is_gated)


def _percentages(line: Mapping[float, float]) -> tuple[list[float], list[float]]:
    ordered = sorted(line.items())
    return [100 * x for x, _ in ordered], [100 * y for _, y in ordered]


def _shares(line: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(line), [100 * value for value in line.values()]
