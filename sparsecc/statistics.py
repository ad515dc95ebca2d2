"""What calibration learns about a model's hidden states, and the HDF5 file that keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

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


def write_statistics(statistics: Statistics, path: Path) -> None:
    """Write an HDF5 file: groups ``hidden_states`` and ``projections`` with one numbered group each.

    The dataset names are the attribute names of the classes above; histograms are compressed. The latest file format
    has checksums: damage to an older one goes unseen, or makes the HDF5 library read on for ever.
    """
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs.update({"format": FORMAT, "version": VERSION, **dataclasses.asdict(statistics.calibration)})
        for kind in ("hidden_states", "projections"):
            file.create_group(kind)
            for index, (name, entry) in enumerate(getattr(statistics, kind).items()):
                group = file.create_group(f"{kind}/{index}")
                group.attrs["name"] = name
                for field in dataclasses.fields(entry):
                    _write_field(group, field.name, getattr(entry, field.name))


def read_statistics(path: Path) -> Statistics:
    """Read what :func:`write_statistics` wrote.

    Raises:
        SparseccError: the file is missing, no statistics file, damaged, or of another version.
    """
    if not path.is_file():
        raise SparseccError(f"{path} does not exist; run `sparsecc calibrate` to make it")
    try:
        with h5py.File(path, "r") as file:
            if (file.attrs.get("format"), file.attrs.get("version")) != (FORMAT, VERSION):
                raise SparseccError(f"{path} is not a statistics file of this version; run `sparsecc calibrate` again")
            return Statistics(
                Calibration(
                    text_sha256=str(file.attrs["text_sha256"]),
                    model_sha256=str(file.attrs["model_sha256"]),
                    tokens=int(file.attrs["tokens"]),
                    window=int(file.attrs["window"]),
                ),
                _read_group(file["hidden_states"], HiddenStateStatistics),
                _read_group(file["projections"], ProjectionStatistics),
            )
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise SparseccError(f"{path} is damaged ({error}); run `sparsecc calibrate` again") from error


Entry = TypeVar("Entry", HiddenStateStatistics, ProjectionStatistics)


def _write_field(group: h5py.Group, name: str, value: object) -> None:
    if isinstance(value, np.ndarray):
        group.create_dataset(name, data=value, compression="gzip", compression_opts=1)
    else:
        group.attrs[name] = value


def _read_group(parent: h5py.Group, kind: type[Entry]) -> dict[str, Entry]:
    entries = {}
    for index in sorted(parent, key=int):
        group = parent[index]
        fields = {
            field.name: group[field.name][...] if field.name in group else group.attrs[field.name]
            for field in dataclasses.fields(kind)
        }
        entries[str(group.attrs["name"])] = kind(**fields)
    return entries
