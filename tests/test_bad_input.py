"""A user's mistake gives one clear line, exit code 2, no traceback and nothing half-written."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import optuna
import pytest
import torch
from typer.testing import CliRunner

from sparsecc.command_line import app
from sparsecc.model_file import load_model, model_sha256, save_model
from sparsecc.recipe import Calibration
from sparsecc.session import OPS_LIBRARY_NAME
from sparsecc.text import shipped_text

from .graphs import recipe_for


@pytest.fixture
def refused(tmp_path):
    """Run a command that must fail, and return its one line of complaint."""

    def run(*arguments):
        before = set(tmp_path.rglob("*"))
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert set(tmp_path.rglob("*")) == before
        lines = result.stderr.strip().splitlines()
        complaints = [line for line in lines if line.startswith("sparsecc: ")]
        assert len(complaints) == 1, result.stderr
        assert "Traceback" not in result.stderr
        return complaints[0]

    return run


@pytest.fixture
def copy_of(tmp_path):
    """A copy of a model directory that a test may damage."""

    def copy(directory):
        target = tmp_path / "copy"
        shutil.copytree(directory, target)
        return target

    return copy


def truncate(path: Path, share: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--method", "r-sparse", "--rank", 129], "choose a rank from 0 to 128"),
        (["--method", "r-sparse", "--rank", -1], "choose a rank from 0 to 128"),
        (["--method", "teal", "--rank", 8], "method teal takes no rank; leave out --rank"),
    ],
)
def test_a_rank_that_does_not_fit(refused, dense, tmp_path, options, complaint):
    options = [*options, "--tokens", 1024, "--no-measure"]
    assert complaint in refused("compile", dense.directory, "-o", tmp_path / "out", *options)


def test_a_missing_checkpoint(refused, tmp_path):
    assert "neither a directory nor" in refused("compile", tmp_path / "nowhere", "-o", tmp_path / "out")


def test_a_hub_id_without_a_network(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "hub" in refused("compile", "someone/some-model", "-o", tmp_path / "out")


@pytest.mark.parametrize("command", ["calibrate", "search"])
def test_a_missing_checkpoint_leaves_no_directory_for_its_output(refused, tmp_path, command):
    assert "neither a directory nor" in refused(command, tmp_path / "nowhere", "-o", tmp_path / "new" / "deep" / "out")


def test_a_directory_that_is_no_model(refused, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "config.json" in refused("compile", tmp_path / "folder", "-o", tmp_path / "out")


def test_a_config_that_is_not_json(refused, checkpoint, copy_of, tmp_path):
    copy = copy_of(checkpoint)
    (copy / "config.json").write_text("{")
    assert "not valid JSON" in refused("compile", copy, "-o", tmp_path / "out")


def test_a_truncated_checkpoint(refused, checkpoint, copy_of, tmp_path):
    copy = copy_of(checkpoint)
    truncate(copy / "model.safetensors")
    assert "cut short" in refused("compile", copy, "-o", tmp_path / "out")


def test_a_checkpoint_without_weights(refused, checkpoint, copy_of, tmp_path):
    copy = copy_of(checkpoint)
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    assert "safetensors" in refused("compile", copy, "-o", tmp_path / "out")


def test_an_architecture_that_cannot_be_exported(refused, checkpoint, copy_of, tmp_path):
    copy = copy_of(checkpoint)
    config = json.loads((copy / "config.json").read_text())
    config.update(architectures=["BloomForCausalLM"], model_type="bloom")
    (copy / "config.json").write_text(json.dumps(config))
    assert "exports this architecture" in refused("export", copy, "-o", tmp_path / "out")


def test_an_onnx_file_with_no_projection_to_rewrite(refused, dense, copy_of, tmp_path):
    copy = copy_of(dense.directory)
    hidden = ir.val("x", ir.DataType.FLOAT, [1])
    node = ir.node("Relu", [hidden], outputs=[ir.val("y", ir.DataType.FLOAT, [1])])
    graph = ir.Graph([hidden], node.outputs, nodes=[node], opset_imports={"": 22})
    ir.save(ir.Model(graph, ir_version=10), copy / "model.onnx")
    assert "no projection" in refused("compile", copy, "-o", tmp_path / "out")


def test_a_model_that_is_sparse_already(refused, compiled, tmp_path):
    assert "sparse already" in refused("compile", compiled("teal", 0.5).directory, "-o", tmp_path / "out")


@pytest.mark.parametrize("sparsity", ["1", "-0.1", "50", "nan"])
def test_sparsity_outside_its_range(refused, checkpoint, tmp_path, sparsity):
    assert "[0, 1)" in refused("compile", checkpoint, "-o", tmp_path / "out", "--sparsity", sparsity)


@pytest.mark.parametrize(("misspelt", "nearest"), [("teel", "teal"), ("teal_greedy", "teal-greedy"), ("Wina", "wina")])
def test_a_method_misspelt(refused, checkpoint, tmp_path, misspelt, nearest):
    for command in ("compile", "search"):
        complaint = refused(command, checkpoint, "-o", tmp_path / "out", "--method", misspelt)
        assert f"did you mean {nearest}?" in complaint
        assert "teal, " in complaint


def test_a_method_misspelt_is_answered_with_those_that_can_be_searched(refused, checkpoint, tmp_path):
    complaint = refused("search", checkpoint, "-o", tmp_path / "out", "--method", "rotated-fishr")
    assert "choose one of teal, " in complaint
    assert "rotated-fisher" not in complaint
    assert "larosa" not in complaint


def test_a_method_like_no_other(refused, checkpoint, tmp_path):
    complaint = refused("compile", checkpoint, "-o", tmp_path / "out", "--method", "xyzzy")
    assert "did you mean" not in complaint
    assert "choose one of best, teal, " in complaint


@pytest.fixture
def recipe_file(dense, tmp_path):
    """A recipe for books-16m in a file of its own, with some entries changed."""

    def write(**changes):
        recipe = recipe_for(load_model(dense.model_path))
        calibration = Calibration("ab" * 32, model_sha256(dense.model_path), 2048, 1024)
        path = tmp_path / "recipe.json"
        document = json.loads(dataclasses.replace(recipe, calibration=calibration).to_json())
        path.write_text(json.dumps({**document, **changes}))
        return path

    return write


def test_a_recipe_of_another_model(refused, dense, recipe_file, tmp_path):
    of_another = {"text_sha256": "ab" * 32, "model_sha256": "cd" * 32, "tokens": 1, "window": 1}
    for calibration in (None, of_another):
        recipe = recipe_file(calibration=calibration)
        assert "recipe of another model" in refused(
            "compile", dense.directory, "-o", tmp_path / "out", "--recipe", recipe
        )


def test_a_recipe_that_is_not_there(refused, dense, tmp_path):
    line = refused("compile", dense.directory, "-o", tmp_path / "out", "--recipe", tmp_path / "recipe.json")
    assert "recipe.json does not exist" in line


def test_a_recipe_that_leaves_its_thresholds_to_a_model(refused, dense, compiled, tmp_path):
    recipe = compiled("wina", 0.5).directory / "recipe.json"
    assert "leaves its thresholds" in refused("compile", dense.directory, "-o", tmp_path / "out", "--recipe", recipe)


@pytest.mark.parametrize("projections", [None, [{}], "x", [{"threshold": "high"}]])
def test_a_recipe_that_is_damaged(refused, dense, recipe_file, tmp_path, projections):
    recipe = recipe_file(projections=projections)
    complaint = refused("compile", dense.directory, "-o", tmp_path / "out", "--recipe", recipe)
    assert "damaged" in complaint
    assert "give a recipe that `sparsecc search` wrote" in complaint


@pytest.mark.parametrize("content", [b"\xff", b"{", b"{}", b'{"format": "sparsecc-recipe", "version": 9}'])
def test_a_file_that_is_no_recipe(refused, dense, tmp_path, content):
    (tmp_path / "recipe.json").write_bytes(content)
    complaint = refused("compile", dense.directory, "-o", tmp_path / "out", "--recipe", tmp_path / "recipe.json")
    assert "give a recipe that `sparsecc search` wrote" in complaint
    assert "compile the model again" not in complaint


def test_a_recipe_with_thresholds_that_do_not_fit(refused, dense, recipe_file, tmp_path):
    projections = json.loads(recipe_file().read_text())["projections"]
    projections[0]["threshold"] = [0.1, 0.2]
    recipe = recipe_file(projections=projections)
    complaint = refused("compile", dense.directory, "-o", tmp_path / "out", "--recipe", recipe, "--no-measure")
    assert "does not fit" in complaint


def test_a_budget_that_no_recipe_of_the_method_meets(refused, dense, tmp_path):
    (tmp_path / "short.txt").write_text(shipped_text("calibration").read_text("utf-8")[:12_000], "utf-8")
    options = ("--method", "ffn-threshold", "--sparsity", "0.95", "--text", tmp_path / "short.txt")
    assert "give a smaller sparsity" in refused("search", dense.directory, "-o", tmp_path / "recipe.json", *options)


def test_a_recipe_that_is_there_already(refused, dense, recipe_file):
    assert "--overwrite" in refused("search", dense.directory, "-o", recipe_file())


def test_a_file_that_is_no_recipe_is_not_replaced(refused, dense, tmp_path):
    (tmp_path / "thesis.json").write_text("{}")
    assert "no recipe" in refused("search", dense.directory, "-o", tmp_path / "thesis.json", "--overwrite")


def test_a_reference_with_another_vocabulary(refused, dense, copy_of):
    copy = copy_of(dense.directory)
    model = load_model(copy / "model.onnx")
    logits = model.graph.outputs[0]
    fewer = ir.val("fewer_logits", ir.DataType.FLOAT, [1, None, 100])
    bounds = [ir.tensor(np.array([bound]), name=f"bound_{index}") for index, bound in enumerate((0, 100, 2))]
    for bound in bounds:
        model.graph.register_initializer(ir.Value(name=bound.name, const_value=bound, type=ir.TensorType(bound.dtype)))
    inputs = [logits, *(model.graph.initializers[bound.name] for bound in bounds)]
    model.graph.append(ir.node("Slice", inputs, outputs=[fewer]))
    model.graph.outputs[0] = fewer
    ir.save(model, copy / "model.onnx")
    config = json.loads((copy / "genai_config.json").read_text())
    config["model"]["decoder"]["outputs"]["logits"] = "fewer_logits"
    (copy / "genai_config.json").write_text(json.dumps(config))
    complaint = refused("eval", dense.directory, "--reference", copy, "--tokens", "64", "--window", "64")
    assert "different vocabularies" in complaint


@pytest.mark.parametrize("text", ["", "Too short."])
def test_a_text_shorter_than_a_window(refused, dense, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    line = refused("compile", dense.directory, "-o", tmp_path / "out", "--calibration", tmp_path / "text.txt")
    assert "fewer than one window" in line
    assert "fewer than one window" in refused("eval", dense.directory, "--text", tmp_path / "text.txt")


def test_a_text_that_is_missing_or_not_text(refused, dense, tmp_path):
    assert "does not exist" in refused("eval", dense.directory, "--text", tmp_path / "nowhere.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused("eval", dense.directory, "--text", tmp_path / "binary.txt")


def test_an_evaluation_text_is_checked_before_the_work(refused, checkpoint, tmp_path):
    line = refused("compile", checkpoint, "-o", tmp_path / "out", "--evaluation", tmp_path / "nowhere.txt")
    assert "nowhere.txt" in line


def test_statistics_of_another_model(refused, dense, statistics, tmp_path, copy_of):
    from sparsecc.calibration_statistics import write_statistics

    write_statistics(statistics, tmp_path / "statistics.h5")
    copy = copy_of(dense.directory)
    weights = np.memmap(copy / "model.onnx.data", np.float32, "r+")
    weights[1000] += 1
    weights.flush()
    line = refused("compile", copy, "-o", tmp_path / "out", "--calibration", tmp_path / "statistics.h5")
    assert "another model" in line


def test_statistics_of_another_text(refused, dense, statistics, tmp_path):
    """Which serve methods that need nothing else, but no method that runs the model on the text."""
    from sparsecc.calibration_statistics import write_statistics

    calibration = dataclasses.replace(statistics.calibration, text_sha256="ab" * 32)
    write_statistics(dataclasses.replace(statistics, calibration=calibration), tmp_path / "statistics.h5")
    given = (dense.directory, "--calibration", tmp_path / "statistics.h5", "--method", "fisher")
    assert "give the text itself" in refused("compile", *given, "-o", tmp_path / "out")


@pytest.mark.parametrize("method", ["best", "cats", "larosa", "r-sparse", "rotated-fisher"])
def test_a_method_whose_thresholds_cannot_be_scaled(refused, dense, tmp_path, method):
    line = refused("search", dense.directory, "-o", tmp_path / "recipe.json", "--method", method)
    assert "search from one of teal, " in line


@pytest.mark.slow
def test_a_recipe_that_lacks_what_weights_were_rewritten_by(refused, dense, compiled, tmp_path):
    recipe = compiled("larosa", 0.5).directory / "recipe.json"
    line = refused("compile", dense.directory, "-o", tmp_path / "out", "--recipe", recipe)
    assert "rewrote weights" in line


@pytest.mark.parametrize(("option", "value"), [("--method", "wina"), ("--sparsity", 0.3), ("--rank", 4)])
def test_a_recipe_beside_what_it_says_itself(refused, dense, tmp_path, option, value):
    given = ("--recipe", tmp_path / "recipe.json", option, value)
    line = refused("compile", dense.directory, "-o", tmp_path / "out", *given)
    assert "a recipe says method, sparsity and rank itself" in line


def test_statistics_beside_a_recipe(refused, dense, tmp_path):
    given = ("--recipe", tmp_path / "recipe.json", "--calibration", tmp_path / "statistics.h5")
    assert "a recipe needs no statistics" in refused("compile", dense.directory, "-o", tmp_path / "out", *given)


@pytest.mark.slow
def test_a_database_that_does_not_answer(refused, dense, tmp_path):
    storage = "postgresql://someone:secret@localhost:1/studies"
    line = refused("search", dense.directory, "-o", tmp_path / "recipe.json", "--storage", storage, "--tokens", 128)
    assert "cannot be opened" in line
    assert "secret" not in line


@pytest.mark.parametrize("method", ["best", "fisher", "larosa", "teal"])
def test_a_model_that_computes_nan(refused, dense, copy_of, tmp_path, method):
    broken = copy_of(dense.directory)
    model = load_model(broken / "model.onnx")
    norm = next(value for value in model.graph.initializers.values() if len(value.const_value.shape) == 1)
    norm.const_value = ir.tensor(np.full(norm.const_value.shape.numpy(), np.nan, np.float32), name=norm.name)
    save_model(model, broken)
    line = refused("compile", broken, "-o", tmp_path / "out", "--method", method, "--tokens", 2048)
    assert "computes NaN or infinity" in line
    assert "check the checkpoint" in line


def test_a_database_that_cannot_be_written(refused, dense, tmp_path):
    optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.sqlite3'}")
    storage = f"sqlite:///file:{tmp_path / 'study.sqlite3'}?mode=ro&uri=true"
    line = refused("search", dense.directory, "-o", tmp_path / "recipe.json", "--storage", storage, "--tokens", 128)
    assert "cannot be opened" in line
    assert "readonly" in line


def test_an_output_that_exists(refused, dense, compiled, copy_of, tmp_path):
    ours = copy_of(compiled("teal", 0.5).directory)
    assert "--overwrite" in refused("compile", dense.directory, "-o", ours)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "diary.txt").write_text("precious")
    assert "not made by sparsecc" in refused("compile", dense.directory, "-o", theirs, "--overwrite")
    assert "not a directory" in refused("compile", dense.directory, "-o", theirs / "diary.txt")


def test_an_output_where_nothing_can_be_made(refused, dense):
    assert "/proc" in refused("compile", dense.directory, "-o", "/proc/sparse")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [("generate", "--prompt", "It was"), ("eval",), ("bench",)])
def test_a_gpu_that_is_not_there(refused, dense, command):
    assert "run with --device cpu" in refused(*command, dense.directory, "--device", "cuda")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("megabytes", [1, 40])
def test_a_full_disk(checkpoint, dense, tmp_path, megabytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this machine mounts no tmpfs")
    try:
        for model in (checkpoint, dense.directory):
            options = ("--method", "teal", "--tokens", "1024", "--no-measure")
            command = ["compile", str(model), "-o", str(disk / "out"), *options]
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 2, result.output
            assert "the disk is full" in result.stderr
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("command", [("eval",), ("bench",), ("inspect",), ("generate", "--prompt", "It was")])
class TestADamagedArtifact:
    def test_data_cut_short(self, refused, compiled, copy_of, command):
        copy = copy_of(compiled("teal", 0.5).directory)
        truncate(copy / "model.onnx.data")
        assert "cut short" in refused(*command, copy)

    def test_data_missing(self, refused, compiled, copy_of, command):
        copy = copy_of(compiled("teal", 0.5).directory)
        (copy / "model.onnx.data").unlink()
        assert "model.onnx.data is missing" in refused(*command, copy)

    def test_ops_library_missing(self, refused, compiled, copy_of, command):
        copy = copy_of(compiled("teal", 0.5).directory)
        (copy / OPS_LIBRARY_NAME).unlink()
        assert f"{OPS_LIBRARY_NAME} is missing" in refused(*command, copy)

    def test_ops_library_damaged(self, refused, compiled, copy_of, command):
        copy = copy_of(compiled("teal", 0.5).directory)
        truncate(copy / OPS_LIBRARY_NAME)
        assert "not the library of this sparsecc" in refused(*command, copy)

    def test_graph_damaged(self, refused, compiled, copy_of, command):
        copy = copy_of(compiled("teal", 0.5).directory)
        truncate(copy / "model.onnx")
        assert "model.onnx" in refused(*command, copy)

    def test_configuration_damaged(self, refused, compiled, copy_of, command):
        copy = copy_of(compiled("teal", 0.5).directory)
        (copy / "genai_config.json").write_text('{"model": 1}')
        assert "genai_config.json is damaged" in refused(*command, copy)

    def test_not_an_artifact(self, refused, tmp_path, command):
        assert "not a directory" in refused(*command, tmp_path / "nowhere")


def test_prompts_that_cannot_be_continued(refused, dense):
    assert "empty" in refused("generate", dense.directory, "--prompt", "")
    assert "context" in refused("generate", dense.directory, "--prompt", "word " * 2000)


def test_more_tokens_than_the_context_holds(refused, dense):
    assert "context" in refused("bench", dense.directory, "--prompt-tokens", "1000", "--new-tokens", "100")
    assert "use windows of 1024 or less" in refused("eval", dense.directory, "--window", "2048")


def test_the_command_without_its_extras_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['typer'] = None; from sparsecc.__main__ import main; main()"
    process = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.strip() == (
        "sparsecc: typer is not installed; the command line needs pip install 'sparsecc[compile]'"
    )
