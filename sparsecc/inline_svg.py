"""Draw a plot as SVG that lies inside a page, takes the page's font and is as wide as the page allows."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any, TypeVar

import matplotlib
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Name = TypeVar("Name")
WIDTH, HEIGHT = 4.3, 3.1
"""Inches: narrow, so that labels can be read where the page is as wide as a phone."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
"""Of Okabe and Ito, which people with any colour vision tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def new_plot(x_label: str, y_label: str, *, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """An empty plot with labelled axes, in the style of the reports."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_axisbelow(True)
    return figure, axes


def line_styles(names: Sequence[Name]) -> Iterator[tuple[Name, dict[str, Any]]]:
    """A colour and a marker for each line, so that lines can be told apart in print as well."""
    for name, color, marker in zip(names, cycle(COLORS), cycle(MARKERS), strict=False):
        yield name, {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.4}


def ordered_color(place: int, count: int) -> tuple[float, float, float, float]:
    """The colour of one of ``count`` lines that have an order, as layers do: from dark to light."""
    color: tuple[float, float, float, float] = colormaps["viridis"](0.92 * place / max(count - 1, 1))
    return color


def legend_above(axes: Axes, columns: int) -> None:
    """Name the lines above the plot, where nothing is covered."""
    axes.figure.legend(
        loc="outside upper center", ncols=columns, frameon=False, fontsize=9, columnspacing=1, handlelength=1.5
    )


def count_along(axes: Axes) -> None:
    """Mark whole numbers alone along the horizontal axis."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def inline_svg(figure: Figure, name: str) -> Markup:
    """The ``<svg>`` element of a figure. ``name`` keeps its ids apart from those of others in the page.

    The same figure gives the same text.
    """
    content = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    element = content.getvalue().decode("utf-8")
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    head, rest = element.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    # matplotlib numbers its groups anew in each figure.
    rest = re.sub(r'<g id="[^"]*">', "<g>", rest)
    return Markup(f"{head}>{rest}")
