"""Search for how a model's budget is best shared among layers and kinds of projections."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
import sqlalchemy.engine
import sqlalchemy.exc

from sparsecc.errors import SparseccError
from sparsecc.evaluation import Evaluation
from sparsecc.progress import track
from sparsecc.projections import HEAD
from sparsecc.recipe import Recipe
from sparsecc.scaled_recipe import Group, ScaledRecipe
from sparsecc.threshold_session import Thresholds, ThresholdSession

LARGEST_FACTOR = 2.0
"""How far a layer or a kind may scale its thresholds, up or down, against the others."""
HEARTBEAT_SECONDS = 30
"""How often a worker says that it is alive."""
GRACE_SECONDS = 120
"""How long after its last heartbeat a worker's candidate is given to another."""
_STARTUP_TRIALS = 10
_ATTEMPTS = 4
_SECONDS_BETWEEN_ATTEMPTS = 0.5
_SMALLEST_DIVERGENCE = 1e-9
"""Nats, far below rounding."""
_DATABASE_FAILURES = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)
"""Reading raises the first, writing the second."""
_IN_WORDS = {
    "text_sha256": "text",
    "model_sha256": "model",
    "tokens": "number of calibration tokens",
    "window": "calibration window",
    "target_sparsity": "sparsity",
    "search_tokens": "number of tokens",
    "search_window": "window",
    "thresholds": "number of thresholds",
}
"""What must be the same for all workers, where a person would say it otherwise."""
_FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        recipe: the best recipe.
        found, start: what it does on the search's text, and what the method's own recipe does at the same budget.
        trials: how many candidates all workers tried.
    """

    recipe: Recipe
    found: Evaluation
    start: Evaluation
    trials: int


class AllocationSearch:
    """One worker of a search. All workers that share a study look for one recipe together.

    A candidate scales the thresholds of a method's recipe by a number for each layer and one for each kind of
    projection; all are then scaled by one more number so that the budget is met. Its value is the mean divergence
    from the dense model on a text, relative to that of the method's own recipe at the same budget. One whose value on
    the first windows is worse than most others' had been there is given up.

    The tree-structured Parzen estimator proposes candidates; it keeps nothing in the study but numbers, where the
    samplers of evolution strategies keep pickles, which a hostile database could turn into code.
    """

    def __init__(self, study: optuna.Study, scaled: ScaledRecipe, session: ThresholdSession, sparsity: float) -> None:
        """Evaluate the method's own recipe at the budget.

        Raises:
            SparseccError: the budget cannot be met.
        """
        self._study = study
        self._scaled = scaled
        self._session = session
        self._sparsity = sparsity
        self._start = list(session.evaluate_by_window(_thresholds(self._candidate({}))))

    def run(self, trials: int) -> SearchResult:
        """Try candidates until all workers together have tried so many, and tell what the best is.

        Raises:
            SparseccError: the database fails.
        """
        try:
            for _ in track(self._turns(trials), "searching", max(trials - self._finished(), 0)):
                self._study.optimize(self._value, n_trials=1)
            scales, finished = self._best_scales(), self._finished()
        except _DATABASE_FAILURES as error:
            raise SparseccError(
                f"the study's database failed: {_reason(error)}; start the search again to go on"
            ) from error
        recipe = self._candidate(scales)
        return SearchResult(recipe, self._session.evaluate(_thresholds(recipe)), self._start[-1], finished)

    def _turns(self, trials: int) -> Iterator[None]:
        while self._finished() < trials:
            yield

    def _value(self, trial: optuna.Trial) -> float:
        names = dict.fromkeys(name for group in self._scaled.groups for name in _scale_names(group))
        bound = math.log(LARGEST_FACTOR)
        trial.set_user_attr("worker", f"{socket.gethostname()}:{os.getpid()}")
        scales = {name: trial.suggest_float(name, -bound, bound) for name in names}
        value = math.inf
        try:
            thresholds = _thresholds(self._candidate(scales))
            seen_by_window = self._session.evaluate_by_window(thresholds)
            for step, (seen, start) in enumerate(zip(seen_by_window, self._start, strict=True)):
                value = _divergence(seen) / _divergence(start)
                trial.report(value, step)
                if trial.should_prune():
                    raise optuna.TrialPruned
        except SparseccError as error:  # no finite perplexity, or no such budget
            raise optuna.TrialPruned from error
        return value

    def _candidate(self, scales: Mapping[str, float]) -> Recipe:
        """The recipe for logarithms of what layers and kinds scale their thresholds by; 0 where they say nothing."""
        factors = [
            math.exp(sum(scales.get(name, 0.0) for name in _scale_names(group))) for group in self._scaled.groups
        ]
        return self._scaled.within_budget(factors, self._sparsity)

    def _best_scales(self) -> dict[str, float]:
        completed = self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        best = min(completed, key=lambda trial: trial.value or 0.0, default=None)
        return dict(best.params) if best is not None and (best.value or 0.0) < 1 else {}

    def _finished(self) -> int:
        return len(self._study.get_trials(deepcopy=False, states=_FINISHED))


def _scale_names(group: Group) -> tuple[str, ...]:
    """What scales a group's thresholds: its layer and its kind; the head is in no layer."""
    return (group.kind,) if group.kind == HEAD else (f"layer {group.layer}", group.kind)


def _thresholds(recipe: Recipe) -> Thresholds:
    return {entry.name: entry.threshold for entry in recipe.projections}


def _divergence(seen: Evaluation) -> float:
    return max(seen.kl_divergence or 0.0, _SMALLEST_DIVERGENCE)


def open_study(storage: str, name: str, identity: Mapping[str, Any]) -> optuna.Study:
    """A study in any database that Optuna supports, made if it is not there, else continued.

    A candidate whose worker died is tried again by another one.

    Args:
        storage: the database's URL, such as ``sqlite:///search.sqlite3``.
        name: the study's.
        identity: what must be the same for all workers of a study, in JSON values.

    Raises:
        SparseccError: the database cannot be opened, or holds a study of that name and another identity.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # below are tracebacks of interrupted candidates
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are, since 2021
    study = _open_database(storage, name, identity)
    known = _identity(study)
    if known != identity:
        differing = sorted(key for key in {*identity, *known} if identity.get(key) != known.get(key))
        told = ", ".join(f"another {_IN_WORDS.get(key, key)}" for key in differing)
        raise SparseccError(
            f"{_without_password(storage)} holds a study {name!r} of {told}; give another --study or --storage"
        )
    return study


def _identity(study: optuna.Study) -> dict[str, Any]:
    """What the worker that made the study wrote just after."""
    for _ in range(_ATTEMPTS):
        if "identity" in study.user_attrs:
            break
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
    return dict(study.user_attrs.get("identity", {}))


def _without_password(storage: str) -> str:
    try:
        return sqlalchemy.engine.make_url(storage).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return storage


def _reason(error: Exception) -> str:
    """What is wrong, in one line; of what could not be written only the cause says so."""
    told = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    return str(told or error).strip().splitlines()[0]


def _open_database(storage: str, name: str, identity: Mapping[str, Any]) -> optuna.Study:
    """Two workers that make the tables of a new database at once hinder each other, so one failure is not the end."""
    for attempt in range(_ATTEMPTS):
        try:
            return _create_or_load(storage, name, identity)
        except (*_DATABASE_FAILURES, ImportError, ValueError, RuntimeError) as error:
            if attempt == _ATTEMPTS - 1 or isinstance(error, ImportError | ValueError):
                raise SparseccError(
                    f"{_without_password(storage)} cannot be opened as Optuna's storage: {_reason(error)}; "
                    "give another --storage"
                ) from error
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
    raise AssertionError


def _create_or_load(storage: str, name: str, identity: Mapping[str, Any]) -> optuna.Study:
    """Only one worker makes the study, and says what it is."""
    database = optuna.storages.RDBStorage(
        storage,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
    )
    sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=_STARTUP_TRIALS)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS)
    try:
        study = optuna.create_study(storage=database, study_name=name, sampler=sampler, pruner=pruner)
    except optuna.exceptions.DuplicatedStudyError:
        return optuna.load_study(storage=database, study_name=name, sampler=sampler, pruner=pruner)
    study.set_user_attr("identity", dict(identity))
    return study
