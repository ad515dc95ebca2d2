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
from sparsecc.analysis.important_neurons import Frequencies, ImportantNeurons, read_frequencies
from sparsecc.analysis.magnitude_distribution import MagnitudeQuantile, SparsityThreshold
from sparsecc.analysis.natural_sparsity import NaturalSparsity
from sparsecc.analysis.predictability import PatternMatch, Patterns, read_patterns
from sparsecc.analysis.prediction import PredictionQuality
from sparsecc.analysis.sparsity_sweep import SparsityPoint
from sparsecc.analysis.table import read_table
from sparsecc.analysis.weight_magnitudes import WeightMagnitudes
from sparsecc.analysis.wording import component_words


@dataclasses.dataclass(frozen=True)
class StudyTables:
    """The results of a study, each as its own module describes it."""

    facts: StudyFacts
    natural: Sequence[NaturalSparsity]
    weights: Sequence[WeightMagnitudes]
    distribution: Sequence[MagnitudeQuantile]
    thresholds: Sequence[SparsityThreshold]
    important: Sequence[ImportantNeurons]
    frequencies: Frequencies
    matches: Sequence[PatternMatch]
    patterns: Patterns
    predictions: Sequence[PredictionQuality]
    sweep: Sequence[SparsityPoint]

    @property
    def components(self) -> list[str]:
        """Those that the model has, in the order of the data."""
        return list(dict.fromkeys(row.component for row in self.important))

    def words(self, component: str) -> str:
        """What a person calls the activations of a component of this model."""
        return component_words(component, is_gated=self.facts.is_gated)


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
        thresholds=read_table(directory / magnitude_distribution.THRESHOLDS_FILE, SparsityThreshold),
        important=read_table(directory / important_neurons.FILE, ImportantNeurons),
        frequencies=read_frequencies(directory / important_neurons.FREQUENCY_FILE),
        matches=read_table(directory / predictability.FILE, PatternMatch),
        patterns=read_patterns(directory / predictability.PATTERNS_FILE),
        predictions=read_table(directory / prediction.FILE, PredictionQuality),
        sweep=read_table(directory / sparsity_sweep.FILE, SparsityPoint),
    )
