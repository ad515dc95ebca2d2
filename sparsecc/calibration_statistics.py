"""What calibration learns about a model's hidden states, and the HDF5 file that keeps it."""

from __future__ import annotations

import dataclasses
import functools
import io
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc import histogram
from sparsecc.errors import SparseccError
from sparsecc.projections import Projection
from sparsecc.recipe import Calibration

FORMAT = "sparsecc-statistics"
VERSION = 1
MAX_CHANNELS = 1 << 20
"""More than any model has; a file that claims more is not read."""
MAX_COUNT = 1 << 62
"""So that the counts of a histogram sum to an int64."""


@dataclasses.dataclass
class HiddenStateStatistics:
    """Running statistics of one hidden state [rows, K] that projections read.

    Attributes:
        rows: tokens seen.
        magnitudes: int64 [histogram.BINS], the histogram of abs(x) over all tokens and channels.
        channel_sum, channel_square_sum: float64 [K], the sums of x and of x squared over tokens.
    """

    rows: int
    magnitudes: NDArray[np.int64]
    channel_sum: NDArray[np.float64]
    channel_square_sum: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: int) -> HiddenStateStatistics:
        return cls(0, np.zeros(histogram.BINS, np.int64), np.zeros(channels), np.zeros(channels))

    def add(self, hidden: NDArray[np.float32], magnitudes: NDArray[np.float32]) -> None:
        """Take in hidden [rows, K] and its absolute values."""
        self.rows += hidden.shape[0]
        self.magnitudes += histogram.bin_counts(magnitudes)
        self.channel_sum += hidden.sum(axis=0, dtype=np.float64)
        self.channel_square_sum += np.square(hidden, dtype=np.float64).sum(axis=0)

    @property
    def channels(self) -> int:
        return int(self.channel_sum.size)

    @property
    def mean(self) -> NDArray[np.float64]:
        """float64 [K]."""
        return self.channel_sum / max(self.rows, 1)

    @property
    def second_moment(self) -> NDArray[np.float64]:
        """float64 [K], the mean of x squared."""
        return self.channel_square_sum / max(self.rows, 1)


@dataclasses.dataclass
class ProjectionStatistics:
    """Running statistics of one projection.

    Attributes:
        hidden_state: the name of the hidden state it reads.
        row_norms: float32 [K], the Euclidean norm of each weight row.
        weighted_magnitudes: int64 [histogram.BINS], the histogram of abs(x_k) * row_norms[k].
    """

    hidden_state: str
    row_norms: NDArray[np.float32]
    weighted_magnitudes: NDArray[np.int64]

    @classmethod
    def empty(cls, projection: Projection) -> ProjectionStatistics:
        weight = projection.weight.const_value
        assert weight is not None
        norms = np.linalg.norm(weight.numpy(), axis=1).astype(np.float32)
        if isinstance(weight, ir.ExternalTensor):
            weight.release()  # else the whole model stays mapped, and counts as this process's memory
        return cls(str(projection.input.name), norms, np.zeros(histogram.BINS, np.int64))

    def add(self, magnitudes: NDArray[np.float32]) -> None:
        """Take in abs(hidden) [rows, K]."""
        self.weighted_magnitudes += histogram.bin_counts(magnitudes * self.row_norms)


@dataclasses.dataclass
class Statistics:
    """All that calibration learned about a model, by the names of hidden states and projections."""

    calibration: Calibration
    hidden_states: Mapping[str, HiddenStateStatistics]
    projections: Mapping[str, ProjectionStatistics]


class StatisticsOnDemand:
    """Statistics that are gathered when a method first reads them: some methods run the model themselves instead."""

    def __init__(self, calibration: Calibration, gather: Callable[[], Statistics]) -> None:
        self.calibration = calibration
        self._gather = gather

    @functools.cached_property
    def _gathered(self) -> Statistics:
        return self._gather()

    @property
    def hidden_states(self) -> Mapping[str, HiddenStateStatistics]:
        return self._gathered.hidden_states

    @property
    def projections(self) -> Mapping[str, ProjectionStatistics]:
        return self._gathered.projections


def write_statistics(statistics: Statistics, path: Path) -> None:
    """Write an HDF5 file: groups ``hidden_states`` and ``projections`` with one numbered group each.

    The dataset names are the attribute names of the classes above; histograms are compressed. The latest file format
    has checksums: damage to an older one goes unseen, or makes the HDF5 library read on for ever. The file is made in
    memory first: the library crashes when the disk is full.
    """
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        file.attrs.update({"format": FORMAT, "version": VERSION, **dataclasses.asdict(statistics.calibration)})
        for kind in ("hidden_states", "projections"):
            file.create_group(kind)
            for index, (name, entry) in enumerate(getattr(statistics, kind).items()):
                group = file.create_group(f"{kind}/{index}")
                group.attrs["name"] = name
                for field in dataclasses.fields(entry):
                    _write_field(group, field.name, getattr(entry, field.name))
    path.write_bytes(content.getbuffer())


def read_statistics(path: Path) -> Statistics:
    """Read what :func:`write_statistics` wrote, no array before its type and shape are seen to be right.

    Raises:
        SparseccError: the file is missing, no statistics file, damaged, or of another version.
    """
    if not path.is_file():
        raise SparseccError(f"{path} does not exist; run `sparsecc calibrate` to make it")
    try:
        with h5py.File(path, "r") as file:
            if (file.attrs.get("format"), file.attrs.get("version")) != (FORMAT, VERSION):
                raise SparseccError(f"{path} is not a statistics file of this version; run `sparsecc calibrate` again")
            calibration = Calibration(
                text_sha256=_text(file, "text_sha256"),
                model_sha256=_text(file, "model_sha256"),
                tokens=operator.index(file.attrs["tokens"]),
                window=operator.index(file.attrs["window"]),
            )
            hidden_states = _read_entries(file["hidden_states"], _read_hidden_state)
            projections = _read_entries(file["projections"], lambda group: _read_projection(group, hidden_states))
            return Statistics(calibration, hidden_states, projections)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SparseccError(f"{path} is damaged ({reason}); run `sparsecc calibrate` again") from error


Entry = TypeVar("Entry", HiddenStateStatistics, ProjectionStatistics)


def _write_field(group: h5py.Group, name: str, value: object) -> None:
    if isinstance(value, np.ndarray):
        group.create_dataset(name, data=value, compression="gzip", compression_opts=1)
    else:
        group.attrs[name] = value


def _read_entries(parent: h5py.Group, read: Callable[[h5py.Group], Entry]) -> dict[str, Entry]:
    if not isinstance(parent, h5py.Group):
        raise TypeError(f"{parent.name} is no group")
    entries: dict[str, Entry] = {}
    for index in sorted(parent, key=int):
        name = _text(parent[index], "name")
        if name in entries:
            raise ValueError(f"two entries have the name {name!r}")
        entries[name] = read(parent[index])
    return entries


def _read_hidden_state(group: h5py.Group) -> HiddenStateStatistics:
    channel_sum = _read_vector(group, "channel_sum", np.float64, lowest=-np.inf)
    rows = operator.index(group.attrs["rows"])
    if rows <= 0:
        raise ValueError(f"{group.name} has {rows} rows")
    return HiddenStateStatistics(
        rows=rows,
        magnitudes=_read_histogram(group, "magnitudes"),
        channel_sum=channel_sum,
        channel_square_sum=_read_vector(group, "channel_square_sum", np.float64, channel_sum.size),
    )


def _read_projection(group: h5py.Group, hidden_states: Mapping[str, HiddenStateStatistics]) -> ProjectionStatistics:
    hidden_state = _text(group, "hidden_state")
    channels = hidden_states[hidden_state].channels
    return ProjectionStatistics(
        hidden_state=hidden_state,
        row_norms=_read_vector(group, "row_norms", np.float32, channels),
        weighted_magnitudes=_read_histogram(group, "weighted_magnitudes"),
    )


def _read_histogram(group: h5py.Group, name: str) -> NDArray[np.int64]:
    counts = _read_vector(group, name, np.int64, histogram.BINS)
    if not 0 < counts.sum(dtype=np.float64) < MAX_COUNT:
        raise ValueError(f"{group.name}/{name} counts nothing or too much")
    return counts


def _read_vector(
    group: h5py.Group, name: str, kind: type[np.generic], length: int | None = None, *, lowest: float = 0
) -> NDArray[Any]:
    """A finite vector, of any length in reason where none is given."""
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype != kind or dataset.ndim != 1:
        raise TypeError(f"{group.name}/{name} is no vector of {kind.__name__}")
    if not 0 < dataset.size <= MAX_CHANNELS or length not in (None, dataset.size):
        raise ValueError(f"{group.name}/{name} has {dataset.size} entries")
    vector: NDArray[Any] = dataset[...]
    if not np.isfinite(vector).all() or vector.min() < lowest:
        raise ValueError(f"{group.name}/{name} has entries out of range")
    return vector


def _text(group: h5py.Group, name: str) -> str:
    text = group.attrs[name]
    if not isinstance(text, str):
        raise TypeError(f"{name} is no text")
    return text
