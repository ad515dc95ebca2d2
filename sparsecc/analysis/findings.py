"""What a study found, in sentences: each is computed from its tables and holds for this model alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsecc.analysis.averages import mean, means
from sparsecc.analysis.components import DOWN_INPUT
from sparsecc.analysis.important_neurons import HOT_SHARE
from sparsecc.analysis.natural_sparsity import NaturalSparsity
from sparsecc.analysis.sparsity_sweep import SparsityPoint
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.analysis.wording import in_layers, listed, percent, rounded_up

SCOPE_WORDS = {
    "ffn_neurons": "what is inside the feed-forward networks",
    "ffn": "what the feed-forward networks' projections read",
    "all": "what all projections read",
}
NOTICEABLE_ZEROS = 0.01
TOLERATED_RISE = 0.05
OUTLIER = 1.5
"""A layer is set apart whose magnitudes are that many times those of any other."""
_NEAR_ZERO = 0.01
_EIGHTH = 1 / 8


def natural_sparsity_finding(study: StudyTables) -> str:
    """How much is zero, or nearly, by itself."""
    zero_rows = _at_bound(study.natural, 0.0)
    zeros = means(zero_rows, lambda row: row.component, lambda row: row.share)
    sparse = {component: share for component, share in zeros.items() if share >= NOTICEABLE_ZEROS}
    if sparse:
        by_layer = {
            component: [row.share for row in zero_rows if row.component == component and not math.isnan(row.share)]
            for component in sparse
        }
        told = [
            f"{percent(share)} of the {study.words(component)} "
            f"({percent(min(by_layer[component]))} to {percent(max(by_layer[component]))} by layer)"
            for component, share in sparse.items()
        ]
        sentence = f"Without anything being done, {listed(told)} are exactly zero."
    else:
        small = means(_at_bound(study.natural, _NEAR_ZERO), lambda row: row.component, lambda row: row.share)
        finite = {component: share for component, share in small.items() if not math.isnan(share)}
        if not finite:
            return "Nothing can be said of zeros: no activation is a finite number." + _not_finite(study)
        most = max(finite, key=lambda component: finite[component])
        sentence = (
            f"Nothing is sparse by itself: averaged over layers, fewer than {percent(NOTICEABLE_ZEROS)} of any "
            f"component's activations are exactly zero. The {study.words(most)} come nearest: "
            f"{percent(finite[most])} are at most {_NEAR_ZERO}."
        )
    return sentence + _not_finite(study)


def weights_finding(study: StudyTables) -> str:
    """How small most weights are."""
    finite = [row for row in study.weights if not math.isnan(row.upper)]
    total, largest = sum(row.count for row in finite), max((row.upper for row in finite), default=math.nan)
    if not total:
        return "No weight is a finite number."
    below = sum(row.count for row in finite if row.upper <= largest * _EIGHTH * (1 + 1e-9)) / total
    lost = sum(row.count for row in study.weights) - total
    sentence = (
        f"{percent(below)} of the projections' weights are smaller than an eighth of the largest ({largest:.3g})."
    )
    return sentence + (f" {lost:,} weights are NaN or infinite." if lost else "")


def zeros_finding(study: StudyTables) -> str:
    """In which layers there are zeros to begin with."""
    rows = [row for row in _at_bound(study.natural, 0.0) if not math.isnan(row.share)]
    if not rows:
        return "No layer has an activation that is a finite number."
    most = max(rows, key=lambda row: row.share)
    if most.share < NOTICEABLE_ZEROS:
        return f"In no layer are as many as {percent(NOTICEABLE_ZEROS)} of any component's activations exactly zero."
    words = study.words(most.component)
    of_component = [row for row in rows if row.component == most.component]
    least = min(of_component, key=lambda row: row.share)
    return (
        f"The most zeros are among the {words} of layer {most.layer}, {percent(most.share)}; of theirs, layer "
        f"{least.layer} has the fewest, {percent(least.share)}."
    )


def magnitudes_finding(study: StudyTables, component: str) -> str:
    """What bounds half of a component's activations, and in which layers."""
    sparsity = study.facts.sparsity
    cuts = thresholds_by_layer(study, component)
    finite = {layer: cut for layer, cut in cuts.items() if not math.isnan(cut)}
    if not finite:
        return f"The {study.words(component)} are finite numbers in no layer."
    largest = sorted(finite.values())[-2:]
    bound = largest[0] if len(finite) > 2 and largest[1] > OUTLIER * largest[0] else largest[-1]
    limit = rounded_up(bound)
    inside = {layer for layer, cut in finite.items() if cut <= limit}
    beyond = [f"{finite[layer]:.2g} in layer {layer}" for layer in finite if layer not in inside]
    sentence = f"{percent(sparsity)} of the {study.words(component)} are at most {limit:g} "
    return sentence + in_layers(inside, list(cuts)) + (f" ({listed(beyond)})." if beyond else ".")


def thresholds_finding(study: StudyTables) -> str:
    """For which component one threshold for all layers would be furthest from right."""
    ratios = {}
    for component in study.components:
        cuts = {layer: cut for layer, cut in thresholds_by_layer(study, component).items() if cut > 0}
        if len(cuts) > 1:
            ratios[component] = max(cuts.values()) / min(cuts.values()), cuts
    if not ratios:
        return "Thresholds cannot be compared: no component has one above zero in two layers."
    component = max(ratios, key=lambda component: ratios[component][0])
    ratio, cuts = ratios[component]
    low, high = min(cuts, key=lambda layer: cuts[layer]), max(cuts, key=lambda layer: cuts[layer])
    return (
        f"Thresholds differ most among the {study.words(component)}: {cuts[low]:.2g} in layer {low}, {cuts[high]:.2g} "
        f"in layer {high}, {ratio:.1f} times as much."
    )


def important_neurons_finding(study: StudyTables) -> str:
    """Whether few neurons hold most of what is important."""
    component = focus(study, DOWN_INPUT)
    rows = [row for row in study.important if row.component == component]
    hot = {row.layer: row.hot_neurons / row.neurons for row in rows if row.hot_neurons}
    if not hot:
        return f"None of the {study.words(component)} is important."
    fewest, most = min(hot, key=lambda layer: hot[layer]), max(hot, key=lambda layer: hot[layer])
    never, neurons = sum(row.never_important for row in rows), sum(row.neurons for row in rows)
    unused = f"{never:,} of {neurons:,} neurons are" if never else f"None of {neurons:,} neurons is"
    return (
        f"{percent(mean(hot.values()))} of the neurons hold {percent(HOT_SHARE)} of the important "
        f"{study.words(component)}, from {percent(hot[fewest])} in layer {fewest} to {percent(hot[most])} in layer "
        f"{most}; spread evenly it would take {percent(HOT_SHARE)}. "
        f"{unused} never important in the sample."
    )


def frequency_finding(study: StudyTables, component: str) -> str:
    """How often the hottest and the coldest tenth of a component's neurons are important."""
    hottest, coldest = [], []
    for (_, name), frequency in study.frequencies.items():
        if name == component:
            ordered, tenth = np.sort(frequency.astype(np.float64)), max(len(frequency) // 10, 1)
            hottest.append(float(ordered[-tenth:].mean()))
            coldest.append(float(ordered[:tenth].mean()))
    return (
        f"The hottest tenth of the neurons is important in {percent(mean(hottest))} of the tokens, the coldest tenth "
        f"in {percent(mean(coldest))}."
    )


def sweep_finding(study: StudyTables) -> str:
    """How far perplexity bears it."""
    points = [point for point in study.sweep if not math.isnan(point.perplexity)]
    dense = next((point.perplexity for point in points if point.target_sparsity == 0), math.nan)
    if math.isnan(dense):
        return "Perplexity could not be measured."
    told = [_tolerance([point for point in points if point.scope == scope], dense) for scope in SCOPE_WORDS]
    return (
        f"Perplexity is {dense:.2f} with no threshold. It rises by at most {percent(TOLERATED_RISE)} with "
        f"{listed([words for words in told if words])} at zero."
    )


def thresholds_by_layer(study: StudyTables, component: str) -> dict[int, float]:
    """The quantile of a component's magnitudes above which they are important, by layer."""
    return {row.layer: row.threshold for row in study.important if row.component == component}


def _tolerance(points: Sequence[SparsityPoint], dense: float) -> str:
    """The highest sparsity up to which perplexity stays near the dense one, and what the next step costs."""
    if not points:
        return ""
    words, borne = SCOPE_WORDS[points[0].scope], points[0]
    for point in points:
        if point.perplexity > (1 + TOLERATED_RISE) * dense:
            cost = f"{percent(point.achieved_sparsity)} cost {percent(point.perplexity / dense - 1)}"
            return f"{percent(borne.achieved_sparsity)} of {words} ({cost})"
        borne = point
    return f"{percent(borne.achieved_sparsity)} of {words}"


def _at_bound(rows: Sequence[NaturalSparsity], bound: float) -> list[NaturalSparsity]:
    return [row for row in rows if row.bound == bound]


def _not_finite(study: StudyTables) -> str:
    rows = [row for row in _at_bound(study.natural, 0.0) if row.not_finite]
    if not rows:
        return ""
    layers = in_layers({row.layer for row in rows}, sorted({row.layer for row in study.natural}))
    return f" {sum(row.not_finite for row in rows):,} activations, {layers}, are NaN or infinite and left out."


def focus(study: StudyTables, component: str) -> str:
    """The component to speak of: the first that there is, where a model lacks it."""
    return component if component in study.components else study.components[0]
