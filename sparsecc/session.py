"""Open onnxruntime sessions on decoders and feed them prompts. Needs only numpy and onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from sparsecc.errors import runtime_failures

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
OPS_LIBRARY_NAME = ("" if sys.platform == "win32" else "lib") + "sparsecc_ops" + _SUFFIX
_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"

MOST_THREADS = 1_024
"""That may be asked for."""
PIECE_TOKENS = 256
"""How many tokens of a prompt are run at once."""


def ops_library_path() -> Path:
    """The custom-op library to give to ``SessionOptions.register_custom_ops_library``.

    Raises:
        FileNotFoundError: sparsecc was installed without its compiled operators.
    """
    import sparsecc.runtime_ops

    for folder in sparsecc.runtime_ops.__path__:
        library = Path(folder) / OPS_LIBRARY_NAME
        if library.is_file():
            return library
    raise FileNotFoundError(f"{OPS_LIBRARY_NAME} is not installed; install sparsecc with pip")


def open_session(
    model: Path | bytes,
    *,
    data_folder: Path | None = None,
    ops_library: Path | None = None,
    threads: int = 0,
) -> onnxruntime.InferenceSession:
    """A CPU session on a model file, or on a serialized graph whose weights lie in ``data_folder``.

    Without ``ops_library`` the sparse operators run as the model-local functions that the model carries.
    ``threads`` is the size of the intra-op pool; 0 leaves it to onnxruntime. The session spares
    memory at some cost in speed: dense weights are used where the memory map has them, not repacked into copies, and
    buffers are freed after each run.

    Raises:
        SparseccError: onnxruntime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    if data_folder is not None:
        options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(data_folder))
    if ops_library is not None:
        options.register_custom_ops_library(str(ops_library))
    source = str(model) if isinstance(model, Path) else model
    with runtime_failures("onnxruntime cannot load the model"):
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_prompt(
    session: onnxruntime.InferenceSession,
    token_ids: Sequence[int] | NDArray[np.int64],
    outputs: Sequence[str],
    settings: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    /,
    *,
    kv_heads: int,
    head_size: int,
    piece_tokens: int = PIECE_TOKENS,
) -> Iterator[list[NDArray[Any]]]:
    """Run a decoder over a prompt, piece by piece with its key-value cache, and yield the named outputs of each piece.

    Pieces of ``piece_tokens`` bound the memory that hidden states and logits take. Outputs with one row a token are cut
    accordingly.
    ``settings`` are inputs that every piece is given alike, such as thresholds.

    Raises:
        SparseccError: onnxruntime cannot run the model.
    """
    ids = np.asarray(token_ids, np.int64)[None]
    cache = empty_cache(session, kv_heads=kv_heads, head_size=head_size)
    presents = {argument.name.split(".", 1)[-1]: argument.name for argument in session.get_outputs()}
    with runtime_failures("the key-value cache of the model has inputs without outputs"):
        updates = [presents[name.split(".", 1)[-1]] for name in cache]
    for start in range(0, ids.shape[1], piece_tokens):
        inputs = piece_inputs(session, ids[:, start : start + piece_tokens], start)
        with runtime_failures("onnxruntime cannot run the model"):
            results = session.run([*outputs, *updates], {**inputs, **cache, **settings})
        cache = dict(zip(cache, results[len(outputs) :], strict=True))
        yield results[: len(outputs)]


def empty_cache(
    session: onnxruntime.InferenceSession, *, kv_heads: int, head_size: int
) -> dict[str, NDArray[np.float32]]:
    """The inputs of a decoder that hold its key-value cache, before the first token."""
    empty = np.zeros((1, kv_heads, 0, head_size), np.float32)
    return {argument.name: empty for argument in session.get_inputs() if argument.name.startswith("past")}


def piece_inputs(
    session: onnxruntime.InferenceSession, piece: NDArray[np.int64], start: int
) -> dict[str, NDArray[np.int64]]:
    """What a decoder is given for tokens int64 [1, T] of a prompt from position ``start`` on, but for its cache."""
    end = start + piece.shape[1]
    inputs = {
        "input_ids": piece,
        "attention_mask": np.ones((1, end), np.int64),
        "position_ids": np.arange(start, end)[None],
    }
    given = {argument.name for argument in session.get_inputs()}
    return {name: value for name, value in inputs.items() if name in given}
