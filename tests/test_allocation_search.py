"""Workers of a search that share a study, on a model that costs nothing to evaluate."""

import math
import threading
import time
from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from sparsecc import allocation_search
from sparsecc.allocation_search import AllocationSearch, open_study
from sparsecc.errors import SparseccError
from sparsecc.evaluation import Evaluation
from sparsecc.recipe import ProjectionRecipe, Recipe

TRIALS = 6
IDENTITY = {"method": "teal", "target_sparsity": 0.5}
KINDS = ("up", "down")


class Scaled:
    """Stands for a recipe of two projections, whose thresholds are the numbers that they are scaled by."""

    groups = [SimpleNamespace(layer=0, kind=kind) for kind in KINDS]  # noqa: RUF012

    def within_budget(self, scales, sparsity):
        entries = [
            ProjectionRecipe(kind, 0, kind, "teal", sparsity, sparsity, np.array([scale]))
            for kind, scale in zip(KINDS, scales, strict=True)
        ]
        return Recipe("teal", sparsity, tuple(entries))


class Session:
    """Keeps which scales were evaluated; ``before`` is called before each but the first, the method's own recipe."""

    def __init__(self, before=lambda: None):
        self.evaluated = []
        self._before = before
        self._has_start = False

    def evaluate_by_window(self, thresholds):
        if self._has_start:
            self._before()
            self.evaluated.append(tuple(float(thresholds[kind][0]) for kind in KINDS))
        self._has_start = True
        yield self.evaluate(thresholds)

    def evaluate(self, thresholds):
        divergence = 1 + float(np.square(thresholds["up"][0] - 1.5))
        return Evaluation(20.0, 0.5, {}, 64, 64, 1e6, divergence, 0.9)


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path / 'study.sqlite3'}"


def scales_of(trial):
    return tuple(math.exp(trial.params["layer 0"] + trial.params[kind]) for kind in KINDS)


def test_each_candidate_is_tried_once_by_one_of_two_workers(storage):
    """Each is in the middle of its first candidate when the other is, so that both take part."""
    together = threading.Barrier(2, timeout=60)
    sessions, results = [], []

    def work():
        is_first = iter([True])
        session = Session(lambda: together.wait() if next(is_first, False) else None)
        sessions.append(session)
        worker = AllocationSearch(open_study(storage, "search", IDENTITY), Scaled(), session, 0.5)
        results.append(worker.run(TRIALS))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    trials = open_study(storage, "search", IDENTITY).get_trials()
    assert len(results) == 2
    assert all(session.evaluated for session in sessions)
    assert TRIALS <= len(trials) <= TRIALS + 1  # the other worker may be in the middle of one
    evaluated = sorted(scales for session in sessions for scales in session.evaluated)
    np.testing.assert_allclose(evaluated, sorted(map(scales_of, trials)))
    assert [trial.number for trial in trials] == list(range(len(trials)))


class Died(BaseException):
    """Ends a worker where it stands."""


def die():
    raise Died


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_what_a_worker_that_died_was_trying_is_tried_by_another(storage, monkeypatch):
    monkeypatch.setattr(allocation_search, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(allocation_search, "GRACE_SECONDS", 1)
    study = open_study(storage, "search", IDENTITY)
    dying = AllocationSearch(study, Scaled(), Session(die), 0.5)
    trial = study.ask()
    study._storage.record_heartbeat(trial._trial_id)
    with pytest.raises(Died):
        dying._value(trial)
    time.sleep(2.5)  # the database counts whole seconds

    session = Session()
    AllocationSearch(open_study(storage, "search", IDENTITY), Scaled(), session, 0.5).run(1)
    died, retried = study.get_trials()
    assert (died.state, retried.state) == (optuna.trial.TrialState.FAIL, optuna.trial.TrialState.COMPLETE)
    assert retried.params == died.params
    assert session.evaluated == [pytest.approx(scales_of(died))]


def test_a_study_of_another_search_is_refused(storage):
    open_study(storage, "search", IDENTITY)
    with pytest.raises(SparseccError, match="holds a study 'search' of another sparsity; give another"):
        open_study(storage, "search", {**IDENTITY, "target_sparsity": 0.4})
