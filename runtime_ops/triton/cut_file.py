"""The file in which measured cuts are kept from one process to the next, and which several may write."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

Entry = Mapping[str, int]
"""The fields of a cut, as far as a file can be trusted: names and integers."""


def remembered() -> dict[str, Entry]:
    """All entries of the file by their keys; none where it is not there or says something else."""
    try:
        content = json.loads(_file().read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: entry for key, entry in entries if _is_entry(entry)}


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(value, int) for value in entry.values())


def remember(key: str, entry: Entry) -> None:
    """Add an entry to those that are there by now. A file that cannot be written is only a slower start next time."""
    file = _file()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as directory:
            staged = Path(directory) / file.name
            staged.write_text(json.dumps({**remembered(), key: entry}, indent=1))
            staged.replace(file)


def _file() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "sparsecc" / "gpu-cuts.json"
