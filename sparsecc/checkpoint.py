"""Find a Hugging Face checkpoint, on this disk or on the hub, and see that it is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open

from sparsecc.errors import SparseccError
from sparsecc.text import TOKENIZER_NAME

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOKENIZER_FILES = (TOKENIZER_NAME, "tokenizer.model", "spiece.model", "vocab.json", "tiktoken.model")
_WANTED_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_INDEX = "model.safetensors.index.json"
_SECOND_COPIES = "consolidated*"
"""Of the weights, in the layout of their authors' own code: some checkpoints hold both."""


def find_checkpoint(model: str) -> Path:
    """The local directory of a checkpoint given as a directory or as a hub id, downloaded if need be.

    Only safetensors weights are taken: other formats are pickles, which run code when they are read.

    Raises:
        SparseccError: there is no such model, or its configuration or weights are missing or cut short.
    """
    directory = Path(model)
    if not directory.exists() and _HUB_ID.fullmatch(model):
        directory = _download(model)
    if not directory.is_dir():
        raise SparseccError(f"{model} is neither a directory nor a Hugging Face hub id; give one of them")
    architectures(directory)
    _check_weights(directory)
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise SparseccError(f"{directory} holds no tokenizer; copy {TOKENIZER_NAME} of the model there")
    return directory


def architectures(checkpoint: Path) -> list[str]:
    """The classes of transformers that the checkpoint's configuration names; there is at least one.

    Raises:
        SparseccError: there is no readable configuration, or it names none.
    """
    names = _read_json(checkpoint, "config.json").get("architectures")
    if not isinstance(names, list) or not names:
        raise SparseccError(f"{checkpoint / 'config.json'} names no architecture; give a causal language model")
    return [str(name) for name in names]


def parameter_count(checkpoint: Path) -> int:
    """How many numbers the checkpoint's tensors hold."""
    count = 0
    for file in _weight_files(checkpoint):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                size = 1
                for extent in tensors.get_slice(name).get_shape():
                    size *= extent
                count += size
    return count


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_WANTED_FILES), ignore_patterns=_SECOND_COPIES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SparseccError(f"{hub_id} is no directory here, and the Hugging Face hub {_refusal(error)}") from error


def _refusal(error: Exception) -> str:
    if isinstance(error, LocalEntryNotFoundError):
        return "could not be asked; check the path or the network"
    if isinstance(error, HFValidationError | RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        return "has no such model; check the path or the id"
    return f"did not give it: {next(iter(str(error).strip().splitlines()), type(error).__name__)}"


def _weight_files(directory: Path) -> list[Path]:
    """The files that hold the model: those that its index names, else all but second copies."""
    if (directory / _INDEX).is_file():
        weight_map = _read_json(directory, _INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise SparseccError(f"{directory / _INDEX} has no weight map; download the checkpoint again")
        return sorted({directory / Path(str(name)).name for name in weight_map.values()})
    files = set(directory.glob("*.safetensors"))
    if any(file.match("model*") for file in files):
        files -= set(directory.glob(_SECOND_COPIES))
    return sorted(files)


def _check_weights(directory: Path) -> None:
    files = _weight_files(directory)
    if not files:
        raise SparseccError(f"{directory} holds no safetensors weights; convert the checkpoint to safetensors")
    for file in files:
        try:
            with safe_open(file, "numpy"):
                pass
        except FileNotFoundError as error:
            raise SparseccError(f"{file} is missing; download the checkpoint again") from error
        except (SafetensorError, OSError) as error:
            raise SparseccError(f"{file} is cut short or damaged ({error}); download the checkpoint again") from error


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not path.is_file():
        raise SparseccError(f"{directory} is no model: it holds no {name}; give a Hugging Face checkpoint")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SparseccError(f"{path} is not valid JSON ({error}); download the checkpoint again") from error
    if not isinstance(content, dict):
        raise SparseccError(f"{path} is not a JSON object; download the checkpoint again")
    return content
