"""Whether similar prompts activate the same neurons (section V of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses

FILE = "predictability.csv"
PROMPTS_FILE = "prompts.csv"
PATTERNS_FILE = "patterns.h5"
PROMPTS = 12
PROMPT_TOKENS = 60
SIMILARITIES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
POSITIONS = ("all", "kept", "replaced")


@dataclasses.dataclass(frozen=True)
class PromptVariant:
    """A prompt and what was made of it. The prompt itself has similarity 1.

    Attributes:
        prompt: its number, from 0.
        similarity: the share of its tokens that a variant keeps.
        replaced: how many tokens are others, at how many positions.
        text: the tokens, decoded.
    """

    prompt: int
    similarity: float
    replaced: int
    text: str


@dataclasses.dataclass(frozen=True)
class PatternMatch:
    """How far the activation pattern of a variant is that of its prompt.

    A pattern says for each token and neuron whether it is active: abs(x) > the threshold of
    :class:`sparsecc.analysis.important_neurons.ImportantNeurons`. ``patterns.h5`` holds all of them.

    Attributes:
        prompt, similarity: the variant, as :class:`PromptVariant` names it.
        layer, component: see :mod:`sparsecc.analysis.components`.
        positions: the tokens that are compared: ``all``, those that the variant has ``kept``, or those ``replaced``.
        match_rate: the share of (token, neuron) pairs that are active in both or inactive in both.
        intersection_over_union: of a token's two sets of active neurons, the mean over tokens; 1 if both are empty.
        chance_match_rate, chance_intersection_over_union: what two unrelated patterns with as many active neurons
            would score.
    """

    prompt: int
    similarity: float
    layer: int
    component: str
    positions: str
    match_rate: float
    intersection_over_union: float
    chance_match_rate: float
    chance_intersection_over_union: float
