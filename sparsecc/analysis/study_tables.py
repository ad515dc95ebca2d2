"""Read back all that a study wrote down: what its report is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sparsecc.analysis import (
    facts,
    important_neurons,
    magnitude_distribution,
    natural_sparsity,
    predictability,
    prediction,
    sparsity_sweep,
    weight_magnitudes,
)
from sparsecc.analysis.facts import StudyFacts, read_facts
from sparsecc.analysis.important_neurons import ImportantNeurons
from sparsecc.analysis.magnitude_distribution import MagnitudeQuantile
from sparsecc.analysis.natural_sparsity import NaturalSparsity
from sparsecc.analysis.predictability import PatternMatch
from sparsecc.analysis.prediction import PredictionQuality
from sparsecc.analysis.sparsity_sweep import SparsityPoint
from sparsecc.analysis.table import read_table
from sparsecc.analysis.weight_magnitudes import WeightMagnitudes


@dataclasses.dataclass(frozen=True)
class StudyTables:
    """The tables of a study, each as its own module describes it."""

    facts: StudyFacts
    natural: Sequence[NaturalSparsity]
    weights: Sequence[WeightMagnitudes]
    distribution: Sequence[MagnitudeQuantile]
    important: Sequence[ImportantNeurons]
    matches: Sequence[PatternMatch]
    predictions: Sequence[PredictionQuality]
    sweep: Sequence[SparsityPoint]


def read_study(directory: Path) -> StudyTables:
    """Read the tables of a study's directory.

    Raises:
        SparseccError: one is missing or damaged.
    """
    return StudyTables(
        facts=read_facts(directory / facts.FILE),
        natural=read_table(directory / natural_sparsity.FILE, NaturalSparsity),
        weights=read_table(directory / weight_magnitudes.FILE, WeightMagnitudes),
        distribution=read_table(directory / magnitude_distribution.FILE, MagnitudeQuantile),
        important=read_table(directory / important_neurons.FILE, ImportantNeurons),
        matches=read_table(directory / predictability.FILE, PatternMatch),
        predictions=read_table(directory / prediction.FILE, PredictionQuality),
        sweep=read_table(directory / sparsity_sweep.FILE, SparsityPoint),
    )
