"""The plots of a compiled model's report."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from sparsecc.benchmark import Speed
from sparsecc.inline_svg import COLORS, count_along, legend_above, line_styles, new_plot
from sparsecc.projections import HEAD
from sparsecc.recipe import ProjectionRecipe


def sparsity_plot(projections: Sequence[ProjectionRecipe]) -> Figure:
    """The share of weight rows that each projection of a layer skips on the calibration text, by layer."""
    figure, axes = new_plot("layer", "weight rows skipped, %")
    of_layers = [entry for entry in projections if entry.kind != HEAD]
    for kind, style in line_styles(list(dict.fromkeys(entry.kind for entry in of_layers))):
        entries = sorted((entry.layer, entry.calibrated_sparsity) for entry in of_layers if entry.kind == kind)
        layers, shares = zip(*entries, strict=True)
        axes.plot(layers, [100 * share for share in shares], label=kind, alpha=0.85, **style)
    axes.set_ylim(0, 100)
    count_along(axes)
    legend_above(axes, 7)
    return figure


def speed_plot(dense: Speed, sparse: Speed) -> Figure:
    """Decode speed of both models with its 10 to 90 % range, and the limit that reading the weights sets."""
    figure, axes = new_plot("decoded tokens/s", "", height=1.9)
    speeds = (dense, sparse)
    rates = [speed.decode_tokens_per_s for speed in speeds]
    ranges = [
        [speed.decode_tokens_per_s - speed.decode_tokens_per_s_p10 for speed in speeds],
        [speed.decode_tokens_per_s_p90 - speed.decode_tokens_per_s for speed in speeds],
    ]
    axes.barh([0, 1], rates, xerr=ranges, color=[COLORS[-1], COLORS[0]], height=0.55, capsize=3)
    limits = [speed.floor_tokens_per_s for speed in speeds]
    axes.plot(limits, [0, 1], "|", color=COLORS[1], markersize=22, markeredgewidth=2.5, label="limit set by memory")
    axes.set_yticks([0, 1], ["dense", "sparse"])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0)
    legend_above(axes, 1)
    return figure
