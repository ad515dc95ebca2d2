"""What a report says must be so: in numbers, in layers, and where there is nothing to say."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecc.analysis.averages import mean, means
from sparsecc.analysis.wording import in_layers, listed, percent, rounded_up


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
