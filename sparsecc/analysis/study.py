"""The study of a model: collect its activations once, and ask them everything."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsecc.analysis import (
    collection,
    facts,
    important_neurons,
    magnitude_distribution,
    natural_sparsity,
    predictability,
    prediction,
    sparsity_sweep,
    weight_magnitudes,
)
from sparsecc.analysis.collection import open_activations
from sparsecc.analysis.components import GATE_ACTIVATION, find_components
from sparsecc.analysis.facts import EVALUATION_TOKENS, SAMPLED_TOKENS, STUDY_TOKENS, StudyFacts
from sparsecc.analysis.important_neurons import ImportantNeurons
from sparsecc.analysis.magnitude_distribution import MagnitudeQuantile, SparsityThreshold
from sparsecc.analysis.natural_sparsity import NaturalSparsity
from sparsecc.analysis.predictability import PatternMatch, PromptVariant
from sparsecc.analysis.prediction import PredictionQuality
from sparsecc.analysis.predictor_export import predictor_name, write_predictor
from sparsecc.analysis.report import write_study_report
from sparsecc.analysis.sparsity_sweep import SparsityPoint
from sparsecc.analysis.table import write_table
from sparsecc.analysis.weight_magnitudes import WeightMagnitudes
from sparsecc.artifact import Artifact, check_target, staged_directory
from sparsecc.calibration import require_projections
from sparsecc.compilation import check_apart, open_dense
from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model
from sparsecc.progress import console
from sparsecc.projections import Projection
from sparsecc.text import TokenWindows, load_tokenizer, read_text, shipped_text, token_windows


@dataclasses.dataclass(frozen=True)
class Study:
    """A finished study: its directory, and what was studied."""

    directory: Path
    facts: StudyFacts

    def summary(self) -> dict[str, Any]:
        """What the command prints, as JSON values."""
        return {"study": str(self.directory), **dataclasses.asdict(self.facts)}


def analyze(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    evaluation: str | os.PathLike[str] | None = None,
    tokens: int = STUDY_TOKENS,
    sampled_tokens: int = SAMPLED_TOKENS,
    evaluation_tokens: int = EVALUATION_TOKENS,
    sparsity: float = 0.5,
    seed: int = 0,
    threads: int = 2,
    overwrite: bool = False,
) -> Study:
    """Study a Hugging Face checkpoint, or a dense ONNX decoder.

    An interrupted collection stays beside ``output``, in ``.NAME-activations``; the same call goes on with it.

    Args:
        model: a directory or a hub id.
        output: the directory to make.
        text: the UTF-8 text that activations are collected on; sparsecc's calibration text by default.
        evaluation: the text for perplexity and prompts; sparsecc's evaluation text by default.
        tokens: how much of ``text`` is run.
        sampled_tokens: of how many of these the activations are kept; all of them if there are no more.
        evaluation_tokens: how much of ``evaluation`` is run.
        sparsity: the percentile, as a share in (0, 1), above which an activation counts as important.
        seed: of the sample and of the prompts' variants.
        threads: the size of the intra-op pool.
        overwrite: whether a directory of sparsecc's at ``output`` may be replaced.

    Raises:
        SparseccError: any of these is a mistake, or the disk is full; nothing is written at ``output`` then.
    """
    model, output = os.fspath(model), Path(output)
    source = Path(text) if text else shipped_text("calibration")
    evaluation_source = Path(evaluation) if evaluation else shipped_text("evaluation")
    if not 0 < sparsity < 1:
        raise SparseccError(f"sparsity {sparsity} is not in (0, 1); 0.5 calls the larger half of activations important")
    if min(tokens, sampled_tokens) < 1:
        raise SparseccError("a study needs at least one token, and one that is sampled; ask for more")
    if evaluation_tokens < predictability.LEAST_TOKENS:
        raise SparseccError(f"prompts need {predictability.LEAST_TOKENS} evaluation tokens; ask for more")
    check_apart(Path(model), output)
    check_target(output, overwrite=overwrite)
    for path in (source, evaluation_source):
        read_text(path)
    with (
        staged_directory(output, overwrite=overwrite) as staging,
        tempfile.TemporaryDirectory(prefix=f"{staging.name}-dense-", dir=staging.parent) as scratch,
    ):
        dense = open_dense(model, Path(scratch))
        tokenizer = load_tokenizer(dense.directory)
        texts = _Texts(
            token_windows(source, tokenizer, tokens=tokens, window=min(dense.window, tokens)),
            token_windows(
                evaluation_source, tokenizer, tokens=evaluation_tokens, window=min(dense.window, evaluation_tokens)
            ),
        )
        with _kept_collection(output) as collected:
            activations = collection.collect(
                dense, texts.collected, collected, sampled_tokens=sampled_tokens, seed=seed, threads=threads
            )
            study_facts = _facts(Path(model).resolve().name, dense, texts, activations, sparsity)
            facts.write_facts(staging / facts.FILE, study_facts)
            _write_tables(dense, texts, activations, staging, study_facts, threads=threads)
            write_study_report(staging)
            for name in (collection.FILE, collection.PARTS):
                (collected / name).replace(staging / name)
    return Study(output, study_facts)


@dataclasses.dataclass(frozen=True)
class _Texts:
    collected: TokenWindows
    evaluated: TokenWindows


@contextlib.contextmanager
def _kept_collection(output: Path) -> Iterator[Path]:
    """Where activations are collected: beside the output, so that they outlive an interruption of the study."""
    collected = output.parent / f".{output.name}-activations"
    try:
        yield collected
    except BaseException:
        if any((collected / collection.PARTS).glob("*")):
            console.print(f"what was collected is kept in {collected}; the same command goes on with it", markup=False)
        raise
    finally:
        for directory in (collected / collection.PARTS, collected):
            with contextlib.suppress(OSError):  # only empty ones can be removed
                directory.rmdir()


def _write_tables(
    dense: Artifact, texts: _Texts, activations: Path, directory: Path, study_facts: StudyFacts, *, threads: int
) -> None:
    """Answer every question of the study, each into files of its own."""
    with console.status("looking at weights"):
        weights = weight_magnitudes.weight_magnitudes(_projections(dense))
        write_table(directory / weight_magnitudes.FILE, WeightMagnitudes, weights)
    with open_activations(activations) as opened, console.status("looking at activations"):
        natural = list(natural_sparsity.natural_sparsity(opened))
        distribution, thresholds = magnitude_distribution.magnitude_distribution(opened)
        important, frequencies = important_neurons.important_neurons(opened, study_facts.sparsity)
    write_table(directory / natural_sparsity.FILE, NaturalSparsity, natural)
    write_table(directory / magnitude_distribution.FILE, MagnitudeQuantile, distribution)
    write_table(directory / magnitude_distribution.THRESHOLDS_FILE, SparsityThreshold, thresholds)
    write_table(directory / important_neurons.FILE, ImportantNeurons, important)
    important_neurons.write_frequencies(directory / important_neurons.FREQUENCY_FILE, frequencies)

    token_ids = predictability.similar_prompts(texts.evaluated.ids.ravel(), study_facts.seed)
    patterns = predictability.activation_patterns(dense, token_ids, important, threads=threads)
    predictability.write_patterns(directory / predictability.PATTERNS_FILE, patterns)
    write_table(directory / predictability.FILE, PatternMatch, predictability.pattern_matches(patterns))
    variants = predictability.prompt_variants(patterns, load_tokenizer(dense.directory))
    write_table(directory / predictability.PROMPTS_FILE, PromptVariant, variants)

    qualities: list[PredictionQuality] = []
    with open_activations(activations) as opened:
        for predictor, of_predictor in prediction.predict_active_sets(opened, important, seed=study_facts.seed):
            path = directory / predictor_name(predictor.source_layer)
            write_predictor(path, predictor, model_sha256=study_facts.model_sha256)
            qualities += of_predictor
    write_table(directory / prediction.FILE, PredictionQuality, qualities)

    is_finite = not any(entry.not_finite for entry in natural)
    points = (
        sparsity_sweep.sparsity_sweep(dense, texts.evaluated, thresholds, threads=threads)
        if is_finite
        else sparsity_sweep.unmeasurable(texts.evaluated)
    )
    write_table(directory / sparsity_sweep.FILE, SparsityPoint, points)


def _projections(dense: Artifact) -> list[Projection]:
    return require_projections(load_model(dense.model_path), dense.model_path)


def _facts(name: str, dense: Artifact, texts: _Texts, activations: Path, sparsity: float) -> StudyFacts:
    projections = _projections(dense)
    components = find_components(projections)
    neurons: dict[str, int] = {}
    for component in components:
        neurons[component.name] = max(component.neurons, neurons.get(component.name, 0))
    parameters = Counter[str]()
    for projection in projections:
        parameters[projection.kind] += projection.weight_count
    with open_activations(activations) as opened:
        provenance = opened.provenance
    return StudyFacts(
        model=name,
        model_sha256=provenance.model_sha256,
        text_sha256=provenance.text_sha256,
        evaluation_sha256=texts.evaluated.text_sha256,
        tokens=provenance.tokens,
        window=provenance.window,
        sampled_tokens=provenance.sampled_tokens,
        seed=provenance.seed,
        evaluation_tokens=texts.evaluated.tokens,
        sparsity=sparsity,
        layers=len({component.layer for component in components}),
        is_gated=GATE_ACTIVATION in neurons,
        neurons=neurons,
        parameters=dict(parameters),
        versions=json.loads(provenance.versions),
    )
