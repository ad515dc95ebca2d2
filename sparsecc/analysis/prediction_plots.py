"""The plots of how well an early state foretells later layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    """The F1 of each predictor, and of the baselines of the first, by the layer that is predicted."""
    return _f1_plot(study, component, "layer whose active neurons are predicted", lambda row: row.layer)


def f1_by_distance_plot(study: StudyTables, component: str) -> Figure:
    """The F1 of each predictor, and of the baselines of the first, by how many layers lie between."""
    return _f1_plot(study, component, "layers between state and prediction", lambda row: row.distance)


def _f1_plot(study: StudyTables, component: str, label: str, along: Callable[[PredictionQuality], int]) -> Figure:
    figure, axes = new_plot(label, "F1, %")
    rows = [row for row in study.predictions if row.component == component]
    sources = sorted({row.source_layer for row in rows})
    for source, style in line_styles(sources):
        line = {along(row): row.network_f1 for row in rows if row.source_layer == source}
        axes.plot(*_percentages(line), label=f"network, from layer {source}", **style)
    _draw_baselines(axes, [row for row in rows if row.source_layer == sources[0]] if sources else [], along)
    count_along(axes)
    legend_above(axes, 2)
    return figure


def _draw_baselines(axes: Axes, rows: Sequence[PredictionQuality], along: Callable[[PredictionQuality], int]) -> None:
    for (name, measure), color in zip(_BASELINES.items(), COLORS[-3:], strict=True):
        line = {along(row): measure(row) for row in rows}
        axes.plot(*_percentages(line), label=name, color=color, linestyle="--", marker=".")


def _percentages(line: Mapping[int, float]) -> tuple[list[int], list[float]]:
    return list(line), [100 * value for value in line.values()]
