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
    rows = _told_by_first(study, component)
    if not rows:
        return "No predictor could be trained: it takes two windows of text and active neurons to foretell."
    near, far, source = rows[0], rows[-1], rows[0].source_layer
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
    """What the first predictor loses with the layers between its state and what it foretells."""
    rows = _told_by_first(study, component)
    if len(rows) < 2:
        return "Nothing can be said of distances: there is one alone."
    near, far = rows[0], rows[-1]
    change = 100 * (far.network_f1 - near.network_f1)
    return (
        f"At a distance of {far.distance} layer{'s' if far.distance > 1 else ''} the network of layer "
        f"{far.source_layer} foretells the active {study.words(component)} with an F1 of {percent(far.network_f1)}, "
        f"{abs(change):.0f} percentage points {'less' if change < 0 else 'more'} than at {near.distance}."
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


def _told_by_first(study: StudyTables, component: str) -> Sequence[PredictionQuality]:
    """What the predictor of the first layer says of a component that is ever active, by layer."""
    rows = [row for row in study.predictions if row.component == component and not math.isnan(row.recall)]
    source = min((row.source_layer for row in rows), default=0)
    return sorted((row for row in rows if row.source_layer == source), key=lambda row: row.layer)
