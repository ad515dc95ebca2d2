import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.analysis.important_neurons import ImportantNeurons
from sparsecc.analysis.pattern_plots import compared_patterns
from sparsecc.analysis.predictability import (
    LEAST_TOKENS,
    PROMPT_TOKENS,
    PROMPTS,
    SIMILARITIES,
    UNRELATED,
    PatternMatch,
    Patterns,
    activation_patterns,
    extremes,
    pattern_matches,
    prompt_variants,
    read_patterns,
    similar_prompts,
    write_patterns,
)
from sparsecc.errors import SparseccError
from sparsecc.text import load_tokenizer

from ..conftest import MODEL
from .decoders import GATED, NEURONS, random_weights, write_decoder

TEXT = np.random.default_rng(0).integers(0, 50, 1_000)


def patterns_of(active: np.ndarray, token_ids: np.ndarray) -> Patterns:
    """Patterns of one component, from bool [prompts, variants, tokens, neurons]."""
    similarities = (1.0, *SIMILARITIES[: active.shape[1] - 1])
    place = (0, "down_input")
    return Patterns(
        token_ids, similarities, {place: np.packbits(active, axis=-1)}, {place: active.shape[-1]}, {place: 0.5}
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_variants_keep_the_share_of_tokens_that_they_say(seed: int):
    prompts = similar_prompts(TEXT, seed)
    assert prompts.shape == (PROMPTS, 1 + len(SIMILARITIES), PROMPT_TOKENS)
    replaced = prompts != prompts[:, :1]
    expected = [0, *(round((1 - similarity) * PROMPT_TOKENS) for similarity in SIMILARITIES)]
    assert (replaced.sum(axis=-1) == expected).all()
    assert (replaced[:, 1:] >= replaced[:, :-1]).all(), "what one variant replaces, the less similar ones replace too"
    assert np.isin(prompts, TEXT).all()
    np.testing.assert_array_equal(prompts, similar_prompts(TEXT, seed))


def test_prompts_are_taken_from_all_over_the_text():
    prompts = similar_prompts(np.arange(1_000), 0)[:, 0]
    np.testing.assert_array_equal(prompts - prompts[:, :1], np.tile(np.arange(PROMPT_TOKENS), (PROMPTS, 1)))
    assert (prompts[0, 0], prompts[-1, -1]) == (0, 999)


@pytest.mark.parametrize("text", [TEXT[: LEAST_TOKENS - 1], np.full(1000, 7)], ids=["short", "one token"])
def test_a_text_that_gives_no_prompts_is_refused(text: np.ndarray):
    with pytest.raises(SparseccError, match="prompts need a text of at least 720 tokens that are not all the same"):
        similar_prompts(text, 0)


def test_a_pattern_says_which_neurons_exceed_the_threshold(tmp_path: Path):
    decoder = write_decoder(tmp_path / "decoder", GATED, random_weights())
    token_ids = similar_prompts(TEXT, 0)[:2]
    entry = ImportantNeurons(0, "up", 0.5, 0.3, 0.5, NEURONS, 1, 0)
    important = [dataclasses.replace(entry, component=name) for name in ("up", "gate_activation", "down_input")]
    patterns = activation_patterns(decoder, token_ids, important)
    up = random_weights()["embedding"][token_ids].astype(np.float64) @ random_weights()["w_up"]
    clear = np.abs(np.abs(up) - 0.3) > 1e-5
    np.testing.assert_array_equal(patterns.of(0, "up")[clear], (np.abs(up) > 0.3)[clear])
    assert set(patterns.active) == {(0, "gate_activation"), (0, "up"), (0, "down_input")}


@settings(deadline=None)
@given(data=st.data())
def test_matches_are_counted_one_by_one(data: st.DataObject):
    shape = (2, 3, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9)))
    random = np.random.default_rng(data.draw(st.integers(0, 1_000)))
    active = random.random(shape) < data.draw(st.floats(0, 1))
    token_ids = random.integers(0, 2, shape[:3])
    matches = list(pattern_matches(patterns_of(active, token_ids)))
    assert len(matches) == 2 * (2 * 3 + 1)
    for match in matches:
        variant = 0 if match.similarity == UNRELATED else 1 + SIMILARITIES.index(match.similarity)
        prompt = (match.prompt + 1) % 2 if match.similarity == UNRELATED else match.prompt
        equal, overlaps = [], []
        for token in range(shape[2]):
            kept = token_ids[match.prompt, 0, token] == token_ids[match.prompt, variant, token]
            if match.positions == ("replaced" if kept else "kept"):
                continue
            one = {neuron for neuron in range(shape[3]) if active[match.prompt, 0, token, neuron]}
            other = {neuron for neuron in range(shape[3]) if active[prompt, variant, token, neuron]}
            equal.append(1 - len(one ^ other) / shape[3])
            overlaps.append(len(one & other) / len(one | other) if one | other else 1)
        if not equal:
            assert np.isnan([match.match_rate, match.intersection_over_union]).all()
            continue
        assert match.match_rate == pytest.approx(np.mean(equal))
        assert match.intersection_over_union == pytest.approx(np.mean(overlaps))


def test_unrelated_patterns_score_as_chance_says():
    active = np.random.default_rng(0).random((2, 2, 60, 2_000)) < 0.3
    token_ids = np.zeros((2, 2, 60), np.int64)
    for match in pattern_matches(patterns_of(active, token_ids)):
        if match.positions == "all":
            assert match.match_rate == pytest.approx(match.chance_match_rate, abs=0.01)
            assert match.intersection_over_union == pytest.approx(match.chance_intersection_over_union, abs=0.01)
            assert match.chance_match_rate == pytest.approx(0.3**2 + 0.7**2, abs=0.01)


def test_silent_neurons_match_wholly():
    matches = list(pattern_matches(patterns_of(np.zeros((2, 2, 3, 8), np.bool_), np.zeros((2, 2, 3), np.int64))))
    scores = {(match.match_rate, match.intersection_over_union) for match in matches if match.positions == "all"}
    assert scores == {(1.0, 1.0)}


def test_the_worst_and_the_best_are_over_all_positions_of_variants():
    match = PatternMatch(0, 0.9, 0, "up", "all", 0.7, 0.5, 0.5, 0.3)
    best = dataclasses.replace(match, match_rate=0.9)
    others = [
        dataclasses.replace(match, positions="kept", match_rate=1.0),
        dataclasses.replace(match, similarity=UNRELATED, match_rate=0.1),
        dataclasses.replace(match, component="down_input", match_rate=0.2),
    ]
    assert extremes([best, *others, match], "up") == (match, best)


def test_what_a_heatmap_shows_is_what_its_match_rate_counts():
    random = np.random.default_rng(0)
    token_ids = random.integers(0, 3, (2, 3, 20))
    patterns = patterns_of(random.random((2, 3, 20, 13)) < 0.4, token_ids)
    for match in pattern_matches(patterns):
        if match.positions == "all" and match.similarity != UNRELATED:
            same, replaced = compared_patterns(patterns, match)
            assert same.mean() == pytest.approx(match.match_rate)
            variant = 1 + SIMILARITIES.index(match.similarity)
            np.testing.assert_array_equal(replaced, token_ids[match.prompt, 0] != token_ids[match.prompt, variant])


def test_patterns_read_back_and_damage_is_said(tmp_path: Path):
    active = np.random.default_rng(0).random((2, 3, 4, 13)) < 0.5
    patterns = patterns_of(active, np.arange(24).reshape(2, 3, 4))
    path = tmp_path / "patterns.h5"
    write_patterns(path, patterns)
    found = read_patterns(path)
    np.testing.assert_array_equal(found.of(0, "down_input"), active)
    np.testing.assert_array_equal(found.token_ids, patterns.token_ids)
    assert (found.similarities, found.thresholds) == (patterns.similarities, patterns.thresholds)
    with h5py.File(path, "a") as file:
        file["layers/0/down_input"].attrs["neurons"] = 17
    with pytest.raises(SparseccError, match=r"no readable patterns .*; run `sparsecc analyze` again"):
        read_patterns(path)
    path.write_bytes(b"text")
    with pytest.raises(SparseccError, match="no readable patterns"):
        read_patterns(path)


def test_prompts_are_told_in_words():
    tokenizer = load_tokenizer(MODEL)
    ids = np.array(tokenizer.encode("It was a dark night", add_special_tokens=False).ids)
    token_ids = np.stack([[ids, np.roll(ids, 1)]])
    first, second = prompt_variants(patterns_of(np.zeros((1, 2, len(ids), 4), np.bool_), token_ids), tokenizer)
    assert (first.prompt, first.similarity, first.replaced, first.text) == (0, 1.0, 0, "It was a dark night")
    assert (second.similarity, second.replaced) == (SIMILARITIES[0], len(ids))
