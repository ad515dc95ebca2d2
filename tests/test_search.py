"""A search goes on whichever of its workers ends, and gives a recipe that compiles."""

import json
import signal
import socket
import subprocess
import sys
import time

import optuna
import pytest
from optuna.trial import TrialState

from sparsecc.text import shipped_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a text of a few windows, so that a candidate takes half a second."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "short.txt").write_text(shipped_text("calibration").read_text("utf-8")[:12_000], "utf-8")
    return folder


@pytest.fixture(scope="module")
def start(dense, folder):
    """Start a worker that searches for a recipe until there are so many candidates."""

    def worker(recipe, trials, *options):
        command = [sys.executable, "-m", "sparsecc", "search", str(dense.directory), "-o", str(recipe)]
        command += ["--text", str(folder / "short.txt"), "--tokens", "128", "--trials", str(trials), "--json"]
        return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return worker


def storage(folder):
    return f"sqlite:///{folder / 'study.sqlite3'}"


def finished_trials(folder):
    try:
        study = optuna.load_study(storage=storage(folder), study_name=None)
    except (KeyError, ValueError, OSError, RuntimeError):
        return []
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def workers_of(trials):
    return {trial.user_attrs["worker"] for trial in trials}


@pytest.fixture(scope="module")
def killed(start, folder):
    """Two workers that ended without a chance to say so, once each had tried a candidate."""
    workers = [start(folder / name, 1000, "--storage", storage(folder)) for name in ("first.json", "second.json")]
    try:
        deadline = time.monotonic() + 300
        while len(workers_of(finished_trials(folder))) < 2:
            assert time.monotonic() < deadline
            for worker in workers:
                assert worker.poll() is None, worker.stderr.read()
            time.sleep(0.2)
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    assert not list(folder.glob("*.json"))
    return workers, finished_trials(folder)


@pytest.fixture(scope="module")
def found(start, killed, folder):
    """What a third worker says, that tries one candidate more."""
    _, trials = killed
    worker = start(folder / "recipe.json", len(trials) + 1, "--storage", storage(folder))
    output, errors = worker.communicate(timeout=300)
    assert worker.returncode == 0, errors
    return json.loads(output)


def test_two_workers_share_a_study(killed):
    workers, trials = killed
    assert workers_of(trials) == {f"{socket.gethostname()}:{worker.pid}" for worker in workers}
    assert len({trial.number for trial in trials}) == len(trials)


def test_a_search_that_was_killed_goes_on(killed, found, folder):
    _, before = killed
    after = {trial.number: trial for trial in finished_trials(folder)}
    assert found["trials"] == len(after) == len(before) + 1
    assert [after[trial.number] for trial in before] == before
    assert found["found"]["kl_divergence"] <= found["start"]["kl_divergence"] * 1.001
    assert found["found"]["sparsity"] == pytest.approx(0.5, abs=0.02)


def test_its_recipe_compiles(found, dense, folder, tmp_path):
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["measured"]["trials"] == found["trials"]
    assert recipe["method"] == "teal, searched"
    assert len(recipe["projections"]) == 56
    command = [sys.executable, "-m", "sparsecc", "compile", str(dense.directory), "-o", str(tmp_path / "out")]
    command += ["--recipe", str(folder / "recipe.json"), "--no-measure", "--json"]
    compiled = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(compiled.stdout)["method"] == "teal, searched"
    kept = json.loads((tmp_path / "out" / "recipe.json").read_text())
    thresholds = [entry["threshold"] for entry in recipe["projections"]]
    assert [entry["threshold"] for entry in kept["projections"]] == pytest.approx(thresholds)


@pytest.mark.usefixtures("found")
def test_a_study_of_another_kind_is_refused(start, folder):
    options = ("--storage", storage(folder), "--sparsity", "0.4", "--study", "teal-0.5", "--overwrite")
    worker = start(folder / "recipe.json", 1, *options)
    assert "of another sparsity; give" in worker.communicate(timeout=300)[1]
    assert worker.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "study"),
    [
        ("recipe.json", "recipe.sqlite3"),
        ("recipe.sqlite3", "recipe.sqlite3.sqlite3"),
        ("what? 50%.json", "what? 50%.sqlite3"),
    ],
)
def test_the_study_is_kept_beside_the_recipe(start, tmp_path, recipe, study):
    for trials in (1, 2):
        worker = start(tmp_path / recipe, trials, "--overwrite")
        output, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
        assert json.loads(output)["trials"] == trials
        assert {path.name for path in tmp_path.iterdir()} == {recipe, study}
