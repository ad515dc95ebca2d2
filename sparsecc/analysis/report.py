"""The report of a study: one HTML file that reads nothing but the files beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from sparsecc.analysis import (
    findings,
    important_neurons,
    magnitude_distribution,
    natural_sparsity,
    plots,
    sparsity_sweep,
    weight_magnitudes,
)
from sparsecc.analysis.averages import means
from sparsecc.analysis.components import DOWN_INPUT, FFN_INPUT
from sparsecc.analysis.pattern_section import pattern_section
from sparsecc.analysis.prediction_section import prediction_section
from sparsecc.analysis.section import Section, number, percentage
from sparsecc.analysis.study_tables import StudyTables, read_study
from sparsecc.page import Plot, Table, drawn, write_page

FILE = "report.html"


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
    yield pattern_section(study)
    yield prediction_section(study)
    yield _weights(study)


def _natural_sparsity(study: StudyTables) -> Section:
    shares = means(study.natural, lambda row: (row.component, row.bound), lambda row: row.share)
    bounds = natural_sparsity.BOUNDS
    table = Table(
        "Activations whose magnitude is at most a bound, % of the finite ones, mean over layers.",
        ["activations", *("= 0" if bound == 0 else f"≤ {bound:g}" for bound in bounds)],
        [
            [study.words(component), *(percentage(shares[component, bound]) for bound in bounds)]
            for component in study.components
        ],
    )
    finding = findings.natural_sparsity_finding(study)
    description = "The share of activations whose magnitude is at most a bound, in %, mean over layers."
    return Section(
        "natural-sparsity",
        "Natural sparsity",
        finding,
        [
            drawn("natural", plots.natural_sparsity_plot(study), finding, description),
            drawn(
                "zeros",
                plots.zeros_plot(study),
                findings.zeros_finding(study),
                "The share of activations that are exactly zero, in %, by layer.",
            ),
        ],
        [table],
        [natural_sparsity.FILE],
    )


def _magnitudes(study: StudyTables) -> Section:
    cuts = {name: findings.thresholds_by_layer(study, name) for name in study.components}
    layers = sorted({layer for of in cuts.values() for layer in of})
    sparsity = f"{100 * study.facts.sparsity:g} %"
    table = Table(
        f"The magnitude that {sparsity} of the activations do not exceed, by layer.",
        ["layer", *(study.words(name) for name in cuts)],
        [[str(layer), *(number(cuts[name].get(layer, math.nan)) for name in cuts)] for layer in layers],
    )
    return Section(
        "magnitudes",
        "How magnitudes are distributed",
        findings.magnitudes_finding(study, findings.focus(study, FFN_INPUT)),
        list(_distributions(study)),
        [table],
        [magnitude_distribution.FILE, magnitude_distribution.THRESHOLDS_FILE],
    )


def _distributions(study: StudyTables) -> Iterator[Plot]:
    first = findings.focus(study, FFN_INPUT)
    for component in sorted(study.components, key=lambda name: name != first):
        yield drawn(
            f"distribution-{component}",
            plots.distribution_plot(study, component),
            findings.magnitudes_finding(study, component),
            f"Cumulative distribution of the magnitudes of the {study.words(component)}, by layer; the dots are the "
            f"thresholds for sparsities of 5 to 95 %. What is below {plots.LOWEST_MAGNITUDE:.5f} is drawn there.",
        )
    yield drawn(
        "thresholds",
        plots.thresholds_plot(study),
        findings.thresholds_finding(study),
        f"The magnitude that {100 * study.facts.sparsity:g} % of each component's activations do not exceed: what a "
        "threshold has to be to zero them.",
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
                    percentage(point.achieved_sparsity),
                    percentage(point.weights_not_read),
                    number(point.perplexity, digits=4),
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
    component = findings.focus(study, DOWN_INPUT)
    finding = findings.important_neurons_finding(study)
    description = (
        f"The fewest neurons that hold {100 * important_neurons.HOT_SHARE:.0f} % of the important activations, in % of "
        "all neurons. The lower, the more the same few neurons matter for every token."
    )
    hot = means(study.important, lambda row: row.component, _hot_share)
    never = means(study.important, lambda row: row.component, lambda row: row.never_important / row.neurons)
    active = means(study.important, lambda row: row.component, lambda row: row.important_share)
    table = Table(
        f"Mean over layers, %. Hot are the fewest neurons that hold {100 * important_neurons.HOT_SHARE:.0f} % of the "
        "important activations, the others are cold.",
        ["activations", "important", "hot neurons", "cold neurons", "never important"],
        [
            [
                study.words(component),
                percentage(active[component]),
                percentage(hot[component]),
                percentage(1 - hot[component]),
                percentage(never[component]),
            ]
            for component in study.components
        ],
    )
    return Section(
        "important-neurons",
        "Which neurons matter",
        finding,
        [
            drawn("hot", plots.hot_neurons_plot(study), finding, description),
            drawn(
                "frequency",
                plots.frequency_plot(study, component),
                findings.frequency_finding(study, component),
                f"In how many tokens, in %, each neuron of the {study.words(component)} is important, by layer.",
            ),
        ],
        [table],
        [important_neurons.FILE, important_neurons.FREQUENCY_FILE],
    )


def _weights(study: StudyTables) -> Section:
    finding = findings.weights_finding(study)
    description = (
        f"How many weights of each kind of projection lie in each of {weight_magnitudes.BINS} bins, over layers."
    )
    return Section(
        "weights",
        "How weights are distributed",
        finding,
        [drawn("weights", plots.weights_plot(study), finding, description)],
        [],
        [weight_magnitudes.FILE],
    )


def _hot_share(row: important_neurons.ImportantNeurons) -> float:
    return row.hot_neurons / row.neurons if row.hot_neurons else math.nan
