"""Draw the speeds of several models beside the limits that memory sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from sparsecc.benchmark import Speed
from sparsecc.errors import SparseccError

SUFFIXES = (".svg", ".png", ".pdf")


def check_plot_path(path: Path) -> None:
    """See before anything is measured that a plot can be written.

    Raises:
        SparseccError: the name says no format that can be drawn, or the folder is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SparseccError(f"{path} names no kind of picture; end it in one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise SparseccError(f"{path.parent} is not a directory; make it first")


def plot_speeds(speeds: Sequence[Speed], path: Path) -> None:
    """Write a bar of decode speed for each model, with its 10 to 90 % range, and a mark for its limit."""
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(speeds)), layout="constrained")
    axes = figure.subplots()
    places = range(len(speeds))
    rates = [speed.decode_tokens_per_s for speed in speeds]
    below = [speed.decode_tokens_per_s - speed.decode_tokens_per_s_p10 for speed in speeds]
    above = [speed.decode_tokens_per_s_p90 - speed.decode_tokens_per_s for speed in speeds]
    limits = [speed.floor_tokens_per_s for speed in speeds]
    axes.barh(
        places, rates, xerr=[below, above], color="#4c78a8", ecolor="#222222", capsize=3, label="decode, 10 to 90 %"
    )
    axes.plot(limits, places, "|", color="#e45756", markersize=18, markeredgewidth=2.5, label="limit set by memory")
    axes.set_yticks(places, [f"{speed.artifact.name}\n{speed.runtime}" for speed in speeds])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens/s")
    axes.legend(loc="lower right")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path's suffix says; the same figure gives the same SVG."""
    with matplotlib.rc_context({"svg.hashsalt": "sparsecc"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
