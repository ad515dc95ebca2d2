"""The main job: from a checkpoint to a sparse model that runs, with what was gained and lost beside it."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sparsecc.artifact import (
    GENAI_CONFIG_NAME,
    RECIPE_NAME,
    REPORT_NAME,
    Artifact,
    check_target,
    copy_companions,
    is_onnx_directory,
    open_artifact,
    scratch_beside,
    staged_directory,
)
from sparsecc.benchmark import Speed, benchmark
from sparsecc.calibration import calibrate_on_demand, calibrate_once, require_projections, require_statistics_of
from sparsecc.calibration_statistics import Statistics, StatisticsOnDemand, read_statistics, write_statistics
from sparsecc.checkpoint import find_checkpoint
from sparsecc.dense_export import build_dense
from sparsecc.errors import SparseccError
from sparsecc.evaluation import Evaluation, evaluate
from sparsecc.fusion import fuse, unfuse
from sparsecc.methods import DEFAULT_METHOD, DEFAULT_SPARSITY, METHODS, CalibratedModel
from sparsecc.methods.r_sparse import r_sparse_of_rank
from sparsecc.model_file import MODEL_NAME, load_model, model_sha256, save_model
from sparsecc.projections import budgeted_projections, projections_and_head
from sparsecc.quantized_decoder import dequantized
from sparsecc.recipe import WEIGHTS, Recipe, read_recipe_document, recipe_from_document
from sparsecc.report import write_report
from sparsecc.restructuring import restructured
from sparsecc.session import OPS_LIBRARY_NAME, ops_library_path
from sparsecc.sparsify import sparsify
from sparsecc.text import DEFAULT_TOKENS, TokenWindows, load_tokenizer, read_text, shipped_text, token_windows
from sparsecc.versions import library_versions
from sparsecc.weight_storage import storage_passes

_STATISTICS_SUFFIXES = {".h5", ".hdf5"}
_GIVE_WHAT_SEARCH_WROTE = "give a recipe that `sparsecc search` wrote"


@dataclasses.dataclass(frozen=True)
class Measurements:
    """What a compiled model does, beside the dense model it was made from, in the same run."""

    dense: Evaluation
    sparse: Evaluation
    dense_speed: Speed
    sparse_speed: Speed
    read_bandwidth_gb_s: float


@dataclasses.dataclass(frozen=True)
class Compilation:
    """A compiled model: the artifact, the recipe that made it, and what was measured, if it was."""

    artifact: Artifact
    recipe: Recipe
    measurements: Measurements | None

    @property
    def report(self) -> Path:
        return self.artifact.directory / REPORT_NAME

    def summary(self) -> dict[str, Any]:
        """What the command prints, as JSON values."""
        return {
            "artifact": str(self.artifact.directory),
            "report": str(self.report),
            "method": self.recipe.method,
            "target_sparsity": self.recipe.target_sparsity,
            "weights": self.recipe.weights,
            "measured": _measured_to_json(self.measurements),
        }


def compile_model(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    method: str | None = None,
    sparsity: float | None = None,
    recipe: str | os.PathLike[str] | None = None,
    weights: str = "fp32",
    rank: int | None = None,
    calibration: str | os.PathLike[str] | None = None,
    evaluation: str | os.PathLike[str] | None = None,
    tokens: int = DEFAULT_TOKENS,
    threads: int = 2,
    measure: bool = True,
    overwrite: bool = False,
) -> Compilation:
    """Compile a Hugging Face checkpoint, or a dense ONNX decoder, to a self-contained sparse artifact.

    Args:
        model: a directory or a hub id.
        output: the directory to make.
        method: a name of :data:`sparsecc.methods.METHODS`; ``best`` by default.
        sparsity: the share of the weights of projections to skip, in [0, 1); a half by default.
        recipe: a file that ``sparsecc search`` wrote for this model, in place of method and sparsity.
        weights: what weights are stored as, one of :data:`sparsecc.recipe.WEIGHTS`.
        rank: of the low-rank branches of the method ``r-sparse``, in place of a search for the best ranks.
        calibration: a UTF-8 text, or statistics that ``sparsecc calibrate`` wrote; sparsecc's own text by default.
        evaluation: the text that quality is measured on; sparsecc's own by default.
        tokens: how much of each text is read.
        threads: the size of the intra-op pool.
        measure: whether to measure perplexity and speed of both models.
        overwrite: whether an artifact at ``output`` may be replaced.

    Raises:
        SparseccError: any of these is a mistake; nothing is written then.
    """
    model, output = os.fspath(model), Path(output)
    calibration_source = Path(calibration) if calibration else shipped_text("calibration")
    evaluation_text = Path(evaluation) if evaluation else shipped_text("evaluation")
    if recipe:
        _require_alone(method, sparsity, rank, calibration_source)
    method = DEFAULT_METHOD if method is None else method
    sparsity = DEFAULT_SPARSITY if sparsity is None else sparsity
    check_choices(method, sparsity, weights)
    _check_rank(method, rank)
    given = _read_recipe(Path(recipe)) if recipe else None
    check_apart(Path(model), output)
    check_target(output, overwrite=overwrite)
    for source in (calibration_source, evaluation_text):
        if source.suffix not in _STATISTICS_SUFFIXES:
            read_text(source)
    with staged_directory(output, overwrite=overwrite) as staging, _scratch_directory(staging, "dense") as scratch:
        dense = open_dense(model, Path(scratch))
        windows = token_windows(evaluation_text, load_tokenizer(dense.directory), tokens=tokens, window=dense.window)
        text = None if calibration_source.suffix in _STATISTICS_SUFFIXES else calibration_source
        if given is None:
            statistics = load_statistics(dense, calibration_source, tokens=tokens, threads=threads)
            chosen = make_recipe(
                dense,
                statistics,
                method,
                sparsity,
                text,
                rank=rank,
                weights=weights,
                threads=threads,
                scratch=Path(scratch),
            )
        else:
            chosen = _require_recipe_of(dense, given, Path(recipe or ""))
        chosen = dataclasses.replace(chosen, weights=weights)
        sparse = write_sparse_artifact(dense, chosen, staging, text, threads=threads)
        measurements = _measure(dense, sparse, windows, threads) if measure else None
        if measurements:
            _write_recipe(sparse, chosen, measurements)
        write_report(chosen, measurements, Path(model).resolve().name, staging / REPORT_NAME)
    return Compilation(open_artifact(output), chosen, measurements)


def calibrate_to_file(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    tokens: int = DEFAULT_TOKENS,
    threads: int = 2,
    overwrite: bool = False,
) -> Statistics:
    """Calibrate a checkpoint or a dense ONNX decoder and write the statistics to an HDF5 file.

    Raises:
        SparseccError: the model or the text is unusable, or ``output`` exists and may not be replaced.
    """
    model, output = os.fspath(model), Path(output)
    source = Path(text) if text else shipped_text("calibration")
    _check_statistics_target(output, overwrite=overwrite)
    read_text(source)
    with scratch_beside(output) as scratch:
        dense = open_dense(model, scratch)
        statistics = calibrate_once(dense, _calibration_windows(dense, source, tokens), threads=threads)
        staged = scratch / "statistics.h5"
        write_statistics(statistics, staged)
        staged.replace(output)
    return statistics


def open_dense(model: str, scratch: Path) -> Artifact:
    """The dense artifact to compile: the model itself if it is one, else an export of it into ``scratch``.

    A quantized ONNX decoder is dequantized into ``scratch``.

    Raises:
        SparseccError: the model cannot be read or exported.
    """
    if is_onnx_directory(Path(model)):
        return dequantized(open_artifact(Path(model)), scratch)
    return build_dense(find_checkpoint(model), scratch)


def load_statistics(dense: Artifact, source: Path, *, tokens: int, threads: int) -> Statistics | StatisticsOnDemand:
    """Statistics of a dense model: read from an HDF5 file, or gathered on a text once a method asks for them.

    Raises:
        SparseccError: the file or the text is unusable, or the statistics are another model's.
    """
    if source.suffix in _STATISTICS_SUFFIXES:
        statistics = read_statistics(source)
        if statistics.calibration.model_sha256 != model_sha256(dense.model_path):
            raise SparseccError(f"{source} holds statistics of another model; run `sparsecc calibrate` on this one")
        projections = require_projections(load_model(dense.model_path), dense.model_path)
        require_statistics_of(projections, statistics, source)
        return statistics
    return calibrate_on_demand(dense, _calibration_windows(dense, source, tokens), threads=threads)


def _calibration_windows(dense: Artifact, text: Path, tokens: int) -> TokenWindows:
    return token_windows(text, load_tokenizer(dense.directory), tokens=tokens, window=dense.window)


def make_recipe(
    dense: Artifact,
    statistics: Statistics | StatisticsOnDemand,
    method: str,
    sparsity: float,
    text: Path | None = None,
    *,
    rank: int | None = None,
    weights: str = "fp32",
    threads: int = 0,
    scratch: Path | None = None,
) -> Recipe:
    """What a method of :data:`sparsecc.methods.METHODS` decides for a dense model.

    ``rank`` is that of all low-rank branches, in place of a search for the best ones. ``text`` is what a method runs
    the model on; sparsecc's own calibration text by default. ``weights`` is what the model's will be stored as.
    ``scratch`` is a directory for files as large as the model.
    """
    projections = require_projections(load_model(dense.model_path), dense.model_path)
    text = text or shipped_text("calibration")
    model = CalibratedModel(dense, projections, statistics, text, threads, scratch, weights)
    recipe = METHODS[method](model, sparsity) if rank is None else r_sparse_of_rank(model, sparsity, rank)
    return dataclasses.replace(recipe, versions=library_versions())


def write_sparse_artifact(
    dense: Artifact, recipe: Recipe, directory: Path, text: Path | None = None, *, threads: int = 0
) -> Artifact:
    """Rewrite a dense model by a recipe into an empty directory, with all that running it needs beside it.

    ``text`` is what weights are quantized by where that takes a text; sparsecc's own calibration text by default.
    """
    with (
        _scratch_directory(directory, "restructured") as restructuring,
        _scratch_directory(directory, "weights") as scratch,
    ):
        dense = restructured(dense, recipe, Path(restructuring))
        model = load_model(dense.model_path)
        require_projections(model, dense.model_path)
        storage = storage_passes(
            dense,
            budgeted_projections(model.graph, {entry.name for entry in recipe.projections}),
            recipe.weights,
            text or shipped_text("calibration"),
            Path(scratch),
            by_output={
                entry.name for entry in recipe.projections if entry.selected_by == "gate" and entry.kind == "up"
            },
            threads=threads,
        )
        sparsify(model, recipe, storage)
        fuse(model)
        save_model(model, directory)
        copy_companions(dense, directory)
        shutil.copy(ops_library_path(), directory)
        _write_genai_config(dense, directory)
    artifact = open_artifact(directory)
    _write_recipe(artifact, recipe, None)
    return artifact


def _write_recipe(artifact: Artifact, recipe: Recipe, measurements: Measurements | None) -> None:
    document = recipe.to_json(_threshold_places(artifact), _measured_to_json(measurements))
    (artifact.directory / RECIPE_NAME).write_text(document, "utf-8")


def _threshold_places(artifact: Artifact) -> dict[str, str]:
    """The initializer that holds each projection's threshold; projections may share one."""
    model = load_model(artifact.model_path)
    unfuse(model)
    projections = projections_and_head(model.graph)
    thresholds = {projection.name: projection.threshold for projection in projections}
    return {name: str(node.inputs[1].name) for name, node in thresholds.items() if node and node.inputs[1]}


def _write_genai_config(dense: Artifact, directory: Path) -> None:
    config = copy.deepcopy(dense.genai_config)
    decoder = config["model"]["decoder"]
    decoder["filename"] = MODEL_NAME
    decoder.setdefault("session_options", {})["custom_ops_library"] = OPS_LIBRARY_NAME
    (directory / GENAI_CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n", "utf-8")


def _require_alone(method: str | None, sparsity: float | None, rank: int | None, calibration: Path) -> None:
    if any(given is not None for given in (method, sparsity, rank)):
        raise SparseccError(
            "a recipe says method, sparsity and rank itself; leave out --method, --sparsity and --rank, or --recipe"
        )
    if calibration.suffix in _STATISTICS_SUFFIXES:
        raise SparseccError(
            "a recipe needs no statistics; leave out --calibration, or give the text that weights are quantized by"
        )


def _check_rank(method: str, rank: int | None) -> None:
    if rank is not None and method != "r-sparse":
        raise SparseccError(f"method {method} takes no rank; leave out --rank or choose --method r-sparse")


def check_choices(
    method: str, sparsity: float, weights: str = "fp32", *, methods: Collection[str] = tuple(METHODS)
) -> None:
    """Refuse a method, a sparsity or a storage of weights that there is not. ``methods`` are those that serve.

    Raises:
        SparseccError: there is not.
    """
    if method not in methods:
        nearest = difflib.get_close_matches(method, methods, n=1, cutoff=0.5)
        guess = f"did you mean {nearest[0]}? " if nearest else ""
        raise SparseccError(f"there is no method {method!r}; {guess}choose one of {', '.join(methods)}")
    if not 0 <= sparsity < 1:
        raise SparseccError(f"sparsity {sparsity} is not in [0, 1); 0.5 skips half of the weight rows")
    if weights not in WEIGHTS:
        raise SparseccError(f"weights cannot be stored as {weights!r}; choose one of {', '.join(WEIGHTS)}")


def _read_recipe(path: Path) -> Recipe:
    """The recipe in a file of its own, with all its thresholds.

    Raises:
        SparseccError: the file is no recipe, or leaves thresholds to a compiled model's graph.
    """
    if not path.is_file():
        raise SparseccError(f"{path} does not exist; {_GIVE_WHAT_SEARCH_WROTE}")
    document = read_recipe_document(path, remedy=_GIVE_WHAT_SEARCH_WROTE)
    try:
        places = [isinstance(entry["threshold"], dict) for entry in document["projections"]]
    except (KeyError, TypeError) as error:
        raise SparseccError(f"{path} is damaged ({error!r}); {_GIVE_WHAT_SEARCH_WROTE}") from error
    if document.get("restructured"):
        raise SparseccError(
            f"{path} lacks what the method {document.get('method')} rewrote weights by; compile with --method instead"
        )
    if any(places):
        raise SparseccError(f"{path} leaves its thresholds to the model beside it; {_GIVE_WHAT_SEARCH_WROTE}")
    return recipe_from_document(document, {}, remedy=_GIVE_WHAT_SEARCH_WROTE)


def _require_recipe_of(dense: Artifact, recipe: Recipe, path: Path) -> Recipe:
    if recipe.calibration is None or recipe.calibration.model_sha256 != model_sha256(dense.model_path):
        raise SparseccError(f"{path} is a recipe of another model; run `sparsecc search` on this one")
    return recipe


def check_apart(model: Path, output: Path) -> None:
    """The output must not replace the model, nor lie in it, nor hold it.

    Raises:
        SparseccError: it would.
    """
    model, output = model.resolve(), output.resolve()
    if model.exists() and (model.is_relative_to(output) or output.is_relative_to(model)):
        raise SparseccError(f"{output} and the model {model} overlap; choose another output directory")


def _check_statistics_target(output: Path, *, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite and output.is_file():
        raise SparseccError(f"{output} exists already; add --overwrite to replace it")
    try:
        read_statistics(output)
    except SparseccError as error:
        raise SparseccError(f"{output} exists and is no statistics file; choose another output") from error


def _scratch_directory(beside: Path, content: str) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=f"{beside.name}-{content}-", dir=beside.parent)


def _measure(dense: Artifact, sparse: Artifact, windows: TokenWindows, threads: int) -> Measurements:
    speeds, bandwidth = benchmark([dense, sparse], threads=threads)
    return Measurements(
        dense=evaluate(dense, windows, threads=threads),
        sparse=evaluate(sparse, windows, threads=threads),
        dense_speed=speeds[0],
        sparse_speed=speeds[1],
        read_bandwidth_gb_s=bandwidth,
    )


def _measured_to_json(measurements: Measurements | None) -> dict[str, Any] | None:
    if measurements is None:
        return None
    return {
        "perplexity": {"dense": measurements.dense.perplexity, "sparse": measurements.sparse.perplexity},
        "tokens": measurements.sparse.tokens,
        "sparsity": measurements.sparse.sparsity,
        "sparsity_by_kind": dict(measurements.sparse.sparsity_by_kind),
        "decode_tokens_per_s": {
            "dense": measurements.dense_speed.decode_tokens_per_s,
            "sparse": measurements.sparse_speed.decode_tokens_per_s,
        },
        "read_bandwidth_gb_s": measurements.read_bandwidth_gb_s,
    }
