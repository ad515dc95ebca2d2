"""Every command as a script calls it: one JSON object on standard output, everything else on standard error."""

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sparsecc.command_line import app

COMMANDS = (
    "analyze",
    "export",
    "calibrate",
    "compile",
    "generate",
    "eval",
    "bench",
    "inspect",
    "synthesize",
    "stack",
    "view",
    "search",
)


@pytest.fixture
def run():
    def invoke(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.stderr
        return result.stdout

    return invoke


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(run, command):
    assert f"sparsecc {command}" in " ".join(run(command, "--help").split())


def test_compile_makes_a_complete_directory_and_says_what_was_gained_and_lost(checkpoint, tmp_path):
    output = tmp_path / "sparse"
    options = ("--method", "teal", "--sparsity", "0.4", "--tokens", "2048", "--json")
    command = [sys.executable, "-m", "sparsecc", "compile", str(checkpoint), "-o", str(output), *options]
    process = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    summary = json.loads(process.stdout)
    measured = summary["measured"]
    assert measured["perplexity"]["sparse"] > measured["perplexity"]["dense"] > 1
    assert measured["sparsity"] == pytest.approx(0.4, abs=0.03)
    assert all(speed > 0 for speed in measured["decode_tokens_per_s"].values())
    names = {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json", "recipe.json", "report.html"}
    assert names < {file.name for file in output.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["sparse"]
    recipe = json.loads((output / "recipe.json").read_text())
    assert recipe["method"] == "teal"
    assert recipe["target_sparsity"] == 0.4
    assert recipe["calibration"]["tokens"] == 2048
    assert recipe["versions"]["onnxruntime"]
    assert recipe["measured"] == measured
    assert f"{measured['perplexity']['sparse']:.2f}" in (output / "report.html").read_text()


def test_calibrate_writes_statistics_that_compile_takes(run, dense, tmp_path):
    statistics, output = tmp_path / "statistics.h5", tmp_path / "sparse"
    facts = json.loads(run("calibrate", dense.directory, "-o", statistics, "--tokens", 2048, "--json"))
    assert facts["tokens"] == 2048
    compile_options = ("--calibration", statistics, "--method", "wina", "--no-measure", "--json")
    summary = json.loads(run("compile", dense.directory, "-o", output, *compile_options))
    assert summary["method"] == "wina"
    assert summary["measured"] is None
    recipe = json.loads((output / "recipe.json").read_text())
    assert recipe["calibration"]["text_sha256"] == facts["text_sha256"]


def test_paths_below_a_table_are_whole(run, dense, tmp_path):
    output = tmp_path / ("a directory with a name longer than a terminal is wide, " * 2).strip()
    lines = run("compile", dense.directory, "-o", output, "--method", "teal", "--tokens", 1024).splitlines()
    assert any("perplexity" in line for line in lines)
    assert lines[-3:] == ["teal for a target of 50%", f"model in {output}", f"report in {output / 'report.html'}"]


def test_overwrite_replaces_an_artifact(run, dense, tmp_path):
    for sparsity in (0.25, 0.5):
        options = ("--method", "teal", "--sparsity", sparsity, "--no-measure", "--overwrite", "--json")
        run("compile", dense.directory, "-o", tmp_path / "sparse", *options)
    assert json.loads((tmp_path / "sparse" / "recipe.json").read_text())["target_sparsity"] == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["sparse"]


def test_generate_writes_text(run, compiled):
    options = ("--prompt", "It was a dark night", "--max-new-tokens", 16)
    streamed = run("generate", compiled("teal", 0.5).directory, *options)
    assert len(streamed.split()) > 8
    whole = json.loads(run("generate", compiled("teal", 0.5).directory, *options, "--json"))
    assert whole["text"].strip() == streamed.strip()


def test_sampling_draws_other_text(run, dense):
    options = ("--prompt", "It was", "--max-new-tokens", 24, "--temperature", 1.5)
    assert run("generate", dense.directory, *options) != run("generate", dense.directory, *options)


def test_eval_reports_each_artifact(run, dense, compiled):
    sparse = compiled("teal", 0.5)
    results = json.loads(run("eval", dense.directory, sparse.directory, "--tokens", 2048, "--json"))["results"]
    assert [result["artifact"] for result in results] == [str(dense.directory), str(sparse.directory)]
    assert results[0]["sparsity"] == 0 < results[1]["sparsity"]
    assert results[0]["perplexity"] < results[1]["perplexity"]
    assert results[0]["tokens"] == 2048
    assert all(result["kl_divergence"] is None and result["top1_agreement"] is None for result in results)


def test_eval_compares_with_a_reference(run, dense, compiled):
    options = ("--reference", dense.directory, "--tokens", 1024)
    directories = (compiled("teal", 0.5).directory, dense.directory)
    sparse, same = json.loads(run("eval", *directories, *options, "--json"))["results"]
    assert same["kl_divergence"] == pytest.approx(0, abs=1e-6) != sparse["kl_divergence"]
    assert 0.05 < sparse["kl_divergence"] < 0.5
    assert same["top1_agreement"] == 1 > sparse["top1_agreement"] > 0.5
    assert sparse["bytes_per_token"] == pytest.approx(0.6 * same["bytes_per_token"], rel=0.05)
    table = run("eval", *directories, *options)
    assert "KL, nats" in table
    assert f"{sparse['kl_divergence']:.4f}" in table


def test_eval_takes_one_window_that_every_context_holds(run, dense, tmp_path):
    shorter = tmp_path / "shorter"
    shutil.copytree(dense.directory, shorter)
    config = json.loads((shorter / "genai_config.json").read_text())
    config["model"]["context_length"] = 512
    (shorter / "genai_config.json").write_text(json.dumps(config))
    for directories in ((shorter, dense.directory), (dense.directory, "--reference", shorter)):
        results = json.loads(run("eval", *directories, "--tokens", 512, "--json"))["results"]
        assert {result["window"] for result in results} == {512}
    assert json.loads(run("eval", shorter, "--tokens", 512, "--window", 256, "--json"))["results"][0]["window"] == 256


def test_bench_reports_speeds_ratio_and_floor(run, dense, compiled):
    facts = json.loads(run("bench", dense.directory, compiled("teal", 0.5).directory, "--new-tokens", 4, "--json"))
    assert facts["read_bandwidth_gb_s"] > 0
    first, second = facts["results"]
    assert first["ratio"] == 1
    assert second["ratio"] == pytest.approx(second["decode_tokens_per_s"] / first["decode_tokens_per_s"])
    assert second["bytes_per_token"] < first["bytes_per_token"]
    assert second["prefill_tokens_per_s"] > 0


def test_inspect_lists_every_projection(run, dense, compiled):
    projections = json.loads(run("inspect", compiled("wina", 0.5).directory, "--json"))["projections"]
    assert len(projections) == 56
    assert {entry["kind"] for entry in projections} == {"q", "k", "v", "o", "gate", "up", "down"}
    assert all(entry["method"] == "wina" and entry["target_sparsity"] == 0.5 for entry in projections)
    assert all(entry["threshold"][0] < entry["threshold"][1] for entry in projections)
    assert all(
        entry["method"] is None for entry in json.loads(run("inspect", dense.directory, "--json"))["projections"]
    )
