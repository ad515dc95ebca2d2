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
    sentence = (
        f"From its state in layer {source}, a small network foretells the active {study.words(component)} of layer "
        f"{near.layer} with an F1 of {percent(near.network_f1)} and layer {far.layer}'s with "
        f"{percent(far.network_f1)}. Always taking the hottest neurons reaches {percent(near.hot_f1)} and "
        f"{percent(far.hot_f1)}"
    )
    if math.isnan(near.previous_f1) or math.isnan(far.previous_f1):
        return f"{sentence}."
    return f"{sentence}, the previous token's set {percent(near.previous_f1)} and {percent(far.previous_f1)}."


def distance_finding(study: StudyTables, component: str) -> str:
    """What is lost with each layer between the state and what it foretells."""
    rows = _told(study, component)
    f1 = means(rows, lambda row: row.distance, lambda row: row.network_f1)
    near, far = min(f1, default=0), max(f1, default=0)
    if near == far:
        return "Nothing can be said of distances: there is one alone."
    change = 100 * (f1[far] - f1[near])
    return (
        f"At a distance of {far} layer{'s' if far > 1 else ''} the network foretells the active "
        f"{study.words(component)} with an F1 of {percent(f1[far])}, {abs(change):.0f} percentage points "
        f"{'less' if change < 0 else 'more'} than at {near}."
    )


def unbeaten_findings(study: StudyTables) -> str:
    """For which components what costs nothing is the better guess, on average over layers; nothing if for none."""
    source = min((row.source_layer for row in study.predictions), default=0)
    rows = [row for row in study.predictions if row.source_layer == source]
    network = means(rows, lambda row: row.component, lambda row: row.network_f1)
    baselines = {
        "The hottest neurons are": means(rows, lambda row: row.component, lambda row: row.hot_f1),
        "The previous token's set is": means(rows, lambda row: row.component, lambda row: row.previous_f1),
    }
    sentences = []
    for words, baseline in baselines.items():
        better = [study.words(component) for component in network if baseline[component] > network[component]]
        if better:
            sentences.append(f" {words} a better guess for the {listed(better)}.")
    return "".join(sentences)


def _told(study: StudyTables, component: str) -> Sequence[PredictionQuality]:
    return [row for row in study.predictions if row.component == component and not math.isnan(row.recall)]
