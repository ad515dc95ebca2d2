"""A search shares its study with other workers, survives its end, and gives a recipe that compiles."""

import json
import signal
import subprocess
import sys
import time

import optuna
import pytest

from sparsecc.text import shipped_text

TRIALS = 4


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Enough for a few windows, so that a candidate takes a second."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(shipped_text("calibration").read_text("utf-8")[:12_000], "utf-8")
    return path


@pytest.fixture
def start(dense, text, tmp_path):
    """Start a worker that searches for the recipe of that name."""

    def worker(name, *options, trials=TRIALS, database="study.sqlite3"):
        command = [sys.executable, "-m", "sparsecc", "search", str(dense.directory), "-o", str(tmp_path / name)]
        command += ["--text", str(text), "--tokens", "512", "--trials", str(trials), "--json"]
        command += ["--storage", f"sqlite:///{tmp_path / database}"] if database else []
        return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return worker


def facts_of(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output)


def finished_trials(tmp_path):
    try:
        study = optuna.load_study(storage=f"sqlite:///{tmp_path / 'study.sqlite3'}", study_name=None)
    except (KeyError, ValueError, OSError, RuntimeError):
        return []
    return [trial for trial in study.get_trials() if trial.state.is_finished()]


def test_two_workers_share_a_study_and_its_recipe_compiles(start, dense, tmp_path):
    workers = [start(name) for name in ("first.json", "second.json")]
    first, second = map(facts_of, workers)
    trials = finished_trials(tmp_path)
    assert TRIALS <= len(trials) <= TRIALS + 1  # the other worker may be in the middle of one
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == len(trials)
    for facts in (first, second):
        assert facts["found"]["kl_divergence"] <= facts["start"]["kl_divergence"] * 1.001
        assert facts["found"]["sparsity"] == pytest.approx(0.5, abs=0.02)
    recipe = json.loads((tmp_path / "first.json").read_text())
    assert recipe["method"] == "teal, searched"
    assert len(recipe["projections"]) == 56

    command = [sys.executable, "-m", "sparsecc", "compile", str(dense.directory), "-o", str(tmp_path / "out")]
    command += ["--recipe", str(tmp_path / "first.json"), "--no-measure", "--json"]
    compiled = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(compiled.stdout)["method"] == "teal, searched"
    kept = json.loads((tmp_path / "out" / "recipe.json").read_text())
    thresholds = [entry["threshold"] for entry in recipe["projections"]]
    assert [entry["threshold"] for entry in kept["projections"]] == pytest.approx(thresholds)


def test_a_search_that_was_killed_goes_on(start, tmp_path):
    worker = start("recipe.json", trials=1000)
    try:
        while len(finished_trials(tmp_path)) < 2:
            assert worker.poll() is None, worker.stderr.read()
            time.sleep(0.2)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    before = finished_trials(tmp_path)
    assert not (tmp_path / "recipe.json").exists()
    facts = facts_of(start("recipe.json", trials=len(before) + 1))
    assert facts["trials"] == len(before) + 1
    after = finished_trials(tmp_path)
    assert [trial.params for trial in after[: len(before)]] == [trial.params for trial in before]

    again = start("recipe.json", "--sparsity", "0.4", "--tokens", "256", "--study", "teal-0.5", "--overwrite")
    assert "of another number of tokens, another window, another sparsity; give" in again.communicate(timeout=300)[1]
    assert again.returncode == 2


@pytest.mark.parametrize(
    ("recipe", "study"),
    [
        ("recipe.json", "recipe.sqlite3"),
        ("recipe.sqlite3", "recipe.sqlite3.sqlite3"),
        ("what? 50%.json", "what? 50%.sqlite3"),
    ],
)
def test_the_study_is_kept_beside_the_recipe(start, tmp_path, recipe, study):
    assert facts_of(start(recipe, trials=1, database=None))["trials"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {recipe, study}
    assert facts_of(start(recipe, "--overwrite", trials=2, database=None))["trials"] == 2
