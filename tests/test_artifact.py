import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsecc.artifact import check_target, is_onnx_directory, open_artifact, staged_directory
from sparsecc.errors import SparseccError
from sparsecc.model_file import save_model
from sparsecc.recipe import Recipe
from sparsecc.session import OPS_LIBRARY_NAME

from .graphs import model_of

CONFIG: dict[str, Any] = {
    "model": {
        "context_length": 512,
        "decoder": {"filename": "model.onnx", "num_key_value_heads": 2, "head_size": 64},
    }
}
OURS = Recipe("dense", 0.0).to_json()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small directory that looks like a dense artifact."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    text = "linear (float[1, s, 32] x) => (float[1, s, 32] y) { y = MatMul(x, w) }"
    save_model(model_of(text, {"w": (32, 32)}), folder)
    write_config(folder, CONFIG)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "recipe.json").write_text(OURS)
    return folder


def write_config(folder: Path, config: object) -> None:
    (folder / "genai_config.json").write_text(json.dumps(config))


def with_decoder(**entries: object) -> dict[str, Any]:
    return {"model": {**CONFIG["model"], "decoder": {**CONFIG["model"]["decoder"], **entries}}}


def siblings(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "model"


class TestStagedDirectory:
    def test_what_was_written_becomes_the_target(self, target: Path):
        with staged_directory(target, overwrite=False) as staging:
            assert staging.parent == target.parent
            assert not target.exists()
            (staging / "sub").mkdir()
            (staging / "sub" / "file").write_text("new")
        assert (target / "sub" / "file").read_text() == "new"
        assert siblings(target) == ["model"]

    def test_the_target_can_be_read_by_others(self, target: Path):
        with staged_directory(target, overwrite=False):
            pass
        assert target.stat().st_mode & 0o777 == 0o755

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SparseccError, PermissionError])
    def test_an_error_leaves_no_target_and_nothing_beside_it(self, target: Path, error: type[BaseException]):
        with pytest.raises(error), staged_directory(target, overwrite=False) as staging:
            (staging / "file").write_text("half")
            raise error("stop")
        assert not target.parent.exists()

    def test_parents_that_were_there_stay(self, target: Path):
        target.parent.mkdir()
        with pytest.raises(RuntimeError), staged_directory(target / "sub" / "model", overwrite=False):
            raise RuntimeError
        assert siblings(target) == []

    def test_parents_of_a_target_that_cannot_be_made_are_removed(self, target: Path):
        with (
            pytest.raises(SparseccError, match="cannot make"),
            staged_directory(target / ("x" * 300) / "model", overwrite=False),
        ):
            pytest.fail("the block ran")
        assert not target.parent.exists()

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_error_leaves_an_older_target_as_it_was(self, target: Path, error: type[BaseException]):
        target.mkdir(parents=True)
        (target / "recipe.json").write_text(OURS)
        with pytest.raises(error), staged_directory(target, overwrite=True) as staging:
            (staging / "recipe.json").write_text("half")
            raise error("stop")
        assert (target / "recipe.json").read_text() == OURS
        assert siblings(target) == ["model"]

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
    def test_a_full_disk_is_said_in_one_line(self, target: Path, code: int):
        with (
            pytest.raises(SparseccError, match="the disk is full") as raised,
            staged_directory(target, overwrite=False),
        ):
            raise OSError(code, os.strerror(code))
        assert "\n" not in str(raised.value)
        assert not target.parent.exists()

    def test_an_empty_directory_is_replaced(self, target: Path):
        target.mkdir(parents=True)
        with staged_directory(target, overwrite=False) as staging:
            (staging / "file").write_text("new")
        assert [path.name for path in target.iterdir()] == ["file"]
        assert siblings(target) == ["model"]

    def test_a_directory_of_ours_is_replaced_whole_with_overwrite(self, target: Path):
        target.mkdir(parents=True)
        (target / "recipe.json").write_text(OURS)
        (target / "old").write_text("old")
        with staged_directory(target, overwrite=True) as staging:
            (staging / "recipe.json").write_text(OURS)
        assert [path.name for path in target.iterdir()] == ["recipe.json"]
        assert siblings(target) == ["model"]

    def test_a_directory_of_ours_is_kept_without_overwrite(self, target: Path):
        target.mkdir(parents=True)
        (target / "recipe.json").write_text(OURS)
        with pytest.raises(SparseccError, match="--overwrite"), staged_directory(target, overwrite=False):
            pytest.fail("the block ran")
        assert siblings(target) == ["model"]

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("recipe", [None, "", "{}", '{"format": "other", "version": 1}', "[" * 100_000])
    def test_a_foreign_directory_is_kept_even_with_overwrite(self, target: Path, recipe: str | None, overwrite: bool):
        target.mkdir(parents=True)
        (target / "thesis.txt").write_text("years of work")
        if recipe is not None:
            (target / "recipe.json").write_text(recipe)
        with (
            pytest.raises(SparseccError, match="choose another"),
            staged_directory(target, overwrite=overwrite),
        ):
            pytest.fail("the block ran")
        assert (target / "thesis.txt").read_text() == "years of work"

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_file_is_kept_even_with_overwrite(self, target: Path, overwrite: bool):
        target.parent.mkdir()
        target.write_text("precious")
        with (
            pytest.raises(SparseccError, match="not a directory"),
            staged_directory(target, overwrite=overwrite),
        ):
            pytest.fail("the block ran")
        assert target.read_text() == "precious"

    def test_a_parent_that_is_a_file_is_refused(self, target: Path):
        target.parent.write_text("a file")
        with pytest.raises(SparseccError, match="cannot make"), staged_directory(target, overwrite=False):
            pytest.fail("the block ran")

    @pytest.mark.parametrize("name", [".", "x" * 300], ids=["this directory", "long name"])
    def test_a_target_that_cannot_be_made_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SparseccError), staged_directory(Path(name), overwrite=False) as staging:
            (staging / "file").write_text("new")
        assert list(tmp_path.iterdir()) == []

    def test_a_link_to_nowhere_is_refused(self, target: Path):
        target.parent.mkdir()
        target.symlink_to("nowhere")
        with pytest.raises(SparseccError), staged_directory(target, overwrite=False):
            pass
        assert target.is_symlink()

    def test_a_target_that_does_not_exist_passes_the_check_alone(self, target: Path):
        check_target(target, overwrite=False)


class TestOpenArtifact:
    def test_a_whole_directory_is_opened(self, directory: Path):
        artifact = open_artifact(directory)
        assert artifact.model_path == directory / "model.onnx"
        assert (artifact.context_length, artifact.window, artifact.logits_name) == (512, 512, "logits")
        assert artifact.ops_library is None
        assert artifact.recipe_document is not None

    def test_a_window_is_no_longer_than_the_protocol_says(self, directory: Path):
        write_config(directory, {"model": {**CONFIG["model"], "context_length": 100_000}})
        assert open_artifact(directory).window == 1024

    def test_a_model_of_others_has_no_recipe(self, directory: Path):
        (directory / "recipe.json").unlink()
        assert open_artifact(directory).recipe_document is None

    def test_an_onnx_directory_is_told_from_a_checkpoint(self, directory: Path, tmp_path: Path):
        assert is_onnx_directory(directory)
        assert not is_onnx_directory(tmp_path)

    @pytest.mark.parametrize(
        "config",
        [
            None,
            [],
            {},
            {"model": None},
            {"model": {}},
            with_decoder(filename=None),
            with_decoder(head_size="big"),
            with_decoder(session_options=[1]),
            with_decoder(session_options={"custom_ops_library": 5}),
            {"model": {**CONFIG["model"], "context_length": None}},
            {"model": {**CONFIG["model"], "decoder": []}},
        ],
        ids=str,
    )
    def test_a_damaged_configuration_is_refused(self, directory: Path, config: object):
        write_config(directory, config)
        assert "or compile the model again" in refusal(directory)

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff\xfe", b'{"model": 1', b"[" * 100_000],
        ids=len,
    )
    def test_a_configuration_that_is_no_json_is_refused(self, directory: Path, content: bytes):
        (directory / "genai_config.json").write_bytes(content)
        assert "or compile the model again" in refusal(directory)

    def test_an_infinite_context_is_refused(self, directory: Path):
        write_config(directory, {"model": {**CONFIG["model"], "context_length": float("inf")}})
        assert "or compile the model again" in refusal(directory)

    @pytest.mark.parametrize(
        "content",
        [
            '{"model": {}, "model": {}}',
            '{"model": {"decoder": {"session_options": {"custom_ops_library": "a", "custom\\u005fops_library": "b"}}}}',
            '{"more": [{"a": 1, "a": 1}]}',
        ],
    )
    def test_a_key_that_is_there_twice_is_refused(self, directory: Path, content: str):
        (directory / "genai_config.json").write_text(content)
        assert "a key twice" in refusal(directory)

    @pytest.mark.parametrize(
        "config",
        [
            {**CONFIG, "custom_ops_library": OPS_LIBRARY_NAME},
            {**CONFIG, "engine": {"decoder": {"session_options": {"custom_ops_library": "evil.so"}}}},
            {"model": {**CONFIG["model"], "encoder": {"session_options": {"custom_ops_library": "evil.so"}}}},
            with_decoder(pipeline=[{"first": {"session_options": {"custom_ops_library": "evil.so"}}}]),
            with_decoder(session_options={"more": {"custom_ops_library": "evil.so"}}),
        ],
        ids=str,
    )
    def test_a_library_in_another_place_is_refused(self, directory: Path, config: object):
        write_config(directory, config)
        assert "names a library at" in refusal(directory)

    @pytest.mark.parametrize(
        "config",
        [
            with_decoder(session_options={"provider_options": [{"cuda": {}}]}),
            with_decoder(pipeline=[{"first": {"session_options": {"provider_options": [{"evil": {}}]}}}]),
            {**CONFIG, "provider_options": {"evil": {"library_path": "evil.so"}}},
        ],
        ids=str,
    )
    def test_other_providers_than_the_cpu_are_refused(self, directory: Path, config: object):
        write_config(directory, config)
        assert "runs on the CPU" in refusal(directory)

    def test_no_provider_options_are_fine(self, directory: Path):
        write_config(directory, with_decoder(session_options={"provider_options": []}))
        open_artifact(directory)

    def test_a_recipe_that_is_no_text_is_refused(self, directory: Path):
        (directory / "recipe.json").write_bytes(b"\xff\xfe")
        with pytest.raises(SparseccError, match="not a readable UTF-8 text"):
            _ = open_artifact(directory).recipe_document
        with pytest.raises(SparseccError, match="not made by sparsecc"):
            check_target(directory, overwrite=True)

    @pytest.mark.parametrize("filename", ["../model.onnx", "/etc/passwd", "sub/model.onnx", ""])
    def test_a_model_outside_the_folder_is_refused(self, directory: Path, filename: str):
        write_config(directory, with_decoder(filename=filename))
        assert "outside the model's folder" in refusal(directory)

    @pytest.mark.parametrize("library", ["../evil.so", "/tmp/evil.so"])
    def test_a_library_outside_the_folder_is_refused(self, directory: Path, library: str):
        write_config(directory, with_decoder(session_options={"custom_ops_library": library}))
        assert "outside the model's folder" in refusal(directory)

    @pytest.mark.parametrize(
        ("damage", "remedy"),
        [
            (lambda folder: (folder / "genai_config.json").unlink(), "sparsecc export"),
            (lambda folder: (folder / "tokenizer.json").unlink(), "compile the model again"),
            (lambda folder: (folder / "model.onnx.data").unlink(), "compile again"),
            (lambda folder: os.truncate(folder / "model.onnx.data", 5), "compile it again"),
            (lambda folder: (folder / "model.onnx").write_bytes(b"garbage"), "compile it again"),
            (
                lambda folder: write_config(
                    folder, with_decoder(session_options={"custom_ops_library": OPS_LIBRARY_NAME})
                ),
                "compile the model again",
            ),
            (
                lambda folder: (folder / "model.onnx").unlink(),
                "again",
            ),
        ],
        ids=["configuration", "tokenizer", "data", "data cut short", "damaged graph", "library", "graph"],
    )
    def test_what_is_missing_is_named_with_a_remedy(
        self, directory: Path, damage: Callable[[Path], object], remedy: str
    ):
        damage(directory)
        assert remedy in refusal(directory)

    @pytest.mark.parametrize("name", ["nowhere", "artifact/model.onnx"])
    def test_what_is_no_directory_is_refused(self, directory: Path, name: str):
        assert "sparsecc compile MODEL -o" in refusal(directory.parent / name)


def refusal(directory: Path) -> str:
    """The one line that says why a directory cannot be opened."""
    with pytest.raises(SparseccError) as raised:
        open_artifact(directory)
    message = str(raised.value)
    assert "\n" not in message
    return message
