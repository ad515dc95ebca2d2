"""The directories that sparsecc reads and writes: a model with everything that running it needs."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import filecmp
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsecc.analysis.facts import FILE as STUDY_NAME
from sparsecc.analysis.facts import read_facts
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model
from sparsecc.recipe import read_recipe_document
from sparsecc.session import ops_library_path
from sparsecc.text import DEFAULT_WINDOW, TOKENIZER_NAME

GENAI_CONFIG_NAME = "genai_config.json"
RECIPE_NAME = "recipe.json"
REPORT_NAME = "report.html"
_COMPANION_SUFFIXES = {".json", ".jinja", ".model", ".txt"}
"""Of the files beside a model: its configurations, its tokenizer and its chat template."""
_OPS_LIBRARY_SETTING = ("model", "decoder", "session_options", "custom_ops_library")


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A directory with an ONNX decoder, dense or sparse, as onnxruntime-genai loads it.

    Attributes:
        directory: the folder; everything that the model needs lies in it.
        genai_config: the content of genai_config.json.
    """

    directory: Path
    genai_config: dict[str, Any]

    @property
    def decoder(self) -> dict[str, Any]:
        return dict(self.genai_config["model"]["decoder"])

    @property
    def model_path(self) -> Path:
        filename: str = self.decoder["filename"]
        return self.directory / filename

    @property
    def context_length(self) -> int:
        """The most tokens, prompt and generated, that the model can hold."""
        return int(self.genai_config["model"]["context_length"])

    @property
    def window(self) -> int:
        """How many tokens of a text the model is calibrated and evaluated on at once."""
        return min(DEFAULT_WINDOW, self.context_length)

    @property
    def cache_shape(self) -> dict[str, int]:
        """The key-value cache as :func:`sparsecc.session.run_prompt` takes it: how many heads, and of what size."""
        return {"kv_heads": int(self.decoder["num_key_value_heads"]), "head_size": int(self.decoder["head_size"])}

    @property
    def logits_name(self) -> str:
        """The graph output with the logits [1, S, vocabulary]."""
        return str(self.decoder.get("outputs", {}).get("logits", "logits"))

    @property
    def ops_library(self) -> Path | None:
        """The custom-op library that lies beside a sparse model."""
        name = self.decoder.get("session_options", {}).get("custom_ops_library")
        return self.directory / name if name else None

    @property
    def recipe_document(self) -> dict[str, Any] | None:
        """The recipe as written, or None for a model that sparsecc did not make."""
        path = self.directory / RECIPE_NAME
        return read_recipe_document(path) if path.is_file() else None


def open_artifact(directory: str | os.PathLike[str]) -> Artifact:
    """Check that a directory holds a whole model.

    Raises:
        SparseccError: the directory, its configuration, its weights, its tokenizer or its ops library is missing,
            damaged or not to be trusted.
    """
    directory = Path(directory)
    config_path = directory / GENAI_CONFIG_NAME
    if not directory.is_dir():
        raise SparseccError(f"{directory} is not a directory; make one with `sparsecc compile MODEL -o {directory}`")
    if not config_path.is_file():
        raise SparseccError(f"{directory} holds no {GENAI_CONFIG_NAME}; make it with `sparsecc export` or `compile`")
    try:
        artifact = Artifact(directory, _read_genai_config(config_path))
        files = [artifact.model_path, artifact.ops_library]
        _ = (artifact.context_length, artifact.cache_shape, artifact.logits_name)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SparseccError(f"{config_path} is damaged ({error!r}); export or compile the model again") from error
    for file in files:
        if file is not None and file.parent.resolve() != directory.resolve():
            raise SparseccError(
                f"{config_path} names {file}, outside the model's folder; export or compile the model again"
            )
    if artifact.ops_library is not None:
        _check_ops_library(artifact.ops_library)
    if not (directory / TOKENIZER_NAME).is_file():
        raise SparseccError(f"{directory / TOKENIZER_NAME} is missing; export or compile the model again")
    load_model(artifact.model_path)
    return artifact


def _read_genai_config(path: Path) -> Any:
    """Parse a configuration that may only mean one thing, and name no code but the library that is checked later.

    Where a key is there twice, onnxruntime-genai merges what Python would take the last of.
    """
    config = json.loads(path.read_text("utf-8"), object_pairs_hook=_object_of_unique_keys)
    for place, value in _settings(config):
        if place[-1] == _OPS_LIBRARY_SETTING[-1] and place != _OPS_LIBRARY_SETTING:
            raise SparseccError(f"{path} names a library at {'.'.join(place)}; export or compile the model again")
        if place[-1] == "provider_options" and value:
            raise SparseccError(f"{path} sets provider_options, but sparsecc runs on the CPU; remove them")
    return config


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _settings(value: object, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every member of a JSON document and of what it holds, with the keys that lead there."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        yield (*place, str(key)), inner
        yield from _settings(inner, (*place, str(key)))


def _check_ops_library(path: Path) -> None:
    """A library is code: only the one that this sparsecc was built with is run."""
    ours = ops_library_path()
    if not path.is_file():
        raise SparseccError(f"{path} is missing; copy {ours} there or compile the model again")
    if not filecmp.cmp(path, ours, shallow=False):
        raise SparseccError(f"{path} is not the library of this sparsecc; copy {ours} there if you trust the model")


def copy_companions(artifact: Artifact, directory: Path) -> None:
    """Copy what lies beside a model and would serve another one made from it as well; not its recipe."""
    for file in artifact.directory.iterdir():
        if file.is_file() and file.suffix in _COMPANION_SUFFIXES and file.name != RECIPE_NAME:
            shutil.copy(file, directory)


def is_onnx_directory(directory: Path) -> bool:
    """Whether a directory looks like an exported model, not like a checkpoint."""
    return (directory / GENAI_CONFIG_NAME).is_file()


@contextlib.contextmanager
def staged_directory(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of ``target`` to write into, which becomes ``target`` when the block ends well.

    Whatever goes wrong, ``target`` is untouched, and the sibling and the parents that were made for it are removed.

    Raises:
        SparseccError: ``target`` exists and may not be replaced, cannot be written beside, or the disk is full.
    """
    check_target(target, overwrite=overwrite)
    with _parents_removed_if_empty(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        except OSError as error:
            raise SparseccError(f"cannot make {target}: {error.strerror}; choose another output directory") from error
        try:
            staging.chmod(0o755)
            yield staging
            _replace(target, staging)
        except OSError as error:
            if _is_full(error):
                raise SparseccError(f"the disk is full: {target.parent} has no room for the model") from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def scratch_beside(output: Path) -> Iterator[Path]:
    """A temporary directory beside a file that is to be made, whose parents are made for it.

    When the block ends, the directory is removed, and so are the parents if there is nothing in them.
    """
    with _parents_removed_if_empty(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
            yield Path(scratch)


def _is_full(error: OSError) -> bool:
    """Whether there was no room for what was written. NumPy says so only in words: how much was written of how much."""
    is_short_write = error.errno is None and "requested and" in str(error)
    return is_short_write or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _parents_removed_if_empty(target: Path) -> Iterator[None]:
    """Remove the parents of ``target`` that are missing now and empty when the block ends."""
    missing = list(itertools.takewhile(lambda parent: not os.path.lexists(parent), target.parents))
    try:
        yield
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but an empty directory, or a directory of ours with ``overwrite``.

    Raises:
        SparseccError: ``target`` must stay.
    """
    if target.resolve() == Path.cwd().resolve():
        raise SparseccError("the output cannot be the directory you are in; choose another output directory")
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise SparseccError(f"{target} exists and is not a directory; choose another output directory")
    if not any(target.iterdir()):
        return
    if not _is_ours(target):
        raise SparseccError(f"{target} exists and was not made by sparsecc; choose another output directory")
    if not overwrite:
        raise SparseccError(f"{target} exists already; add --overwrite to replace it")


def _is_ours(directory: Path) -> bool:
    """Whether a directory holds a model or a study that sparsecc made."""
    for read, name in ((read_recipe_document, RECIPE_NAME), (read_facts, STUDY_NAME)):
        with contextlib.suppress(SparseccError):
            read(directory / name)
            return True
    return False


def _replace(target: Path, staging: Path) -> None:
    """Move the old directory aside first: a directory cannot be renamed onto a full one."""
    if not target.exists():
        staging.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    old = target.rename(aside / "old")
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
