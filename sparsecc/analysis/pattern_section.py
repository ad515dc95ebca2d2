"""What a report says of the patterns of similar prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparsecc.analysis import pattern_findings, pattern_plots, predictability
from sparsecc.analysis.averages import means
from sparsecc.analysis.components import DOWN_INPUT
from sparsecc.analysis.section import Section, percentage
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.page import Plot, Table, drawn

MEASURES: Mapping[str, str] = {
    "match_rate": "Match rate",
    "intersection_over_union": "Intersection over union",
}


def pattern_section(study: StudyTables) -> Section:
    """Whether similar prompts need the same neurons."""
    finding = pattern_findings.predictability_finding(study)
    is_compared = any(row.component == DOWN_INPUT for row in study.matches)
    return Section(
        "similar-prompts",
        "Whether similar prompts need the same neurons",
        finding,
        list(_plots(study, finding)) if is_compared else [],
        [_by_similarity(study), *(_by_layer(study, measure) for measure in MEASURES)] if is_compared else [],
        [predictability.FILE, predictability.PROMPTS_FILE, predictability.PATTERNS_FILE],
    )


def _plots(study: StudyTables, finding: str) -> Iterator[Plot]:
    words = study.words(DOWN_INPUT)
    yield drawn(
        "similar",
        pattern_plots.similarity_plot(study),
        finding,
        f"How alike the patterns of active {words} of two prompts are, in %: the neurons that are active in both over "
        "those that are in either, mean over tokens, prompts and layers.",
    )
    for rank, match in zip(("worst", "best"), predictability.extremes(study.matches, DOWN_INPUT), strict=True):
        yield drawn(
            f"heatmap-{rank}",
            pattern_plots.heatmap_plot(study, match),
            pattern_findings.heatmap_finding(match, rank),
            f"The share of neighbouring {words}, in %, that are active in both or inactive in both, token by token.",
        )
    yield drawn(
        "match-rate",
        pattern_plots.match_rate_plot(study),
        pattern_findings.match_rate_finding(study),
        f"The share of (token, neuron) pairs, in %, where the {words} of two prompts are active in both or inactive in "
        "both, by layer, mean over prompts.",
    )


def _by_similarity(study: StudyTables) -> Table:
    rows = [row for row in study.matches if row.positions == predictability.POSITIONS[0]]
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
    return Table(
        f"{predictability.PROMPTS} prompts of {predictability.PROMPT_TOKENS} tokens and variants of them, mean over "
        "prompts and layers, %. Match: neurons that are active in both or in neither.",
        ["shared tokens", "activations", "match", "by chance", "intersection over union", "by chance"],
        [
            [_shared(similarity), study.words(component)]
            + [percentage(values[name][similarity, component]) for name in values]
            for similarity, component in keys
        ],
    )


def _by_layer(study: StudyTables, measure: str) -> Table:
    rows = [
        row for row in study.matches if row.component == DOWN_INPUT and row.positions == predictability.POSITIONS[0]
    ]
    similarities = sorted({row.similarity for row in rows}, reverse=True)
    values = means(rows, lambda row: (row.layer, row.similarity), lambda row: float(getattr(row, measure)))
    return Table(
        f"{MEASURES[measure]} of the {study.words(DOWN_INPUT)} by layer, and by the tokens in % that prompts share, "
        "mean over prompts, %.",
        ["layer", *(_shared(similarity) for similarity in similarities)],
        [
            [str(layer), *(percentage(values[layer, similarity]) for similarity in similarities)]
            for layer in sorted({row.layer for row in rows})
        ],
    )


def _shared(similarity: float) -> str:
    return f"{100 * similarity:g}" if similarity != predictability.UNRELATED else "unrelated"
