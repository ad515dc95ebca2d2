import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from sparsecc.analysis.sparsity_sweep import SCOPES, TARGETS
from sparsecc.analysis.study import analyze
from sparsecc.artifact import Artifact
from sparsecc.command_line import app
from sparsecc.errors import SparseccError
from sparsecc.evaluation import evaluate
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from .decoders import GATED, NEURONS, RELU, VOCABULARY, WIDTH, random_weights, write_decoder

FEW_TOKENS = ("--tokens", "480", "--sampled-tokens", "200", "--evaluation-tokens", "720")


def rows(path: Path, **wanted: str) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[name] == value for name, value in wanted.items())]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["analyze", *(str(argument) for argument in arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["analyze", *(str(argument) for argument in arguments)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (complaint,) = [line for line in result.stderr.splitlines() if line.startswith("sparsecc: ")]
    return complaint


class TestEveryNumberCanBeRecomputed:
    """With numpy alone, from the files of the study."""

    def test_natural_sparsity_and_thresholds_from_the_activations(self, study: Path):
        with h5py.File(study / "activations.h5", "r") as file:
            for layer, component in (("0", "down_input"), ("5", "gate_activation"), ("7", "attention_input")):
                magnitudes = np.abs(file[f"layers/{layer}/{component}"][...].astype(np.float64))
                place = {"layer": layer, "component": component}
                for row in rows(study / "natural_sparsity.csv", **place):
                    assert float(row["share"]) == pytest.approx(np.mean(magnitudes <= float(row["bound"])), abs=1e-6)
                for row in rows(study / "thresholds.csv", **place):
                    expected = np.quantile(magnitudes, float(row["sparsity"]))
                    assert float(row["threshold"]) == pytest.approx(expected, rel=1e-5)

    def test_hot_neurons_from_their_frequencies_and_those_from_the_activations(self, study: Path):
        (row,) = rows(study / "important_neurons.csv", layer="3", component="down_input")
        with h5py.File(study / "activations.h5", "r") as file:
            important = np.abs(file["layers/3/down_input"][...]) > float(row["threshold"])
        with h5py.File(study / "neuron_frequency.h5", "r") as file:
            frequency = file["layers/3/down_input"][...]
        np.testing.assert_allclose(frequency, important.mean(axis=0), atol=1e-3)
        cumulative = np.cumsum(np.sort(frequency.astype(np.float64))[::-1])
        hot = int(np.argmax(cumulative >= 0.8 * cumulative[-1] * (1 - 1e-9))) + 1
        assert int(row["hot_neurons"]) == pytest.approx(hot, abs=1)
        assert float(row["important_share"]) == pytest.approx(0.5, abs=0.001)

    def test_match_rates_from_the_patterns(self, study: Path):
        with h5py.File(study / "patterns.h5", "r") as file:
            dataset = file["layers/2/up"]
            active = np.unpackbits(dataset[...], axis=-1, count=dataset.attrs["neurons"]).astype(bool)
            similarities = file["similarities"][...].tolist()
            token_ids = file["token_ids"][...]
        for row in rows(study / "predictability.csv", layer="2", component="up", positions="all", similarity="0.8"):
            prompt, variant = active[int(row["prompt"])][[0, similarities.index(0.8)]]
            assert float(row["match_rate"]) == pytest.approx(np.mean(prompt == variant))
            overlap = (prompt & variant).sum(axis=1) / (prompt | variant).sum(axis=1)
            assert float(row["intersection_over_union"]) == pytest.approx(overlap.mean())
        assert np.mean(token_ids[:, similarities.index(0.8)] == token_ids[:, 0]) == pytest.approx(0.8)

    def test_dense_perplexity_from_the_model(self, study: Path, dense: Artifact):
        windows = token_windows(shipped_text("evaluation"), load_tokenizer(dense.directory), tokens=768, window=768)
        (row,) = rows(study / "sparsity_sweep.csv", scope="all", target_sparsity="0.0")
        assert float(row["perplexity"]) == pytest.approx(evaluate(dense, windows).perplexity, rel=1e-5)


def test_a_study_of_the_trained_model_is_whole_and_plausible(study: Path):
    facts = json.loads((study / "study.json").read_text())
    assert (facts["layers"], facts["is_gated"], facts["sampled_tokens"]) == (8, True, 512)
    assert facts["parameters"]["down"] == 8 * 1024 * 384
    assert sum(int(row["count"]) for row in rows(study / "weight_magnitudes.csv", kind="down")) == 8 * 1024 * 384
    perplexities = [float(row["perplexity"]) for row in rows(study / "sparsity_sweep.csv", scope="all")]
    assert perplexities[-1] > 1.5 * perplexities[0]
    assert len(rows(study / "sparsity_sweep.csv")) == len(SCOPES) * len(TARGETS)
    exact_zeros = [float(row["share"]) for row in rows(study / "natural_sparsity.csv", bound="0.0")]
    assert max(exact_zeros) < 0.01, "SwiGLU has next to no zeros of its own"
    by_similarity = [
        np.mean(
            [float(row["match_rate"]) for row in rows(study / "predictability.csv", positions="all", similarity=at)]
        )
        for at in ("0.95", "0.85", "0.75", "0.0")
    ]
    assert by_similarity == sorted(by_similarity, reverse=True)
    assert (study / "report.html").is_file()
    assert not list(study.parent.glob(".*"))


def zero_layer(weights: dict[str, np.ndarray]) -> None:
    weights["w_up"] = np.zeros((WIDTH, NEURONS), np.float32)


def poisoned(weights: dict[str, np.ndarray]) -> None:
    weights["w_up"] = weights["w_up"].copy()
    weights["w_up"][2, 3] = np.nan


UNUSUAL = {
    "a layer of zeros": (GATED, zero_layer),
    "NaN": (GATED, poisoned),
    "no gate": (RELU, dict),
    "no gate, a layer of zeros": (RELU, zero_layer),
}


@pytest.mark.parametrize(("text", "change"), UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_models_are_studied_too(tmp_path: Path, text: str, change: Callable[[dict[str, np.ndarray]], object]):
    weights = random_weights()
    change(weights)
    decoder = write_decoder(tmp_path / "decoder", text, weights)
    facts = json.loads(run(decoder.directory, "-o", tmp_path / "study", *FEW_TOKENS, "--json"))
    study = Path(facts["study"])
    assert facts["is_gated"] == (text is GATED)
    (zeros,) = rows(study / "natural_sparsity.csv", component="down_input", bound="0.0")
    perplexities = {row["perplexity"] for row in rows(study / "sparsity_sweep.csv")}
    if change is poisoned:
        assert int(zeros["not_finite"]) == 200
        assert perplexities == {""}
        (weight,) = rows(study / "weight_magnitudes.csv", kind="up", lower="")
        assert weight["count"] == "1"
    else:
        assert all(float(perplexity) > 1 for perplexity in perplexities)
        assert zeros["not_finite"] == "0"
    if change is zero_layer:
        assert float(zeros["share"]) == 1
    assert (study / "report.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder", "study"]


@pytest.mark.slow
def test_a_terminated_study_goes_on_with_what_it_collected(tmp_path: Path):
    weights = random_weights()
    decoder = write_decoder(tmp_path / "decoder", GATED, weights)
    command = [decoder.directory, "-o", tmp_path / "study", "--tokens", 20_480, "--sampled-tokens", 2_000]
    process = subprocess.Popen(
        # Of lower priority than the test, which has to see the fourth part before the last is written.
        ["nice", "-n", "15", sys.executable, "-m", "sparsecc", "analyze", *map(str, command)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    parts = tmp_path / ".study-activations" / "activations"
    while process.poll() is None and len(list(parts.glob("*.h5"))) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate()
    assert process.returncode == 143
    assert "the same command goes on with it" in " ".join(messages.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".study-activations", "decoder"]
    written = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(written) >= 4
    run(*command, "--evaluation-tokens", "720")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder", "study"]
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "study" / "activations").iterdir()}
    assert kept.items() >= written.items()
    assert len(kept) == 20


class TestAMistake:
    @pytest.mark.parametrize("few", [{"tokens": 0}, {"sampled_tokens": 0}])
    def test_no_tokens_at_all(self, decoder: Path, tmp_path: Path, few: dict[str, int]):
        with pytest.raises(SparseccError, match="at least one token"):
            analyze(decoder, tmp_path / "study", **few)
        assert [path.name for path in tmp_path.iterdir()] == ["decoder"]

    @pytest.fixture
    def decoder(self, tmp_path: Path) -> Path:
        return write_decoder(tmp_path / "decoder", GATED, random_weights()).directory

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--sparsity", "1"), "not in (0, 1)"),
            (("--sparsity", "nan"), "not in (0, 1)"),
            (("--evaluation-tokens", "719"), "prompts need 720"),
            (("--text", "nowhere.txt"), "nowhere.txt does not exist"),
            (("--evaluation", "nowhere.txt"), "nowhere.txt does not exist"),
        ],
    )
    def test_is_said_in_one_line_and_leaves_nothing(
        self, decoder: Path, tmp_path: Path, options: tuple[str, ...], message: str
    ):
        assert message in refused(decoder, "-o", tmp_path / "study", *options)
        assert [path.name for path in tmp_path.iterdir()] == ["decoder"]

    def test_a_text_without_prompts(self, decoder: Path, tmp_path: Path):
        (tmp_path / "text.txt").write_text("\n" * 4_000)
        assert "prompts need" in refused(
            decoder, "-o", tmp_path / "study", "--evaluation", tmp_path / "text.txt", *FEW_TOKENS
        )
        assert not (tmp_path / "study").exists()

    def test_an_output_that_is_the_model_or_something_else(self, decoder: Path, tmp_path: Path):
        assert "overlap" in refused(decoder, "-o", decoder, "--overwrite")
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "diary.txt").write_text("precious")
        assert "not made by sparsecc" in refused(decoder, "-o", theirs, "--overwrite")
        assert (theirs / "diary.txt").is_file()

    def test_a_study_is_replaced_only_when_asked(self, decoder: Path, study: Path, tmp_path: Path):
        shutil.copytree(study, tmp_path / "study")
        assert "--overwrite" in refused(decoder, "-o", tmp_path / "study", *FEW_TOKENS)
        run(decoder, "-o", tmp_path / "study", *FEW_TOKENS, "--seed", "9", "--overwrite")
        facts = json.loads((tmp_path / "study" / "study.json").read_text())
        assert (facts["model"], facts["seed"]) == ("decoder", 9)

    def test_a_sparse_model(self, compiled: Callable[[str, float], Artifact], tmp_path: Path):
        assert "is sparse already" in refused(compiled("teal", 0.5).directory, "-o", tmp_path / "study")
        assert list(tmp_path.iterdir()) == []


def test_the_small_decoders_fit_the_tokenizer():
    assert random_weights()["embedding"].shape == (VOCABULARY, WIDTH)
