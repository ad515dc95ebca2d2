"""What was found about the patterns of similar prompts, in sentences."""

from __future__ import annotations

from sparsecc.analysis.averages import mean, means
from sparsecc.analysis.components import DOWN_INPUT
from sparsecc.analysis.predictability import POSITIONS, UNRELATED, PatternMatch
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.analysis.wording import listed, percent

NOT_COMPARED = "Patterns of prompts were not compared."


def predictability_finding(study: StudyTables) -> str:
    """Whether prompts that share most tokens share their patterns."""
    rows = [row for row in study.matches if row.component == DOWN_INPUT]
    related = [row for row in rows if row.similarity != UNRELATED]
    if not related:
        return NOT_COMPARED
    similarity = min(row.similarity for row in related)
    least = [row for row in related if row.similarity == similarity]
    shared = means(least, lambda row: row.positions, lambda row: row.intersection_over_union)
    unrelated = mean(row.intersection_over_union for row in rows if row.similarity == UNRELATED)
    told = [
        f"{percent(shared[positions])} where the token is {token}"
        for positions, token in (("kept", "the same"), ("replaced", "another"))
        if positions in shared
    ]
    return (
        f"Prompts that share {percent(similarity)} of their tokens share {percent(shared['all'])} of the active "
        f"{study.words(DOWN_INPUT)} (intersection over union): {listed(told)}. Unrelated prompts share "
        f"{percent(unrelated)}."
    )


def match_rate_finding(study: StudyTables) -> str:
    """In which layers similar prompts match best and worst."""
    rows = [
        row
        for row in study.matches
        if row.component == DOWN_INPUT and row.positions == POSITIONS[0] and row.similarity != UNRELATED
    ]
    if not rows:
        return NOT_COMPARED
    rates = means(rows, lambda row: row.layer, lambda row: row.match_rate)
    worst, best = min(rates, key=lambda layer: rates[layer]), max(rates, key=lambda layer: rates[layer])
    if rates[worst] == rates[best]:
        return f"The match rate is {percent(rates[best])} in every layer."
    return (
        f"Averaged over variants, patterns match best in layer {best}, {percent(rates[best])}, and worst in layer "
        f"{worst}, {percent(rates[worst])}."
    )


def heatmap_finding(match: PatternMatch, rank: str) -> str:
    """How far one variant's pattern is that of its prompt; ``rank`` says how it stands among all."""
    return (
        f"The {rank} match is {percent(match.match_rate)}: prompt {match.prompt} and its variant that shares "
        f"{percent(match.similarity)} of the tokens, in layer {match.layer}."
    )
