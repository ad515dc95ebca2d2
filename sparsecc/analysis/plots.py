"""The plots of what activations and weights are like, drawn from a study's tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparsecc.analysis.averages import means
from sparsecc.analysis.findings import SCOPE_WORDS, thresholds_by_layer
from sparsecc.analysis.important_neurons import HOT_SHARE
from sparsecc.analysis.natural_sparsity import BOUNDS
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.inline_svg import COLORS, count_along, legend_above, line_styles, new_plot, ordered_color

LOWEST_MAGNITUDE = 1e-5
"""What is smaller is drawn there: zero has no place on a logarithmic axis."""
_CURVE_POINTS = 200
_MANY_LAYERS = 8
"""Above that, not every layer is named in a legend."""


def natural_sparsity_plot(study: StudyTables) -> Figure:
    """The share of activations that are no larger than a bound, a line for each component."""
    figure, axes = new_plot("bound on the magnitude", "activations within it, %")
    shares = means(study.natural, lambda row: (row.component, row.bound), lambda row: row.share)
    for component, style in line_styles(study.components):
        points = [100 * shares[component, bound] for bound in BOUNDS]
        axes.plot(range(len(BOUNDS)), points, label=study.words(component), **style)
    axes.set_xticks(range(len(BOUNDS)), ["0" if bound == 0 else f"{bound:g}" for bound in BOUNDS])
    axes.set_ylim(bottom=0)
    legend_above(axes, 2)
    return figure


def zeros_plot(study: StudyTables) -> Figure:
    """The share of exact zeros by layer, a line for each component; the axis is the same for all models."""
    figure, axes = new_plot("layer", "activations that are zero, %")
    for component, style in line_styles(study.components):
        rows = [row for row in study.natural if row.component == component and row.bound == 0]
        shares = [100 * row.share for row in rows]
        axes.plot([row.layer for row in rows], shares, label=study.words(component), **style)
    axes.set_ylim(-2, 102)
    count_along(axes)
    legend_above(axes, 2)
    return figure


def weights_plot(study: StudyTables) -> Figure:
    """The histogram of weights of each kind of projection."""
    figure, axes = new_plot("magnitude of a weight", "weights in a bin (log)")
    finite = [row for row in study.weights if not math.isnan(row.upper)]
    edges = sorted({row.lower for row in finite} | {row.upper for row in finite})
    kinds = list(dict.fromkeys(row.kind for row in finite))
    for kind, style in line_styles(kinds):
        counts = dict.fromkeys(edges[:-1], 0)
        for row in finite:
            if row.kind == kind:
                counts[row.lower] += row.count
        axes.stairs(list(counts.values()), edges, label=kind, color=style["color"], linewidth=1.2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)
    axes.set_xlim(left=0)
    legend_above(axes, 7)
    return figure


def distribution_plot(study: StudyTables, component: str) -> Figure:
    """The cumulative distribution of a component's magnitudes, a line for each layer, a dot for each threshold."""
    figure, axes = new_plot("magnitude (log)", "activations at or below it, %")
    curves: dict[int, list[tuple[float, float]]] = {}
    for row in study.distribution:
        if row.component == component:
            curves.setdefault(row.layer, []).append((row.magnitude, row.share))
    _draw_layers(axes, {layer: _on_log_axis(points) for layer, points in curves.items()})
    cuts = [(row.threshold, row.sparsity) for row in study.thresholds if row.component == component]
    axes.plot(*_on_log_axis(cuts), ".", color="black", markersize=2.5, label="threshold", zorder=3)
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    legend_above(axes, 3)
    return figure


def thresholds_plot(study: StudyTables) -> Figure:
    """The threshold of each component at the study's sparsity, by layer."""
    figure, axes = new_plot("layer", f"{100 * study.facts.sparsity:.0f} % quantile of magnitudes (log)")
    for component, style in line_styles(study.components):
        cuts = thresholds_by_layer(study, component)
        heights = [cut if cut > 0 else math.nan for cut in cuts.values()]
        axes.plot(list(cuts), heights, label=study.words(component), **style)
    axes.set_yscale("log")
    count_along(axes)
    legend_above(axes, 2)
    return figure


def hot_neurons_plot(study: StudyTables) -> Figure:
    """How many neurons hold most of what is important, by layer."""
    figure, axes = new_plot("layer", "neurons, %")
    for component, style in line_styles(study.components):
        rows = [row for row in study.important if row.component == component]
        shares = [100 * row.hot_neurons / row.neurons if row.hot_neurons else math.nan for row in rows]
        axes.plot([row.layer for row in rows], shares, label=study.words(component), **style)
    axes.axhline(100 * HOT_SHARE, color=COLORS[-1], linestyle=":", label="spread evenly")
    axes.set_ylim(0, 100)
    count_along(axes)
    legend_above(axes, 2)
    return figure


def frequency_plot(study: StudyTables, component: str) -> Figure:
    """How often each neuron is important, the hottest first, a line for each layer, a dot where its hot ones end."""
    figure, axes = new_plot("neurons, the hottest first, %", "tokens in which important, %")
    places = {row.layer: row for row in study.important if row.component == component}
    curves = {layer: 100 * np.sort(study.frequencies[layer, component])[::-1] for layer in places}
    _draw_layers(axes, {layer: _thinned(_along(len(curve)), curve) for layer, curve in curves.items()})
    ends = [(row.layer, row.hot_neurons - 1) for row in places.values() if row.hot_neurons]
    axes.plot(
        [_along(places[layer].neurons)[last] for layer, last in ends],
        [curves[layer][last] for layer, last in ends],
        ".",
        color="black",
        label="last hot neuron",
        zorder=3,
    )
    axes.set_xlim(0, 100)
    axes.set_ylim(-1, 101)
    legend_above(axes, 3)
    return figure


def sweep_plot(study: StudyTables) -> Figure:
    """Perplexity over the share of activations that are zero."""
    figure, axes = new_plot("activations that are zero, %", "perplexity (log)")
    for scope, style in line_styles(list(SCOPE_WORDS)):
        points = [(100 * row.achieved_sparsity, row.perplexity) for row in study.sweep if row.scope == scope]
        if points:
            axes.plot(*zip(*points, strict=True), label=SCOPE_WORDS[scope], **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    legend_above(axes, 1)
    return figure


def _draw_layers(axes: Axes, curves: Mapping[int, tuple[Sequence[float], Sequence[float]]]) -> None:
    """A line for each layer, the later the lighter, named as far as a legend has room."""
    for place, (layer, points) in enumerate(sorted(curves.items())):
        is_named = len(curves) <= _MANY_LAYERS or layer in (min(curves), max(curves))
        label = f"layer {layer}" if is_named else None
        axes.plot(*points, color=ordered_color(place, len(curves)), linewidth=1.2, label=label)


def _along(count: int) -> NDArray[np.float64]:
    """Where ``count`` neurons lie on an axis in percent."""
    return 100 * (np.arange(count) + 0.5) / count


def _thinned(x: NDArray[np.float64], y: NDArray[np.float32]) -> tuple[list[float], list[float]]:
    """As many points of a curve as a page shows, its ends among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, _CURVE_POINTS).astype(np.int64))
    return x[kept].tolist(), y[kept].tolist()


def _on_log_axis(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Magnitudes and shares in percent of those that are finite."""
    finite = [point for point in points if not math.isnan(point[0])]
    return [max(magnitude, LOWEST_MAGNITUDE) for magnitude, _ in finite], [100 * share for _, share in finite]
