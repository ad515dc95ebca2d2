"""What ``sparsecc bench`` measures and says. Speeds themselves are measured by hand, on a machine that is idle."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from sparsecc.artifact import open_artifact
from sparsecc.benchmark import ROUNDS, benchmark, bytes_per_token
from sparsecc.command_line import app
from sparsecc.device import Device
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model, save_model
from sparsecc.read_bandwidth import ReadBandwidth
from sparsecc.timed_model import timed_model

FAKE_LLAMA_BENCH = f"""#!{sys.executable}
import json
size = {{"model_size": 1000}}
prompt = {{"n_prompt": 8, "n_gen": 0, "samples_ns": [80_000_000], **size}}
print(json.dumps([prompt, {{"n_prompt": 0, "n_gen": 4, "samples_ns": [40_000_000], **size}}]))
"""


@pytest.fixture
def llama_bench(tmp_path):
    file = tmp_path / "llama-bench"
    file.write_text(FAKE_LLAMA_BENCH)
    file.chmod(0o755)
    return file


@pytest.fixture
def gguf(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    return file


@pytest.fixture
def bench(dense):
    def run(*arguments):
        command = ["bench", dense.directory, "--prompt-tokens", 8, "--new-tokens", 4, *arguments]
        return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(argument) for argument in command])

    return run


def test_a_dense_token_reads_every_matrix_once(dense):
    layer = 384 * 384 * 2 + 384 * 128 * 2 + 384 * 1024 * 3
    assert bytes_per_token(dense) == 4 * (8 * layer + 384 * 8192)


def test_a_sparse_token_reads_less_by_the_calibrated_sparsity(dense, compiled):
    head = 4 * 384 * 8192
    sparse = bytes_per_token(compiled("teal", 0.5)) - head
    assert sparse == pytest.approx(0.5 * (bytes_per_token(dense) - head), rel=0.02)


def test_a_sparse_node_that_does_not_say_its_sparsity_is_refused(compiled, tmp_path):
    shutil.copytree(compiled("teal", 0.5).directory, tmp_path / "copy")
    model = load_model(tmp_path / "copy" / "model.onnx")
    for node in model.graph:
        node.metadata_props.pop("calibrated_sparsity", None)
    (tmp_path / "other").mkdir()
    save_model(model, tmp_path / "other")
    (tmp_path / "other" / "model.onnx").replace(tmp_path / "copy" / "model.onnx")
    (tmp_path / "other" / "model.onnx.data").replace(tmp_path / "copy" / "model.onnx.data")
    with pytest.raises(SparseccError, match="does not say its calibrated sparsity"):
        bytes_per_token(open_artifact(tmp_path / "copy"))


def test_read_bandwidth_is_that_of_memory():
    assert 0.5 < ReadBandwidth(2).measure() < 2000


def test_a_model_has_turns_while_it_stays_loaded(dense):
    with timed_model(dense, 2, 8, 4, Device.CPU) as model:
        first, second = model.turn(), model.turn()
    for turn in (first, second):
        assert len(turn.token_seconds) == 4
        assert min(turn.token_seconds) > 0
        assert turn.prefill_seconds > 0
    weights = dense.model_path.with_name("model.onnx.data").stat().st_size
    assert first.resident_bytes is None or first.resident_bytes > 0.5 * weights


def test_a_model_that_cannot_be_loaded_is_said_in_one_line(dense, tmp_path):
    shutil.copytree(dense.directory, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "genai_config.json").read_text())
    config["model"]["type"] = "no such type"
    (tmp_path / "copy" / "genai_config.json").write_text(json.dumps(config))
    with (
        pytest.raises(SparseccError, match="onnxruntime-genai cannot load the model"),
        timed_model(open_artifact(tmp_path / "copy"), 2, 8, 4, Device.CPU),
    ):
        pytest.fail("it was loaded")


def test_a_process_that_dies_is_said_in_one_line(dense):
    with timed_model(dense, 2, 8, 4, Device.CPU) as model:
        model._process.kill()
        with pytest.raises(SparseccError, match="see that there is memory"):
            model.turn()


@pytest.mark.parametrize("loaded_together", [False, True])
def test_models_have_their_turns_in_every_round(dense, llama_bench, gguf, monkeypatch, loaded_together):
    loads = []

    def counted(artifact, *setting):
        loads.append(artifact)
        return timed_model(artifact, *setting)

    monkeypatch.setattr("sparsecc.benchmark.timed_model", counted)
    monkeypatch.setattr("sparsecc.benchmark._fit_in_memory", lambda *_: loaded_together)
    speeds, bandwidth = benchmark([dense], prompt_tokens=8, new_tokens=4, ggufs=[gguf], llama_bench=llama_bench)
    assert len(loads) == (1 if loaded_together else ROUNDS)
    ours, peer = speeds
    assert (ours.artifact, ours.runtime, ours.ratio) == (dense.directory, "onnxruntime-genai", 1)
    assert (peer.artifact, peer.runtime, peer.bytes_per_token) == (gguf, "llama.cpp", 1000)
    assert peer.decode_tokens_per_s == pytest.approx(100)
    assert peer.prefill_tokens_per_s == pytest.approx(100)
    assert peer.ratio == pytest.approx(100 / ours.decode_tokens_per_s)
    assert peer.floor_tokens_per_s == pytest.approx(bandwidth * 1e6)
    assert ours.decode_tokens_per_s_p10 <= ours.decode_tokens_per_s <= ours.decode_tokens_per_s_p90
    assert ours.active_gb_s == pytest.approx(ours.decode_tokens_per_s * ours.bytes_per_token / 1e9)
    assert ours.model_bytes > ours.bytes_per_token


def test_the_table_fits_80_columns_and_nothing_else_is_printed(bench, gguf, llama_bench, tmp_path):
    plot = tmp_path / "speeds.svg"
    result = bench("--gguf", gguf, "--llama-bench", llama_bench, "--plot", plot)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "tokens/s" in result.stdout
    drawn = plot.read_text()
    assert drawn.startswith("<?xml")
    assert "<svg" in drawn


def test_json_has_every_figure(bench, gguf, llama_bench):
    facts = json.loads(bench("--gguf", gguf, "--llama-bench", llama_bench, "--json").stdout)
    assert facts["read_bandwidth_gb_s"] > 0
    ours, peer = facts["results"]
    assert set(ours) == set(peer)
    assert {"floor_tokens_per_s", "prefill_tokens_per_s", "resident_bytes", "model_bytes", "ratio"} < set(ours)
    assert peer["resident_bytes"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--gguf", "nowhere.gguf", "--llama-bench", sys.executable), "nowhere.gguf cannot be read"),
        (("--gguf", __file__, "--llama-bench", sys.executable), "is no GGUF file"),
        (("--gguf", __file__, "--llama-bench", "nowhere"), "nowhere is not an executable file"),
        (("--llama-bench", sys.executable), "give --gguf FILE"),
        (("--plot", "speeds.txt"), "end it in one of .svg, .png, .pdf"),
        (("--plot", "nowhere/speeds.svg"), "nowhere is not a directory"),
        (("--new-tokens", "1016"), "exceed the context"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(bench, monkeypatch, arguments, complaint):
    monkeypatch.setattr("sparsecc.benchmark.ReadBandwidth", SimpleNamespace)
    result = bench(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert complaint in line
