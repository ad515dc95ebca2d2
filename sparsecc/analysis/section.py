"""A part of a study's report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from sparsecc.page import Plot, Table

_LEAST_PERCENT = 0.001


@dataclasses.dataclass(frozen=True)
class Section:
    """A question, what was found, and what shows it.

    Attributes:
        name: in links to it.
        plots: the first says the finding.
        files: what they were made of.
    """

    name: str
    title: str
    finding: str
    plots: Sequence[Plot]
    tables: Sequence[Table]
    files: Sequence[str]


def number(value: float, *, digits: int = 3) -> str:
    """A number for a table, to some significant digits; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}g}"


def percentage(share: float) -> str:
    """A share for a table, in percent."""
    return f"<{_LEAST_PERCENT:g}" if 0 < 100 * share < _LEAST_PERCENT else number(100 * share)
