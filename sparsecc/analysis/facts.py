"""What was studied and how: the facts that every table of a study shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

FILE = "study.json"
FORMAT = "sparsecc-study"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class StudyFacts:
    """The content of study.json.

    Attributes:
        model: the name of the model's directory.
        model_sha256: of the dense ONNX model's files.
        text_sha256: of the text that activations were collected on.
        evaluation_sha256: of the text that perplexity was measured on and prompts were taken from.
        tokens: of the first text, run through the model in windows of ``window``.
        sampled_tokens: of them, whose activations were kept; chosen with ``seed``.
        evaluation_tokens: of the second text.
        sparsity: the percentile, as a share, above which an activation counts as important.
        layers: how many.
        is_gated: whether the feed-forward networks have a gate.
        neurons: how many each component has, by its name; the largest over the layers.
        parameters: how many weights the projections have, by kind.
        versions: of the libraries.
    """

    model: str
    model_sha256: str
    text_sha256: str
    evaluation_sha256: str
    tokens: int
    window: int
    sampled_tokens: int
    seed: int
    evaluation_tokens: int
    sparsity: float
    layers: int
    is_gated: bool
    neurons: Mapping[str, int]
    parameters: Mapping[str, int]
    versions: Mapping[str, str]
