"""Open onnxruntime sessions on decoders and feed them prompts. Needs only numpy and onnxruntime."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
OPS_LIBRARY_NAME = ("" if sys.platform == "win32" else "lib") + "sparsecc_ops" + _SUFFIX
_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_CACHE_PREFIX = "past"


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
    prepack: bool = True,
) -> onnxruntime.InferenceSession:
    """A CPU session on a model file, or on a serialized graph whose weights lie in ``data_folder``.

    Without ``ops_library`` the sparse operators run as the model-local functions that the model carries.
    ``threads`` is the size of the intra-op pool; 0 leaves it to onnxruntime. Without ``prepack`` dense weights are
    used where the memory map has them, which is slower and saves a copy of each.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if data_folder is not None:
        options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(data_folder))
    if ops_library is not None:
        options.register_custom_ops_library(str(ops_library))
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def prompt_inputs(
    session: onnxruntime.InferenceSession, token_ids: Sequence[int], *, kv_heads: int, head_size: int
) -> dict[str, NDArray[np.generic]]:
    """The inputs of a first step: token ids [1, S], what the graph derives from them, and an empty key-value cache."""
    ids = np.asarray(token_ids, np.int64)[None]
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    empty_cache = np.zeros((1, kv_heads, 0, head_size), np.float32)
    names = [argument.name for argument in session.get_inputs()]
    return {name: empty_cache if name.startswith(_CACHE_PREFIX) else given[name] for name in names}
