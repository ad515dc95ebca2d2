"""What was studied and how: the facts that every table of a study shares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsecc.errors import SparseccError

FILE = "study.json"
FORMAT = "sparsecc-study"
VERSION = 1

STUDY_TOKENS = 8_192
"""How much of a text is run to collect activations, unless it is said otherwise."""
SAMPLED_TOKENS = 2_048
"""Of how many of these the activations are kept."""
EVALUATION_TOKENS = 2_048
"""How much of the other text perplexity is measured on, once for each point."""


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


def write_facts(path: Path, facts: StudyFacts) -> None:
    document = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(facts)}
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", "utf-8")


def read_facts(path: Path) -> StudyFacts:
    """Read what :func:`write_facts` wrote.

    Raises:
        SparseccError: the file is missing, damaged, of another version, or something else.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if (document.pop("format"), document.pop("version")) != (FORMAT, VERSION):
            raise ValueError("it is of another format or version")
        return StudyFacts(**document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SparseccError(f"{path} says nothing of a study ({error}); run `sparsecc analyze` again") from error
