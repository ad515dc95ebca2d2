"""docs/analysis.md names the tables of a study and their columns as they are."""

import dataclasses
import re
from pathlib import Path

import pytest

from sparsecc.analysis import (
    important_neurons,
    magnitude_distribution,
    natural_sparsity,
    predictability,
    prediction,
    sparsity_sweep,
    weight_magnitudes,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "analysis.md"
TABLES = {
    important_neurons.FILE: important_neurons.ImportantNeurons,
    weight_magnitudes.FILE: weight_magnitudes.WeightMagnitudes,
    natural_sparsity.FILE: natural_sparsity.NaturalSparsity,
    magnitude_distribution.FILE: magnitude_distribution.MagnitudeQuantile,
    magnitude_distribution.THRESHOLDS_FILE: magnitude_distribution.SparsityThreshold,
    sparsity_sweep.FILE: sparsity_sweep.SparsityPoint,
    predictability.FILE: predictability.PatternMatch,
    predictability.PROMPTS_FILE: predictability.PromptVariant,
    prediction.FILE: prediction.PredictionQuality,
}


@pytest.mark.parametrize("name", TABLES)
def test_columns(name: str):
    documented = re.search(rf"^\| `{re.escape(name)}` \| `([^`]+)`", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    assert documented is not None
    assert documented[1].split(", ") == [field.name for field in dataclasses.fields(TABLES[name])]
