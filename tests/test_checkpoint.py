import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.numpy import save_file

from sparsecc.checkpoint import find_checkpoint, parameter_count
from sparsecc.errors import SparseccError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint in two parts of 6 and 4 numbers, without an index."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"b": np.zeros(4, np.float32)}, tmp_path / "model-2.safetensors")
    return tmp_path


def write_index(directory: Path, *files: str) -> None:
    weight_map = {f"tensor_{index}": file for index, file in enumerate(files)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_without_an_index_all_files_count(directory: Path):
    assert find_checkpoint(str(directory)) == directory
    assert parameter_count(directory) == 10


def test_a_checkpoint_without_a_tokenizer_is_refused(directory: Path):
    (directory / "tokenizer.json").unlink()
    with pytest.raises(SparseccError, match="no tokenizer"):
        find_checkpoint(str(directory))


def test_a_second_copy_does_not_count(directory: Path):
    (directory / "consolidated.00.safetensors").write_bytes(b"cut short")
    assert find_checkpoint(str(directory)) == directory
    assert parameter_count(directory) == 10


def test_a_copy_that_is_the_only_one_counts(directory: Path):
    for file in directory.glob("model*"):
        file.rename(directory / file.name.replace("model", "consolidated"))
    assert find_checkpoint(str(directory)) == directory
    assert parameter_count(directory) == 10


def test_with_an_index_the_files_that_it_names_count(directory: Path):
    write_index(directory, "model-2.safetensors", "model-2.safetensors")
    (directory / "model-1.safetensors").write_bytes(b"cut short")
    assert find_checkpoint(str(directory)) == directory
    assert parameter_count(directory) == 4


@pytest.mark.parametrize(
    ("files", "complaint"),
    [(["model-1.safetensors", "model-3.safetensors"], "model-3.safetensors is missing"), ([], "holds no safetensors")],
)
def test_an_index_that_is_not_served_is_refused(directory: Path, files: list[str], complaint: str):
    write_index(directory, *files)
    with pytest.raises(SparseccError, match=complaint):
        find_checkpoint(str(directory))


def test_second_copies_are_not_downloaded(directory: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {}

    def download(hub_id: str, **options: object) -> str:
        asked.update(options, hub_id=hub_id)
        return str(directory)

    monkeypatch.setattr("sparsecc.checkpoint.snapshot_download", download)
    assert find_checkpoint("someone/some-model") == directory
    assert asked["hub_id"] == "someone/some-model"
    assert asked["ignore_patterns"] == "consolidated*"


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (LocalEntryNotFoundError("no network\nat all"), "could not be asked"),
        (RepositoryNotFoundError("404\nnot found", response=Mock()), "has no such model"),
        (HFValidationError("bad id"), "has no such model"),
        (GatedRepoError("accept the license\nfirst", response=Mock()), "did not give it: accept the license"),
        (OSError(), "did not give it: OSError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_path_that_looks_like_a_hub_id_is_told_to_be_neither(
    monkeypatch: pytest.MonkeyPatch, error: Exception, complaint: str
):
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("sparsecc.checkpoint.snapshot_download", download)
    with pytest.raises(SparseccError, match="models/nowhere is no directory here, and the Hugging Face hub") as raised:
        find_checkpoint("models/nowhere")
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)
