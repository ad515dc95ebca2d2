"""Pages that need nothing but themselves: one HTML file each, in one look."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from sparsecc.inline_svg import inline_svg


@dataclasses.dataclass(frozen=True)
class Table:
    """Text cells under a row of column names."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot and its caption: first what it shows to be so, if that has not been said, then what is drawn."""

    svg: Markup
    finding: str
    description: str


def drawn(name: str, figure: Figure, finding: str, description: str) -> Plot:
    """A plot for a page in which no other has that name."""
    return Plot(inline_svg(figure, name), finding, description)


def write_page(path: Path, template: str, **content: Any) -> None:
    """Fill a template of ``sparsecc/templates`` and write it. Text is escaped, so that no model's name is markup."""
    environment = Environment(
        loader=PackageLoader("sparsecc"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path.write_text(environment.get_template(template).render(**content), "utf-8")
