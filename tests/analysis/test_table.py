import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.analysis.table import read_table, write_table
from sparsecc.errors import SparseccError


@dataclasses.dataclass(frozen=True)
class Entry:
    name: str
    count: int
    share: float


ENTRIES = st.builds(Entry, st.text(st.characters(codec="utf-8")), st.integers(), st.floats())


@settings(deadline=None)
@given(rows=st.lists(ENTRIES, max_size=5))
def test_what_is_written_reads_back_equal(rows: list[Entry], tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("tables") / "entries.csv"
    write_table(path, Entry, rows)
    found = read_table(path, Entry)
    assert [repr(entry) for entry in found] == [repr(entry) for entry in rows]


def test_nan_is_an_empty_cell(tmp_path: Path):
    write_table(tmp_path / "entries.csv", Entry, [Entry("a", 1, math.nan)])
    assert (tmp_path / "entries.csv").read_text() == "name,count,share\na,1,\n"


@pytest.mark.parametrize(
    "content",
    ["", "name,count\n", "name,count,share\na,one,0.5\n", "name,count,share\na,1\n", b"\xff\xfe"],
    ids=["empty", "other columns", "a word for a number", "a missing cell", "no text"],
)
def test_other_files_are_refused(tmp_path: Path, content: str | bytes):
    path = tmp_path / "entries.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SparseccError, match="no table of this study"):
        read_table(path, Entry)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(SparseccError, match="run `sparsecc analyze` again"):
        read_table(tmp_path / "nowhere.csv", Entry)
