"""Collect a model's activations on a text into HDF5, part by part, and read them back.

Each part, a window of the text or as much of one as memory should hold, becomes a file of its own, made in memory,
written beside its place and renamed, so that neither an interruption nor a full disk leaves a damaged one: the same
collection started again goes on behind the last part. ``activations.h5`` shows all of them as one (HDF5 virtual
datasets). However large the model and long the text, three buffers of :data:`BUFFER_BYTES` are held: what the model
hands over at once, the part that is filled, and its file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from sparsecc.analysis.components import COMPONENTS, Component, find_components
from sparsecc.artifact import Artifact
from sparsecc.calibration import require_projections
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model, model_sha256
from sparsecc.passes import TapValuesPass
from sparsecc.progress import track
from sparsecc.session import PIECE_TOKENS, open_session, run_prompt
from sparsecc.text import TokenWindows
from sparsecc.versions import library_versions

FILE = "activations.h5"
PARTS = "activations"
FORMAT = "sparsecc-activations"
VERSION = 1
BUFFER_BYTES = 1 << 27
_CHUNK_ROWS = 64
_UNREADABLE = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)
"""What h5py raises on such a file as :func:`_damage` is about."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where activations came from: attributes of ``activations.h5`` and of each of its parts.

    Attributes:
        model_sha256, text_sha256: of the dense ONNX model's files and of the text.
        tokens, window: how much of the text was run, in tokens, and in windows of how many.
        sampled_tokens: of how many of them the activations were kept.
        seed: of the sample.
        versions: of the libraries, as JSON.
    """

    model_sha256: str
    text_sha256: str
    tokens: int
    window: int
    sampled_tokens: int
    seed: int
    versions: str


@dataclasses.dataclass(frozen=True)
class Activations:
    """An open ``activations.h5``.

    Attributes:
        provenance: where they came from.
        components: the layer and name of each component that was collected, in the order of the data.
    """

    provenance: Provenance
    components: Sequence[tuple[int, str]]
    _file: h5py.File

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where in the text the token of each row stands, int64 [rows], ascending.

        Raises:
            SparseccError: the file is damaged.
        """
        with _damage(Path(self._file.filename)):
            positions = np.asarray(self._file["tokens/position"][...], np.int64)
            if positions.shape != (self.provenance.sampled_tokens,) or np.any(np.diff(positions) <= 0):
                raise ValueError("its tokens are in no order")
        return positions

    def of(self, layer: int, component: str) -> NDArray[np.float32]:
        """The activations of a component, float32 [rows, neurons].

        Raises:
            SparseccError: the file is damaged.
        """
        with _damage(Path(self._file.filename)):
            return np.asarray(self._file[_place(layer, component)][...], np.float32)


def collect(
    dense: Artifact, windows: TokenWindows, folder: Path, *, sampled_tokens: int, seed: int = 0, threads: int = 0
) -> Path:
    """Write ``activations.h5`` and its parts into a folder, and return its path.

    Parts that an interrupted collection of the same model, text, sample and versions left there are kept.

    Args:
        sampled_tokens: how many tokens of the text to keep, drawn evenly with ``seed``; all if it has no more.

    Raises:
        SparseccError: the model has no projections, or the disk is too small.
    """
    model = load_model(dense.model_path)
    components = find_components(require_projections(model, dense.model_path))
    positions = sample_positions(windows.tokens, sampled_tokens, seed)
    provenance = Provenance(
        model_sha256=model_sha256(dense.model_path),
        text_sha256=windows.text_sha256,
        tokens=windows.tokens,
        window=windows.window,
        sampled_tokens=len(positions),
        seed=seed,
        versions=json.dumps(library_versions(), sort_keys=True),
    )
    sampled = dict(enumerate(_by_part(positions, windows, _rows_at_once(components))))
    parts = folder / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    for stale in set(parts.glob("*.h5")) - {_part(parts, index) for index in sampled}:
        stale.unlink(missing_ok=True)
    pending = {
        index: rows
        for index, rows in sampled.items()
        if not _is_whole(_part(parts, index), provenance, rows, components)
    }
    if pending:
        _require_room(parts, sum(map(len, pending.values())), components)
        session = _tapped_session(dense, model, components, threads)
        collected = _run(session, windows, pending, components, dense.cache_shape)
        for index, kept in track(collected, "collecting", len(pending)):
            rows = pending[index]
            ids = windows.ids.ravel()[rows]
            _write_part(_part(parts, index), provenance, components, kept, positions=rows, ids=ids)
    for abandoned in folder.rglob("*.partial"):  # by a run that was killed while it wrote
        abandoned.unlink(missing_ok=True)
    return _write_index(folder, provenance, {index: len(rows) for index, rows in sampled.items()}, components)


def sample_positions(tokens: int, sampled_tokens: int, seed: int) -> NDArray[np.int64]:
    """The positions of a text that are sampled, ascending; any token is as likely to be among them as any other."""
    if sampled_tokens >= tokens:
        return np.arange(tokens)
    return np.sort(np.random.default_rng(seed).choice(tokens, sampled_tokens, replace=False))


@contextlib.contextmanager
def open_activations(path: Path) -> Iterator[Activations]:
    """Open what :func:`collect` wrote, seen to have the types and shapes that it should.

    Raises:
        SparseccError: the file or a part of it is missing, damaged, or something else.
    """
    with contextlib.ExitStack() as stack:
        with _damage(path):
            file = stack.enter_context(h5py.File(path, "r"))
            if (file.attrs.get("format"), file.attrs.get("version")) != (FORMAT, VERSION):
                raise ValueError("it is of another format or version")
            provenance = _read_provenance(file)
            layers = sorted(file["layers"], key=int)
            components = [(int(layer), name) for layer in layers for name in _names(file, layer)]
            for layer, name in components:
                _check_dataset(file[_place(layer, name)], provenance.sampled_tokens)
        yield Activations(provenance, components, file)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a file that is damaged, or holds something else, into one line."""
    try:
        yield
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise SparseccError(f"{path} holds no readable activations ({reason}); run `sparsecc analyze` again") from error


def _rows_at_once(components: Sequence[Component]) -> int:
    """Of how many tokens a buffer holds the activations."""
    return max(1, BUFFER_BYTES // (4 * sum(component.neurons for component in components)))


def _by_part(positions: NDArray[np.int64], windows: TokenWindows, most: int) -> Iterator[NDArray[np.int64]]:
    """The positions of each part: those of one window, or ``most`` of them."""
    starts = range(windows.window, windows.tokens, windows.window)
    for of_window in np.split(positions, np.searchsorted(positions, starts)):
        for start in range(0, len(of_window), most):
            yield of_window[start : start + most]


def _tapped_session(
    dense: Artifact, model: ir.Model, components: Sequence[Component], threads: int
) -> onnxruntime.InferenceSession:
    TapValuesPass([str(component.value.name) for component in components])(model)
    return open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=threads)


def _run(
    session: onnxruntime.InferenceSession,
    windows: TokenWindows,
    pending: Mapping[int, NDArray[np.int64]],
    components: Sequence[Component],
    cache_shape: Mapping[str, int],
) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
    """For each part its number and the rows [positions, neurons] of each component. Each window is run once."""
    for window, entries in itertools.groupby(pending.items(), lambda entry: int(entry[1][0]) // windows.window):
        places = {index: rows - window * windows.window for index, rows in entries}
        yield from _run_window(session, windows.ids[window], places, components, cache_shape)


def _run_window(
    session: onnxruntime.InferenceSession,
    ids: NDArray[np.int64],
    parts: Mapping[int, NDArray[np.int64]],
    components: Sequence[Component],
    cache_shape: Mapping[str, int],
) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
    """For each part, given by its ascending places in a window, its number and the rows of each component there.

    Pieces are the same whichever parts are asked for, as their lengths show in the last bits of what is computed.
    """
    names, piece_tokens = [str(component.value.name) for component in components], _rows_at_once(components)
    filled: dict[int, list[NDArray[np.float32]]] = {}
    start = 0
    for piece in run_prompt(session, ids, names, piece_tokens=min(piece_tokens, PIECE_TOKENS), **cache_shape):
        end = start + piece[0].size // components[0].neurons
        for index, places in parts.items():
            begin, until = np.searchsorted(places, (start, end))
            if begin == until:
                continue
            rows = filled.setdefault(index, _empty_rows(components, len(places)))
            for of_component, values in zip(rows, piece, strict=True):
                of_component[begin:until] = values.reshape(-1, of_component.shape[1])[places[begin:until] - start]
            if until == len(places):
                yield index, filled.pop(index)
        if all(places[-1] < end for places in parts.values()):
            return
        start = end


def _empty_rows(components: Sequence[Component], count: int) -> list[NDArray[np.float32]]:
    return [np.empty((count, component.neurons), np.float32) for component in components]


def _write_part(
    path: Path,
    provenance: Provenance,
    components: Sequence[Component],
    rows: Sequence[NDArray[np.float32]],
    *,
    positions: NDArray[np.int64],
    ids: NDArray[np.int64],
) -> None:
    """The file is made in memory first: the HDF5 library crashes when the disk is full."""
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        _write_provenance(file, provenance)
        file["tokens/position"] = positions
        file["tokens/id"] = ids
        for component, values in zip(components, rows, strict=True):
            file.create_dataset(
                _place(component.layer, component.name),
                data=values,
                chunks=(min(_CHUNK_ROWS, len(values)), component.neurons),
                compression="gzip",
                compression_opts=1,
                shuffle=True,
            )
    _write_whole(path, content)


def _write_index(
    folder: Path, provenance: Provenance, rows: Mapping[int, int], components: Sequence[Component]
) -> Path:
    """The file that shows all parts as one, each with as many rows as ``rows`` says of its window.

    Where a part is missing later, its activations read as NaN, which no analysis takes for a number.
    """
    content = io.BytesIO()
    places: dict[str, tuple[tuple[int, ...], type, object]] = {
        "tokens/position": ((), np.int64, -1),
        "tokens/id": ((), np.int64, -1),
    }
    for component in components:
        places[_place(component.layer, component.name)] = ((component.neurons,), np.float32, np.nan)
    with h5py.File(content, "w", libver="latest") as file:
        _write_provenance(file, provenance)
        for place, (shape, dtype, missing) in places.items():
            layout = h5py.VirtualLayout((provenance.sampled_tokens, *shape), dtype)
            start = 0
            for index, count in rows.items():
                source = h5py.VirtualSource(f"{PARTS}/{_part(folder, index).name}", place, (count, *shape), dtype)
                layout[start : start + count] = source
                start += count
            file.create_virtual_dataset(place, layout, fillvalue=missing)
    path = folder / FILE
    _write_whole(path, content)
    return path


def _write_whole(path: Path, content: io.BytesIO) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content.getbuffer())
            os.fsync(file.fileno())  # else a power failure may keep the name and lose the content
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_provenance(file: h5py.File, provenance: Provenance) -> None:
    file.attrs.update({"format": FORMAT, "version": VERSION, **dataclasses.asdict(provenance)})


def _read_provenance(file: h5py.File) -> Provenance:
    values = {}
    for field in dataclasses.fields(Provenance):
        value = file.attrs[field.name]
        values[field.name] = value if isinstance(value, str) else int(value)
    return Provenance(**values)  # type: ignore[arg-type]  # compared as a whole


def _is_whole(
    path: Path, provenance: Provenance, positions: NDArray[np.int64], components: Sequence[Component]
) -> bool:
    """Whether a part is there already, of the same provenance and with every component, readable to its last byte."""
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT or _read_provenance(file) != provenance:
                return False
            for component in components:
                values = file[_place(component.layer, component.name)][...]
                if values.dtype != np.float32 or values.shape != (len(positions), component.neurons):
                    return False
            return bool(np.array_equal(file["tokens/position"][...], positions))
    except _UNREADABLE:
        return False


def _require_room(parts: Path, rows: int, components: Sequence[Component]) -> None:
    needed = rows * sum(component.neurons for component in components) * 4
    if shutil.disk_usage(parts).free < needed:
        raise SparseccError(
            f"the disk is full: {rows:,} tokens' activations need {needed / 1e6:,.1f} MB in {parts.parent.parent}; "
            "sample fewer tokens"
        )


def _check_dataset(dataset: object, rows: int) -> None:
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype != np.float32 or dataset.ndim != 2:
        raise TypeError(f"{getattr(dataset, 'name', dataset)} is no matrix of float32")
    if dataset.shape[0] != rows or dataset.shape[1] == 0:
        raise ValueError(f"{dataset.name} has shape {dataset.shape}")
    for source in dataset.virtual_sources() if dataset.is_virtual else ():
        if not (Path(dataset.file.filename).parent / source.file_name).is_file():
            raise ValueError(f"its part {source.file_name} is missing")


def _names(file: h5py.File, layer: str) -> list[str]:
    return sorted(file["layers"][layer], key=COMPONENTS.index)


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index:05d}.h5"


def _place(layer: int, component: str) -> str:
    return f"layers/{layer}/{component}"
