"""Tables of results: CSV files with a header, one row a dataclass instance, NaN as an empty cell."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from sparsecc.errors import SparseccError

Row = TypeVar("Row")
_CELLS: dict[Any, Any] = {int: int, str: str, float: lambda cell: float(cell) if cell else math.nan}


def write_table(path: Path, row_type: type[Row], rows: Iterable[Row]) -> None:
    """Write rows of a dataclass whose fields are int, float or str. Floats are written so that they read back equal.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # ends lines with \r\n, so that text with either of them is quoted
        writer.writerow(_columns(row_type))
        writer.writerows([_cell(value) for value in vars(row).values()] for row in rows)


def read_table(path: Path, row_type: type[Row]) -> list[Row]:
    """Read what :func:`write_table` wrote.

    Raises:
        SparseccError: the file is missing, has other columns, or holds a cell of another type.
    """
    types = get_type_hints(row_type)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            if columns != _columns(row_type):
                raise ValueError(f"its columns are {', '.join(columns)}")
            return [
                row_type(**{name: _CELLS[types[name]](cell) for name, cell in zip(columns, cells, strict=True)})
                for cells in reader
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise SparseccError(f"{path} is no table of this study ({error}); run `sparsecc analyze` again") from error


def _columns(row_type: type) -> list[str]:
    return [field.name for field in dataclasses.fields(row_type)]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return str(value)
