"""What a report says must be so: in numbers, in layers, and where there is nothing to say."""

import dataclasses
import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecc.analysis.averages import mean, means
from sparsecc.analysis.findings import (
    magnitudes_finding,
    sweep_finding,
    thresholds_finding,
    weights_finding,
    zeros_finding,
)
from sparsecc.analysis.important_neurons import ImportantNeurons
from sparsecc.analysis.natural_sparsity import NaturalSparsity
from sparsecc.analysis.pattern_findings import match_rate_finding
from sparsecc.analysis.predictability import UNRELATED, PatternMatch
from sparsecc.analysis.prediction import PredictionQuality
from sparsecc.analysis.prediction_findings import distance_finding, prediction_finding, unbeaten_findings
from sparsecc.analysis.sparsity_sweep import SparsityPoint
from sparsecc.analysis.study_tables import StudyTables
from sparsecc.analysis.weight_magnitudes import WeightMagnitudes
from sparsecc.analysis.wording import component_words, in_layers, listed, percent, rounded_up


@given(st.floats(1e-6, 1e6))
def test_rounding_up_gives_two_digits_and_no_smaller_number(value: float):
    rounded = rounded_up(value)
    assert value * (1 - 1e-9) <= rounded <= value * 1.1 + 1e-12
    assert float(f"{rounded:.2g}") == rounded


@given(st.floats(0, 1))
def test_a_share_is_never_told_as_none_or_all_unless_it_is(share: float):
    text = percent(share)
    assert (text == "0 %") == (share == 0)
    assert (text == "100 %") == (share == 1)
    if text[0].isdigit():
        assert float(text.removesuffix(" %")) == pytest.approx(100 * share, abs=0.51)


def test_a_share_that_is_no_number_is_said_to_be_none():
    assert percent(math.nan) == "not a number"


@pytest.mark.parametrize(
    ("matching", "words"),
    [
        (range(8), "in every layer"),
        (range(1, 8), "in every layer but the first"),
        (range(7), "in every layer but the last"),
        ([0, 1, 2, 4, 5, 6, 7], "in every layer but layer 3"),
        ([1, 2, 4, 5, 6, 7], "in every layer but layers 0 and 3"),
        ([5], "in layer 5"),
        ([2, 0], "in layers 0 and 2"),
        ([0, 2, 4, 6], "in 4 of 8 layers"),
        ([], "in no layer"),
    ],
)
def test_layers_are_named_by_the_fewest_words(matching: list[int], words: str):
    assert in_layers(set(matching), range(8)) == words


def test_parts_are_listed():
    assert [listed(list(parts)) for parts in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


def test_means_leave_out_what_is_not_finite():
    assert means([1.0, math.nan, 4.0, 2.0], lambda value: value == 4, lambda value: value) == {False: 1.5, True: 4.0}
    assert math.isnan(mean([math.nan, math.inf]))


def study_with(**tables: object) -> StudyTables:
    """A study of a gated model that has these tables alone."""
    return SimpleNamespace(words=lambda component: component_words(component, is_gated=True), **tables)  # type: ignore[return-value]


class TestZerosByLayer:
    def told(self, *shares: float) -> str:
        rows = [NaturalSparsity(layer, "down_input", 0.0, share, 0) for layer, share in enumerate(shares)]
        nearly = [NaturalSparsity(layer, "down_input", 0.1, 0.99, 0) for layer in range(len(shares))]
        return zeros_finding(study_with(natural=[*rows, *nearly]))

    def test_the_most_and_the_fewest(self):
        assert self.told(0.4, 0.9, 0.2) == (
            "The most zeros are among the inputs of down of layer 1, 90 %; of theirs, layer 2 has the fewest, 20 %."
        )

    def test_hardly_any(self):
        assert self.told(0.001, 0) == "In no layer are as many as 1 % of any component's activations exactly zero."

    def test_nothing_finite(self):
        assert self.told(math.nan) == "No layer has an activation that is a finite number."


class TestThresholdsAmongLayers:
    def told(self, *thresholds: float) -> str:
        rows = [ImportantNeurons(layer, "up", 0.5, cut, 0.5, 8, 6, 0) for layer, cut in enumerate(thresholds)]
        alike = [ImportantNeurons(layer, "ffn_input", 0.5, 0.3, 0.5, 8, 6, 0) for layer in range(len(thresholds))]
        return thresholds_finding(study_with(important=[*alike, *rows], components=["ffn_input", "up"]))

    def test_the_component_that_differs_most(self):
        assert self.told(0.2, 0.05, 0.1) == (
            "Thresholds differ most among the outputs of up: 0.05 in layer 1, 0.2 in layer 0, 4.0 times as much."
        )

    def test_zero_and_nan_are_no_thresholds_to_compare(self):
        assert self.told(0, math.nan, 0.1, 0.2).endswith("0.1 in layer 2, 0.2 in layer 3, 2.0 times as much.")

    def test_one_layer(self):
        assert self.told(0.2).startswith("Thresholds cannot be compared")


class TestMagnitudes:
    def told(self, *thresholds: float) -> str:
        rows = [ImportantNeurons(layer, "up", 0.5, cut, 0.5, 8, 6, 0) for layer, cut in enumerate(thresholds)]
        other = ImportantNeurons(0, "ffn_input", 0.5, 9.0, 0.5, 8, 6, 0)
        facts = SimpleNamespace(sparsity=0.5)
        return magnitudes_finding(study_with(facts=facts, important=[other, *rows]), "up")

    def test_the_bound_of_all_layers_is_rounded_up(self):
        assert self.told(0.2, 0.231, 0.1) == "50 % of the outputs of up are at most 0.24 in every layer."

    def test_a_layer_far_beyond_the_others_is_set_apart(self):
        assert self.told(0.2, 0.23, 0.9) == (
            "50 % of the outputs of up are at most 0.23 in every layer but the last (0.9 in layer 2)."
        )

    def test_a_layer_without_finite_activations_is_not_among_those_bounded(self):
        assert self.told(math.nan, 0.2, 0.1) == (
            "50 % of the outputs of up are at most 0.2 in every layer but the first."
        )

    def test_nothing_finite(self):
        assert self.told(math.nan) == "The outputs of up are finite numbers in no layer."


class TestSweep:
    def told(self, **perplexities: list[float]) -> str:
        """Of each scope, the perplexities at 0, 10, 20... % of sparsity; 2 points more are zero than is asked for."""
        points = [
            SparsityPoint(scope, step / 10, step / 10 + 0.02, step / 20, perplexity, 100)
            for scope, along in perplexities.items()
            for step, perplexity in enumerate(along)
        ]
        return sweep_finding(study_with(sweep=points))

    def test_the_highest_sparsity_that_is_borne_and_what_the_next_costs(self):
        assert self.told(ffn=[10, 10.1, 10.49, 10.6, 30], all=[10, 12]) == (
            "Perplexity is 10.00 with no threshold. It rises by at most 5 % with 22 % of what the feed-forward "
            "networks' projections read (32 % cost 6 %) and 2 % of what all projections read (12 % cost 20 %) at zero."
        )

    def test_all_that_was_tried_is_borne(self):
        assert self.told(ffn_neurons=[20, 20, 19]).endswith(
            "It rises by at most 5 % with 22 % of what is inside the feed-forward networks at zero."
        )

    def test_nothing_was_measured(self):
        assert self.told(all=[math.nan, math.nan]) == "Perplexity could not be measured."


class TestWeights:
    COUNTS = (20, *[0] * 6, 10, 10, *[0] * 54, 60)
    """Of 64 bins: 30 weights in the lowest eighth, 10 in the next bin, 100 in all."""

    def told(self, counts: Sequence[int], not_finite: int = 0) -> str:
        rows = [WeightMagnitudes(0, "q", i / 16, (i + 1) / 16, count) for i, count in enumerate(counts)]
        lost = [WeightMagnitudes(0, "q", math.nan, math.nan, not_finite)] if not_finite else []
        return weights_finding(study_with(weights=[*rows, *lost]))

    def test_the_share_in_the_lowest_eighth(self):
        assert self.told(self.COUNTS) == (
            "30 % of the projections' weights are smaller than an eighth of the largest (4)."
        )

    def test_weights_that_are_not_finite_are_told_and_left_out(self):
        assert self.told(self.COUNTS, not_finite=1000) == (
            "30 % of the projections' weights are smaller than an eighth of the largest (4). "
            "1,000 weights are NaN or infinite."
        )

    def test_no_weight_is_finite(self):
        assert self.told([], not_finite=3) == "No weight is a finite number."


def test_layers_that_match_best_and_worst_leave_unrelated_prompts_out():
    rows = [
        PatternMatch(0, similarity, layer, "down_input", "all", rate, rate, 0.5, 0.5)
        for layer, similarity, rate in [(0, 0.9, 0.8), (0, 0.7, 0.6), (1, 0.9, 0.9), (1, UNRELATED, 0.1)]
    ]
    assert match_rate_finding(study_with(matches=rows)) == (
        "Averaged over variants, patterns match best in layer 1, 90 %, and worst in layer 0, 70 %."
    )
    assert match_rate_finding(study_with(matches=rows[2:])) == "The match rate is 90 % in every layer."
    assert match_rate_finding(study_with(matches=[])) == "Patterns of prompts were not compared."


class TestPrediction:
    def quality(self, source: int, layer: int, recall: float, hot: float = 0.1, previous: float = 0.1):
        scores = {"recall": recall, "precision": recall, "hot_recall": hot, "hot_precision": hot}
        scores |= {"previous_recall": previous, "previous_precision": previous}
        distance = layer - source
        return PredictionQuality(source, layer, "down_input", distance, 0.5, 0.5, **scores, tokens=9)

    def test_what_distance_costs_is_said_of_one_predictor(self):
        rows = [self.quality(1, 1, 0.7), self.quality(0, 0, 0.9), self.quality(0, 1, 0.6), self.quality(0, 2, math.nan)]
        assert distance_finding(study_with(predictions=rows), "down_input") == (
            "At a distance of 1 layer the network of layer 0 foretells the active inputs of down with an F1 of 60 %, "
            "30 percentage points less than at 0."
        )

    def test_one_distance_says_nothing(self):
        rows = [self.quality(0, 0, 0.9)]
        assert distance_finding(study_with(predictions=rows), "down_input").startswith("Nothing can be said")

    def test_baselines_that_are_better_are_named(self):
        assert unbeaten_findings(study_with(predictions=[self.quality(0, 0, 0.5)])) == ""
        assert unbeaten_findings(study_with(predictions=[self.quality(0, 0, 0.5, hot=0.6, previous=0.7)])) == (
            " The hottest neurons are a better guess for the inputs of down. The previous token's set is a better "
            "guess for the inputs of down."
        )
        assert unbeaten_findings(study_with(predictions=[])) == ""

    def test_a_baseline_that_finds_more_by_guessing_more_is_not_better(self):
        row = dataclasses.replace(self.quality(0, 0, 0.6), hot_recall=0.7, hot_precision=0.5)
        assert unbeaten_findings(study_with(predictions=[row])) == ""

    def test_what_is_foretold_is_told_beside_the_baselines(self):
        rows = [self.quality(0, 0, 0.9, 0.5, 0.4), self.quality(0, 1, 0.8, 0.6, 0.3), self.quality(1, 1, 0.1)]
        sentence = (
            "From its state in layer 0, a small network foretells the active inputs of down of layer 0 with an F1 of "
            "90 % and layer 1's with 80 %. Always taking the hottest neurons reaches 50 % and 60 %"
        )
        assert prediction_finding(study_with(predictions=rows), "down_input") == (
            f"{sentence}, the previous token's set 40 % and 30 %."
        )
        alone = [dataclasses.replace(row, previous_recall=math.nan, previous_precision=math.nan) for row in rows]
        assert prediction_finding(study_with(predictions=alone), "down_input") == f"{sentence}."
