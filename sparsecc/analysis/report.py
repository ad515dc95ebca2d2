"""The report of a study: one HTML file that reads nothing but the tables beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparsecc.analysis import (
    findings,
    important_neurons,
    magnitude_distribution,
    natural_sparsity,
    plots,
    predictability,
    prediction,
    sparsity_sweep,
    weight_magnitudes,
)
from sparsecc.analysis.averages import means
from sparsecc.analysis.components import DOWN_INPUT, FFN_INPUT
from sparsecc.analysis.predictor_export import predictor_name
from sparsecc.analysis.study_tables import StudyTables, read_study
from sparsecc.analysis.wording import component_words
from sparsecc.page import Plot, Table, drawn, write_page

FILE = "report.html"


@dataclasses.dataclass(frozen=True)
class Section:
    """A question, what was found, and what shows it.

    Attributes:
        name: in links to it.
        plots: the first says the finding.
        files: what they were made of.
    """

    name: str
    title: str
    finding: str
    plots: Sequence[Plot]
    tables: Sequence[Table]
    files: Sequence[str]


def write_study_report(directory: Path) -> Path:
    """Write ``report.html`` into the directory of a study.

    Raises:
        SparseccError: a table is missing or damaged.
    """
    study, path = read_study(directory), directory / FILE
    write_page(
        path,
        "study.html",
        facts=study.facts,
        parameters=sum(study.facts.parameters.values()),
        sections=list(_sections(study)),
    )
    return path


def _sections(study: StudyTables) -> Iterator[Section]:
    yield _natural_sparsity(study)
    yield _magnitudes(study)
    yield _sweep(study)
    yield _important_neurons(study)
    yield _predictability(study)
    yield _prediction(study)
    yield _weights(study)


def _natural_sparsity(study: StudyTables) -> Section:
    shares = means(study.natural, lambda row: (row.component, row.bound), lambda row: row.share)
    bounds = natural_sparsity.BOUNDS
    table = Table(
        "Activations whose magnitude is at most a bound, % of the finite ones, mean over layers.",
        ["activations", *("= 0" if bound == 0 else f"≤ {bound:g}" for bound in bounds)],
        [
            [_words(study, component), *(_number(100 * shares[component, bound]) for bound in bounds)]
            for component in _components(study)
        ],
    )
    finding = findings.natural_sparsity_finding(study)
    description = "The share of activations whose magnitude is at most a bound, in %, mean over layers."
    return Section(
        "natural-sparsity",
        "Natural sparsity",
        finding,
        [drawn("natural", plots.natural_sparsity_plot(study), finding, description)],
        [table],
        [natural_sparsity.FILE],
    )


def _magnitudes(study: StudyTables) -> Section:
    finding = findings.magnitudes_finding(study)
    component = FFN_INPUT if FFN_INPUT in _components(study) else _components(study)[0]
    cuts = {name: findings.thresholds_by_layer(study, name) for name in _components(study)}
    layers = sorted({layer for of in cuts.values() for layer in of})
    sparsity = f"{100 * study.facts.sparsity:g} %"
    table = Table(
        f"The magnitude that {sparsity} of the activations do not exceed, by layer.",
        ["layer", *(_words(study, name) for name in cuts)],
        [[str(layer), *(_number(cuts[name].get(layer, math.nan)) for name in cuts)] for layer in layers],
    )
    return Section(
        "magnitudes",
        "How magnitudes are distributed",
        finding,
        [
            drawn(
                "distribution",
                plots.distribution_plot(study, component),
                finding,
                f"Cumulative distribution of the magnitudes of the {_words(study, component)}, by layer.",
            ),
            drawn(
                "thresholds",
                plots.thresholds_plot(study),
                "",
                f"The magnitude that {sparsity} of each component's activations do not exceed: what a threshold has to "
                "be to zero them.",
            ),
        ],
        [table],
        [magnitude_distribution.FILE, magnitude_distribution.THRESHOLDS_FILE],
    )


def _sweep(study: StudyTables) -> Section:
    finding = findings.sweep_finding(study)
    tables = [
        Table(
            f"{words[0].upper()}{words[1:]}. Perplexity on {study.facts.evaluation_tokens:,} tokens.",
            ["below threshold, %", "zero, %", "weights not read, %", "perplexity"],
            [
                [
                    f"{100 * point.target_sparsity:g}",
                    _number(100 * point.achieved_sparsity),
                    _number(100 * point.weights_not_read),
                    _number(point.perplexity, digits=4),
                ]
                for point in study.sweep
                if point.scope == scope
            ],
        )
        for scope, words in findings.SCOPE_WORDS.items()
    ]
    is_measured = any(not math.isnan(point.perplexity) for point in study.sweep)
    description = "Perplexity over the share of activations that are zero under each layer's thresholds, in %."
    return Section(
        "perplexity",
        "What sparsity costs",
        finding,
        [drawn("sweep", plots.sweep_plot(study), finding, description)] if is_measured else [],
        tables if is_measured else [],
        [sparsity_sweep.FILE],
    )


def _important_neurons(study: StudyTables) -> Section:
    finding = findings.important_neurons_finding(study)
    description = (
        f"The fewest neurons that hold {100 * important_neurons.HOT_SHARE:.0f} % of the important activations, in % of "
        "all neurons. The lower, the more the same few neurons matter for every token."
    )
    hot = means(study.important, lambda row: row.component, _hot_share)
    never = means(study.important, lambda row: row.component, lambda row: row.never_important / row.neurons)
    active = means(study.important, lambda row: row.component, lambda row: row.important_share)
    table = Table(
        "Mean over layers, %.",
        ["activations", "important", f"neurons that hold {100 * important_neurons.HOT_SHARE:.0f} %", "never important"],
        [
            [
                _words(study, component),
                _number(100 * active[component]),
                _number(100 * hot[component]),
                _number(100 * never[component]),
            ]
            for component in _components(study)
        ],
    )
    return Section(
        "important-neurons",
        "Which neurons matter",
        finding,
        [drawn("important", plots.important_neurons_plot(study), finding, description)],
        [table],
        [important_neurons.FILE, important_neurons.FREQUENCY_FILE],
    )


def _predictability(study: StudyTables) -> Section:
    finding = findings.predictability_finding(study)
    rows = [row for row in study.matches if row.positions == "all"]
    keys = sorted({(row.similarity, row.component) for row in rows}, reverse=True)
    values = {
        name: means(rows, lambda row: (row.similarity, row.component), lambda row, name=name: getattr(row, name))  # type: ignore[misc]
        for name in (
            "match_rate",
            "chance_match_rate",
            "intersection_over_union",
            "chance_intersection_over_union",
        )
    }
    table = Table(
        f"{predictability.PROMPTS} prompts of {predictability.PROMPT_TOKENS} tokens and variants of them, mean over "
        "prompts and layers, %. Match: neurons that are active in both or in neither.",
        ["shared tokens", "activations", "match", "by chance", "intersection over union", "by chance"],
        [
            [
                f"{100 * similarity:g}" if similarity != predictability.UNRELATED else "unrelated",
                _words(study, component),
            ]
            + [_number(100 * values[name][similarity, component]) for name in values]
            for similarity, component in keys
        ],
    )
    description = (
        f"How alike the patterns of active {_words(study, DOWN_INPUT)} of two prompts are, in %: the neurons that are "
        "active in both over those that are in either, mean over tokens, prompts and layers."
    )
    return Section(
        "similar-prompts",
        "Whether similar prompts need the same neurons",
        finding,
        [drawn("similar", plots.predictability_plot(study), finding, description)],
        [table],
        [predictability.FILE, predictability.PROMPTS_FILE, predictability.PATTERNS_FILE],
    )


def _prediction(study: StudyTables) -> Section:
    finding = findings.prediction_finding(study)
    rows = study.predictions
    sources = sorted({row.source_layer for row in rows})
    table = Table(
        "Recall and precision, %, on windows that were not trained on. About as many neurons are predicted as are "
        "active; hottest: those that were active most often; previous: those of the token before.",
        ["from layer", "distance", "activations", "active", "recall", "precision", "hottest", "previous"],
        [
            [
                str(row.source_layer),
                str(row.distance),
                f"layer {row.layer}, {_words(study, row.component)}",
                _number(100 * row.active_share),
                _number(100 * row.recall),
                _number(100 * row.precision),
                f"{_number(100 * row.hot_recall)} / {_number(100 * row.hot_precision)}",
                f"{_number(100 * row.previous_recall)} / {_number(100 * row.previous_precision)}",
            ]
            for row in rows
        ],
    )
    present = [name for name in (DOWN_INPUT, prediction.SOURCE) if any(row.component == name for row in rows)]
    return Section(
        "prediction",
        "Whether an early state foretells later layers",
        finding,
        [
            drawn(
                f"prediction-{component}",
                plots.prediction_plot(study, component),
                finding if component == present[0] else "",
                f"How many of the active {_words(study, component)} are found, in %, on windows of the text that were "
                "not trained on.",
            )
            for component in present
        ],
        [table] if rows else [],
        [prediction.FILE, *(predictor_name(source) for source in sources)],
    )


def _weights(study: StudyTables) -> Section:
    finding = findings.weights_finding(study)
    return Section(
        "weights",
        "How weights are distributed",
        finding,
        [drawn("weights", plots.weights_plot(study), finding, "Histogram of magnitudes by kind of projection.")],
        [],
        [weight_magnitudes.FILE],
    )


def _hot_share(row: important_neurons.ImportantNeurons) -> float:
    return row.hot_neurons / row.neurons if row.hot_neurons else math.nan


def _components(study: StudyTables) -> list[str]:
    return list(dict.fromkeys(row.component for row in study.important))


def _words(study: StudyTables, component: str) -> str:
    return component_words(component, is_gated=study.facts.is_gated)


def _number(value: float, *, digits: int = 3) -> str:
    """A number for a table, to some significant digits; a dash where there is none."""
    return "-" if math.isnan(value) else f"{value:.{digits}g}"
