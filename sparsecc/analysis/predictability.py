"""Whether similar prompts activate the same neurons (section V of arXiv 2412.12178)."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sparsecc.analysis.components import FFN_NEURONS, Component, find_components
from sparsecc.analysis.important_neurons import ImportantNeurons, is_important
from sparsecc.artifact import Artifact
from sparsecc.calibration import require_projections
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model
from sparsecc.passes import TapValuesPass
from sparsecc.progress import track
from sparsecc.session import open_session, run_prompt

FILE = "predictability.csv"
PROMPTS_FILE = "prompts.csv"
PATTERNS_FILE = "patterns.h5"
PROMPTS = 12
PROMPT_TOKENS = 60
LEAST_TOKENS = PROMPTS * PROMPT_TOKENS
"""Of a text, so that prompts have nothing in common."""
SIMILARITIES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
POSITIONS = ("all", "kept", "replaced")
UNRELATED = 0.0
"""The similarity that stands for another prompt: the next one, compared token by token, with nothing in common."""


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
        prompt, similarity: the variant, as :class:`PromptVariant` names it, or :data:`UNRELATED`.
        layer, component: see :mod:`sparsecc.analysis.components`.
        positions: the tokens that are compared: ``all``, those that the variant has ``kept``, or those ``replaced``.
            An unrelated prompt is compared in ``all``.
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


@dataclasses.dataclass(frozen=True)
class Patterns:
    """The activation patterns of prompts and their variants: the content of ``patterns.h5``.

    Attributes:
        token_ids: int64 [prompts, variants, tokens]; the first variant is the prompt itself.
        similarities: of the variants to their prompt, 1 for the first.
        active: for each layer and component uint8 [prompts, variants, tokens, ceil(neurons / 8)], one bit a neuron as
            numpy.packbits sets them.
        neurons: how many each component has.
        thresholds: above which a neuron is active.
    """

    token_ids: NDArray[np.int64]
    similarities: Sequence[float]
    active: Mapping[tuple[int, str], NDArray[np.uint8]]
    neurons: Mapping[tuple[int, str], int]
    thresholds: Mapping[tuple[int, str], float]

    def of(self, layer: int, component: str) -> NDArray[np.bool_]:
        """bool [prompts, variants, tokens, neurons]."""
        place = layer, component
        return np.unpackbits(self.active[place], axis=-1, count=self.neurons[place]).astype(np.bool_)


def similar_prompts(text: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Prompts from all over a text of token ids, each followed by its variants: int64 [prompts, variants, tokens].

    A variant replaces tokens at random positions by other tokens of the text, drawn with their frequency. What a
    variant replaces, the less similar ones replace alike, so that they differ in nothing but how much.

    Raises:
        SparseccError: the text is shorter than all prompts, or has but one token to choose from.
    """
    if len(text) < LEAST_TOKENS or len(np.unique(text)) == 1:
        raise SparseccError(f"prompts need a text of at least {LEAST_TOKENS} tokens that are not all the same")
    random = np.random.default_rng(seed)
    starts = np.linspace(0, len(text) - PROMPT_TOKENS, PROMPTS).astype(np.int64)
    prompts = [_with_variants(text[start : start + PROMPT_TOKENS], text, random) for start in starts]
    return np.stack(prompts)


def activation_patterns(
    dense: Artifact, token_ids: NDArray[np.int64], important: Sequence[ImportantNeurons], *, threads: int = 0
) -> Patterns:
    """Run prompts and their variants, int64 [prompts, variants, tokens], and see which neurons are active.

    Raises:
        SparseccError: the model has no projections, or cannot be run.
    """
    model = load_model(dense.model_path)
    components = find_components(require_projections(model, dense.model_path))
    components = [component for component in components if component.name in FFN_NEURONS]
    thresholds = {(entry.layer, entry.component): entry.threshold for entry in important}
    names = [str(component.value.name) for component in components]
    TapValuesPass(names)(model)
    session = open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=threads)
    packed: dict[tuple[int, str], NDArray[np.uint8]] = {
        (component.layer, component.name): np.zeros((*token_ids.shape, -(-component.neurons // 8)), np.uint8)
        for component in components
    }
    places = list(np.ndindex(token_ids.shape[:2]))
    for place in track(places, "comparing prompts", len(places)):
        pieces = list(run_prompt(session, token_ids[place], names, **dense.cache_shape))
        for component, *values in zip(components, *pieces, strict=True):
            key = component.layer, component.name
            packed[key][place] = _packed(values, component, thresholds[key])
    return Patterns(
        token_ids=token_ids,
        similarities=(1.0, *SIMILARITIES),
        active=packed,
        neurons={(component.layer, component.name): component.neurons for component in components},
        thresholds={key: thresholds[key] for key in packed},
    )


def pattern_matches(patterns: Patterns) -> Iterator[PatternMatch]:
    """Compare each prompt with its variants and with the next prompt, layer by layer."""
    for layer, component in patterns.active:
        active = patterns.of(layer, component)
        for prompt, variants in enumerate(active):
            for variant, similarity in enumerate(patterns.similarities[1:], start=1):
                kept = patterns.token_ids[prompt, 0] == patterns.token_ids[prompt, variant]
                for positions, chosen in zip(POSITIONS, (np.ones_like(kept), kept, ~kept), strict=True):
                    scores = _scores(variants[0][chosen], variants[variant][chosen])
                    yield PatternMatch(prompt, similarity, layer, component, positions, *scores)
            scores = _scores(variants[0], active[(prompt + 1) % len(active), 0])
            yield PatternMatch(prompt, UNRELATED, layer, component, POSITIONS[0], *scores)


def prompt_variants(patterns: Patterns, tokenizer: Tokenizer) -> Iterator[PromptVariant]:
    """What each prompt and variant says."""
    for prompt, variants in enumerate(patterns.token_ids):
        for similarity, ids in zip(patterns.similarities, variants, strict=True):
            replaced = int(np.count_nonzero(ids != variants[0]))
            yield PromptVariant(prompt, similarity, replaced, tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def extremes(matches: Sequence[PatternMatch], component: str) -> tuple[PatternMatch, PatternMatch]:
    """The variants and layers whose patterns match worst and best, over all tokens."""
    related = [
        match
        for match in matches
        if match.component == component and match.positions == POSITIONS[0] and match.similarity != UNRELATED
    ]
    return min(related, key=lambda match: match.match_rate), max(related, key=lambda match: match.match_rate)


def write_patterns(path: Path, patterns: Patterns) -> None:
    """Write ``patterns.h5``, made in memory first: the HDF5 library crashes when the disk is full."""
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest") as file:
        file["token_ids"] = patterns.token_ids
        file["similarities"] = np.asarray(patterns.similarities)
        for (layer, component), packed in patterns.active.items():
            dataset = file.create_dataset(f"layers/{layer}/{component}", data=packed, compression="gzip")
            dataset.attrs["neurons"] = patterns.neurons[layer, component]
            dataset.attrs["threshold"] = patterns.thresholds[layer, component]
    path.write_bytes(content.getbuffer())


def read_patterns(path: Path) -> Patterns:
    """Read what :func:`write_patterns` wrote.

    Raises:
        SparseccError: the file is missing, damaged, or something else.
    """
    try:
        with h5py.File(path, "r") as file:
            active, neurons, thresholds = {}, {}, {}
            for layer in sorted(file["layers"], key=int):
                for component in sorted(file["layers"][layer], key=FFN_NEURONS.index):
                    dataset, key = file["layers"][layer][component], (int(layer), component)
                    active[key] = np.asarray(dataset[...], np.uint8)
                    neurons[key], thresholds[key] = int(dataset.attrs["neurons"]), float(dataset.attrs["threshold"])
                    if not 0 < neurons[key] <= active[key].shape[-1] * 8:
                        raise ValueError(f"{dataset.name} has shape {active[key].shape}")
            token_ids = np.asarray(file["token_ids"][...], np.int64)
            similarities = tuple(np.asarray(file["similarities"][...], np.float64).tolist())
            return Patterns(token_ids, similarities, active, neurons, thresholds)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SparseccError(f"{path} holds no readable patterns ({reason}); run `sparsecc analyze` again") from error


def _with_variants(
    prompt: NDArray[np.int64], text: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.int64]:
    order = random.permutation(len(prompt))
    others = np.array([random.choice(text[text != token]) for token in prompt])
    variants = [prompt]
    for similarity in SIMILARITIES:
        variant, replaced = prompt.copy(), order[: round((1 - similarity) * len(prompt))]
        variant[replaced] = others[replaced]
        variants.append(variant)
    return np.stack(variants)


def _packed(values: Sequence[NDArray[np.float32]], component: Component, threshold: float) -> NDArray[np.uint8]:
    rows = np.concatenate([piece.reshape(-1, component.neurons) for piece in values])
    return np.packbits(is_important(rows, threshold), axis=-1)


def _scores(pattern: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Match rate and intersection over union of two patterns [tokens, neurons], and both by chance."""
    if not pattern.size:
        return np.nan, np.nan, np.nan, np.nan
    union = np.count_nonzero(pattern | other, axis=1)
    intersection = np.count_nonzero(pattern & other, axis=1)
    overlap = np.where(union > 0, intersection / np.maximum(union, 1), 1.0)
    share, other_share = float(pattern.mean()), float(other.mean())
    both = share * other_share
    either = share + other_share - both
    return float((pattern == other).mean()), float(overlap.mean()), 1 - either + both, both / either if either else 1.0
