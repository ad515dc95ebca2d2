"""Means over the rows of a study's tables, by what the rows have in common."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Row = TypeVar("Row")
Key = TypeVar("Key", bound=Hashable)


def means(rows: Iterable[Row], key: Callable[[Row], Key], value: Callable[[Row], float]) -> dict[Key, float]:
    """The mean of the finite values of all rows with the same key, in the order of the rows; NaN of none."""
    grouped: defaultdict[Key, list[float]] = defaultdict(list)
    for row in rows:
        grouped[key(row)].append(value(row))
    return {group: mean(values) for group, values in grouped.items()}


def mean(values: Iterable[float]) -> float:
    """The mean of the finite ones of some values, NaN of none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
