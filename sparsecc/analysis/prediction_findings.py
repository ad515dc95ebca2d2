"""What was found about foretelling active sets, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsecc.analysis.averages import means
from sparsecc.analysis.prediction import PredictionQuality
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.analysis.wording import listed, percent


def prediction_finding(study: StudyTables, component: str) -> str:
    """How much an early state foretells, and what the baselines find."""
    rows = _told(study, component)
    if not rows:
        return "No predictor could be trained: it takes two windows of text and active neurons to foretell."
    source = min(row.source_layer for row in rows)
    ordered = sorted((row for row in rows if row.source_layer == source), key=lambda row: row.layer)
    near, far = ordered[0], ordered[-1]
    return (
        f"From its state in layer {source}, a small network finds {percent(near.recall)} of the active "
        f"{study.words(component)} of layer {near.layer} and {percent(far.recall)} of layer {far.layer}'s. Always "
        f"taking the hottest neurons finds {percent(near.hot_recall)} and {percent(far.hot_recall)}, the previous "
        f"token's set {percent(near.previous_recall)} and {percent(far.previous_recall)}."
    )


def distance_finding(study: StudyTables, component: str) -> str:
    """What is lost with each layer between the state and what it foretells."""
    rows = _told(study, component)
    recall = means(rows, lambda row: row.distance, lambda row: row.recall)
    near, far = min(recall, default=0), max(recall, default=0)
    if near == far:
        return "Nothing can be said of distances: there is one alone."
    change = 100 * (recall[far] - recall[near])
    return (
        f"At a distance of {far} layer{'s' if far > 1 else ''} the network finds {percent(recall[far])} of the active "
        f"{study.words(component)}, {abs(change):.0f} percentage points "
        f"{'less' if change < 0 else 'more'} than at {near}."
    )


def unbeaten_findings(study: StudyTables) -> str:
    """For which components what costs nothing is the better guess, on average over layers; nothing if for none."""
    source = min((row.source_layer for row in study.predictions), default=0)
    rows = [row for row in study.predictions if row.source_layer == source]
    network = means(rows, lambda row: row.component, _f1)
    baselines = {
        "The hottest neurons are": means(rows, lambda row: row.component, lambda row: row.hot_recall),
        "The previous token's set is": means(rows, lambda row: row.component, lambda row: row.previous_recall),
    }
    sentences = []
    for words, baseline in baselines.items():
        better = [study.words(component) for component in network if baseline[component] > network[component]]
        if better:
            sentences.append(f" {words} a better guess for the {listed(better)}.")
    return "".join(sentences)


def _f1(row: PredictionQuality) -> float:
    """The harmonic mean of the network's recall and precision: what both would be at a matched number of neurons."""
    both = row.recall + row.precision
    return 2 * row.recall * row.precision / both if both else math.nan


def _told(study: StudyTables, component: str) -> Sequence[PredictionQuality]:
    return [row for row in study.predictions if row.component == component and not math.isnan(row.recall)]
