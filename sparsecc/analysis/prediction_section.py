"""What a report says of foretelling active sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from sparsecc.analysis import prediction, prediction_findings, prediction_plots
from sparsecc.analysis.components import DOWN_INPUT
from sparsecc.analysis.prediction import PredictionQuality
from sparsecc.analysis.predictor_export import predictor_name
from sparsecc.analysis.section import Section, percentage
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.page import Plot, Table, drawn

_FOUND: Mapping[str, Callable[[PredictionQuality], float]] = {
    "recall": lambda row: row.recall,
    "precision": lambda row: row.precision,
    "hottest, recall": lambda row: row.hot_recall,
    "hottest, precision": lambda row: row.hot_precision,
    "previous, recall": lambda row: row.previous_recall,
    "previous, precision": lambda row: row.previous_precision,
}
_EXPLANATION = (
    "Recall and precision, %, on the same tokens of windows that were not trained on. As many neurons are predicted as "
    "are active, by the baselines about as many; hottest: those that were active most often; previous: those of the "
    "token before."
)


def prediction_section(study: StudyTables) -> Section:
    """Whether an early state foretells later layers."""
    finding = prediction_findings.prediction_finding(study, DOWN_INPUT) + prediction_findings.unbeaten_findings(study)
    sources = sorted({row.source_layer for row in study.predictions})
    return Section(
        "prediction",
        "Whether an early state foretells later layers",
        finding,
        list(_plots(study, finding)),
        [_by_distance(study), _by_layer(study)] if sources else [],
        [prediction.FILE, *(predictor_name(source) for source in sources)],
    )


def _plots(study: StudyTables, finding: str) -> Iterator[Plot]:
    described = (
        "How well the active {words} are foretold: F1, the harmonic mean of recall and precision, in %, on windows of "
        "the text that were not trained on"
    )
    predicted = {row.component for row in study.predictions}
    for component in (DOWN_INPUT, prediction.SOURCE):
        if component in predicted:
            words = study.words(component)
            yield drawn(
                f"prediction-{component}",
                prediction_plots.f1_by_layer_plot(study, component),
                finding if component == DOWN_INPUT else prediction_findings.prediction_finding(study, component),
                f"{described.format(words=words)}.",
            )
    if DOWN_INPUT in predicted:
        yield drawn(
            "prediction-distance",
            prediction_plots.f1_by_distance_plot(study, DOWN_INPUT),
            prediction_findings.distance_finding(study, DOWN_INPUT),
            f"{described.format(words=study.words(DOWN_INPUT))}.",
        )


def _by_distance(study: StudyTables) -> Table:
    rows = [row for row in study.predictions if row.component == DOWN_INPUT]
    return Table(
        f"By the layers between the state and the {study.words(DOWN_INPUT)}. {_EXPLANATION}",
        ["from layer", "distance", *_FOUND],
        [
            [str(row.source_layer), str(row.distance), *(percentage(measure(row)) for measure in _FOUND.values())]
            for row in sorted(rows, key=lambda row: (row.source_layer, row.distance))
        ],
    )


def _by_layer(study: StudyTables) -> Table:
    return Table(
        f"{_EXPLANATION} Of both, recall / precision.",
        ["from layer", "to", "activations", "active", "recall", "precision", "hottest", "previous"],
        [
            [
                str(row.source_layer),
                str(row.layer),
                study.words(row.component),
                percentage(row.active_share),
                percentage(row.recall),
                percentage(row.precision),
                f"{percentage(row.hot_recall)} / {percentage(row.hot_precision)}",
                f"{percentage(row.previous_recall)} / {percentage(row.previous_precision)}",
            ]
            for row in study.predictions
        ],
    )
