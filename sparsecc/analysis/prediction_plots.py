"""The plots of how well an early state foretells later layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecc.analysis.averages import means
from sparsecc.analysis.prediction import PredictionQuality
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.inline_svg import COLORS, count_along, legend_above, line_styles, new_plot

Measure = Callable[[PredictionQuality], float]
_BASELINES: Mapping[str, Measure] = {
    "hottest neurons": lambda row: row.hot_f1,
    "previous token's set": lambda row: row.previous_f1,
    "blind guess": lambda row: row.blind_f1,
}


def f1_by_layer_plot(study: StudyTables, component: str) -> Figure:
    """The F1 of each predictor and of the baselines, by the layer that is predicted."""
    figure, axes = new_plot("layer whose active neurons are predicted", "F1, %")
    rows = [row for row in study.predictions if row.component == component]
    sources = sorted({row.source_layer for row in rows})
    for source, style in line_styles(sources):
        line = {row.layer: row.network_f1 for row in rows if row.source_layer == source}
        axes.plot(*_percentages(line), label=f"network, from layer {source}", **style)
    first = [row for row in rows if row.source_layer == sources[0]] if sources else []
    _draw_baselines(axes, first, lambda row: row.layer)
    count_along(axes)
    legend_above(axes, 2)
    return figure


def f1_by_distance_plot(study: StudyTables, component: str) -> Figure:
    """The F1 of all predictors together and of the baselines, by how many layers lie between."""
    figure, axes = new_plot("layers between state and prediction", "F1, %")
    rows = [row for row in study.predictions if row.component == component]
    network = means(rows, lambda row: row.distance, lambda row: row.network_f1)
    ((_, style),) = line_styles(["network"])
    axes.plot(*_percentages(dict(sorted(network.items()))), label="network", **style)
    _draw_baselines(axes, rows, lambda row: row.distance)
    count_along(axes)
    legend_above(axes, 2)
    return figure


def _draw_baselines(axes: Axes, rows: Sequence[PredictionQuality], along: Callable[[PredictionQuality], int]) -> None:
    for (name, measure), color in zip(_BASELINES.items(), COLORS[-3:], strict=True):
        line = dict(sorted(means(rows, along, measure).items()))
        axes.plot(*_percentages(line), label=name, color=color, linestyle="--", marker=".")


def _percentages(line: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(line), [100 * value for value in line.values()]
