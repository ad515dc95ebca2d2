"""Export a checkpoint to a dense ONNX decoder, and check that it computes what transformers computes."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparsecc.artifact import RECIPE_NAME, Artifact, is_onnx_directory, open_artifact, staged_directory
from sparsecc.checkpoint import architectures, find_checkpoint, parameter_count
from sparsecc.errors import SparseccError
from sparsecc.progress import console
from sparsecc.recipe import Recipe
from sparsecc.reference_logits import reference_logits
from sparsecc.session import open_session, run_prompt
from sparsecc.text import first_tokens, load_tokenizer
from sparsecc.versions import library_versions

_COMPARED_TOKENS = 128
_OPT = "OPTForCausalLM"


@dataclasses.dataclass(frozen=True)
class _Precision:
    """How weights are stored.

    Attributes:
        logits_tolerance: the largest error of logits that is taken for rounding, relative to the largest logit. Logits
            that have nothing to do with the right ones differ by about 1.
        bytes_per_parameter: on disk, with the scales.
        options: of onnxruntime-genai's model builder.
    """

    logits_tolerance: float
    bytes_per_parameter: float
    options: tuple[str, ...] = ()


_PRECISIONS: Mapping[str, _Precision] = {
    "fp32": _Precision(1e-4, 4, ("--extra_options", "fuse_qkv=false")),
    "int8": _Precision(0.1, 9 / 8),
    "int4": _Precision(0.5, 5 / 8),
}
"""Each with the builder's defaults: blocks of 32 input channels, float32 scales, activations rounded to int8.

A model in fp32 is also what is compiled, so its q, k and v stay three projections, because methods treat them
differently: v needs its small entries most. That costs no speed that could be measured. The quantized ones are what a
compiled model is measured beside, and have q, k and v fused.
"""

EXPORT_WEIGHTS = tuple(_PRECISIONS)


def export(
    model: str | os.PathLike[str], output: str | os.PathLike[str], *, weights: str = "fp32", overwrite: bool = False
) -> Artifact:
    """Export a Hugging Face directory or hub id to a dense artifact.

    Args:
        model: a directory or a hub id.
        output: the directory to make.
        weights: one of :data:`EXPORT_WEIGHTS`.
        overwrite: whether an artifact at ``output`` may be replaced.

    Raises:
        SparseccError: the checkpoint is missing, damaged or of an architecture that cannot be exported, there is no
            such precision, or the output directory may not be written.
    """
    model, output = os.fspath(model), Path(output)
    if weights not in _PRECISIONS:
        raise SparseccError(f"weights cannot be exported as {weights!r}; choose one of {', '.join(EXPORT_WEIGHTS)}")
    if is_onnx_directory(Path(model)):
        raise SparseccError(f"{model} is an ONNX model already; give a Hugging Face checkpoint")
    checkpoint = find_checkpoint(model)
    with staged_directory(output, overwrite=overwrite) as staging:
        build_dense(checkpoint, staging, weights)
    return open_artifact(output)


def build_dense(checkpoint: Path, directory: Path, weights: str = "fp32") -> Artifact:
    """Write a checked dense artifact into an existing directory, its weights one of :data:`EXPORT_WEIGHTS`.

    Raises:
        SparseccError: the architecture cannot be exported, the disk is too small, or the export is wrong.
    """
    precision = _PRECISIONS[weights]
    needed = parameter_count(checkpoint) * precision.bytes_per_parameter
    if shutil.disk_usage(directory).free < needed:
        raise SparseccError(f"the disk is full: exporting needs {needed / 1e9:.1f} GB in {directory.parent}")
    with console.status("exporting to ONNX"):
        _run_exporter(checkpoint, directory, weights)
    recipe = Recipe("dense", 0.0, weights=weights, versions=library_versions())
    (directory / RECIPE_NAME).write_text(recipe.to_json(), "utf-8")
    artifact = open_artifact(directory)
    with console.status("checking the export against transformers"):
        error = logits_error(checkpoint, artifact)
    if not error < precision.logits_tolerance:
        reason = "the exporter does not serve this checkpoint"
        if weights != "fp32":
            reason = f"{weights} is too coarse for this checkpoint, or {reason}, which an export in fp32 would tell"
        raise SparseccError(
            f"the exported model's logits differ from transformers' by {error:.1e} (relative): {reason}"
        )
    return artifact


def logits_error(checkpoint: Path, artifact: Artifact) -> float:
    """The largest difference between onnxruntime's logits and transformers', over the largest logit, on real text."""
    length = min(_COMPARED_TOKENS, artifact.context_length)
    token_ids = first_tokens(load_tokenizer(artifact.directory), length)
    expected = reference_logits(checkpoint.resolve(), token_ids)
    session = open_session(artifact.model_path, ops_library=artifact.ops_library)
    (logits,) = zip(*run_prompt(session, token_ids, [artifact.logits_name], **artifact.cache_shape), strict=True)
    actual = np.concatenate(logits, axis=1)[0]
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _run_exporter(checkpoint: Path, directory: Path, weights: str) -> None:
    """In a process of its own: it gives its memory back, and its chatter stays off standard output.

    The builder must not find the repository that it may be installed in: it would write that one's commit into the
    model, and with the next commit statistics would be those of another model.
    """
    with tempfile.TemporaryDirectory() as cache:
        process = subprocess.run(
            [sys.executable, "-P", "-m", *_exporter(checkpoint, directory, weights, cache)],
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "GIT_DIR": os.devnull},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if process.returncode != 0:
        raise SparseccError(_exporter_failure(checkpoint, process.stdout))


def _exporter(checkpoint: Path, directory: Path, weights: str, cache: str) -> list[str]:
    """The module that exports an architecture, and its arguments."""
    if _OPT in architectures(checkpoint):
        return ["sparsecc.opt_export", str(checkpoint), str(directory), weights]
    builder = ["onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(directory), "-p", weights]
    return [*builder, "-e", "cpu", "-c", cache, *_PRECISIONS[weights].options]


def _exporter_failure(checkpoint: Path, log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reason = lines[-1] if lines else "no message"
    if "No space left" in log:
        return "the disk is full: there is no room for the exported model"
    if reason.startswith("NotImplementedError"):
        return f"{checkpoint}: neither onnxruntime-genai's model builder nor sparsecc exports this architecture"
    return f"{checkpoint} cannot be exported: {reason}"
