"""Turn a quantized ONNX decoder back into a dense float32 one, which can be compiled as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx_ir as ir

from sparsecc.artifact import GENAI_CONFIG_NAME, Artifact, copy_companions, open_artifact
from sparsecc.errors import SparseccError
from sparsecc.model_file import MODEL_NAME, load_model, save_model
from sparsecc.passes import (
    CleanUpPass,
    DequantizeGatherPass,
    DequantizeMatMulNBitsPass,
    FoldDequantizeLinearPass,
    FoldTransposePass,
)
from sparsecc.progress import console


def dequantized(artifact: Artifact, directory: Path) -> Artifact:
    """The artifact itself where its weights are float32, else a copy of it with such weights in an empty directory.

    One weight at a time is in memory. A sparse artifact is left to be refused as such.

    Raises:
        SparseccError: a weight is quantized in a way that cannot be read, its data is damaged, or the disk is too
            small for the dense weights.
    """
    model = load_model(artifact.model_path)
    if artifact.ops_library is not None or not _dequantize(model, artifact.model_path):
        return artifact
    _check_room(model, directory)
    with console.status("dequantizing"):
        _save(model, artifact.model_path, directory)
    copy_companions(artifact, directory)
    config = artifact.genai_config
    config = {**config, "model": {**config["model"], "decoder": {**artifact.decoder, "filename": MODEL_NAME}}}
    (directory / GENAI_CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n", "utf-8")
    return open_artifact(directory)


def _dequantize(model: ir.Model, path: Path) -> bool:
    """Rewrite a graph in place and say whether anything in it was quantized."""
    passes = (
        DequantizeMatMulNBitsPass(),
        DequantizeGatherPass(),
        FoldDequantizeLinearPass(),
        FoldTransposePass(),
    )
    try:
        modified = [graph_pass(model).modified for graph_pass in passes]
    except ir.passes.PreconditionError as error:
        raise SparseccError(f"{path}: {error}; export it otherwise or give the checkpoint it was made from") from error
    if any(modified):
        CleanUpPass()(model)
    return any(modified)


def _check_room(model: ir.Model, directory: Path) -> None:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    needed = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    if shutil.disk_usage(directory).free < needed:
        raise SparseccError(f"the disk is full: dequantizing needs {needed / 1e9:.1f} GB in {directory.parent}")


def _save(model: ir.Model, source: Path, directory: Path) -> None:
    """Write the model; only now is the data of weights that lie in the graph file seen to fit their shapes."""
    try:
        save_model(model, directory)
    except (ValueError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise SparseccError(f"{source} is damaged: {reason}; export it again") from error
