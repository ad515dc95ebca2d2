"""Make a deep model of a shallow one: repeat its last layer, each time with a copy of its weights.

A large model of random weights need not be exported and compiled whole to measure its speed: a few of its layers are
compiled, and the last is repeated. The copies of the weights lie apart in the file, and differ in an element: of
weights that are equal onnxruntime keeps one packed copy, which a cache might hold. So a token reads as many bytes from
memory as it would of weights of its own.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsecc.artifact import (
    GENAI_CONFIG_NAME,
    RECIPE_NAME,
    Artifact,
    copy_companions,
    open_artifact,
    staged_directory,
)
from sparsecc.errors import SparseccError
from sparsecc.initializers import register
from sparsecc.model_file import MODEL_NAME, load_model, save_model
from sparsecc.progress import console

_LAYER = re.compile(r"\blayers\.(\d+)\b")
_DEFAULT_CACHE_NAMES = {
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
    "present_key_names": "present.%d.key",
    "present_value_names": "present.%d.value",
}

Renaming = Callable[[str], str]


def stack_layers(
    artifact: Artifact, output: str | os.PathLike[str], layers: int, *, overwrite: bool = False
) -> Artifact:
    """Write an artifact that goes on, where another ends, with copies of its last layer.

    The copies have the thresholds of the layer that they are copies of. What was measured of the shallow model is not
    said of the deep one.

    Args:
        artifact: dense or sparse, of at least two layers: the first reads the embedding, so it differs.
        output: the directory to make.
        layers: how many layers the new model has.
        overwrite: whether an artifact at ``output`` may be replaced.

    Raises:
        SparseccError: the artifact has too few or too many layers, they are not named and connected alike, or the
            output may not be written.
    """
    depth = _depth(artifact)
    if not 2 <= depth < layers:
        raise SparseccError(f"{artifact.directory} has {depth} layers; two or more can be stacked to more than that")
    with staged_directory(Path(output), overwrite=overwrite) as staging:
        model = load_model(artifact.model_path)
        _require_room(model.graph, depth, layers, staging)
        _repeat_last_layer(model.graph, artifact, depth, layers)
        with console.status("writing weights"):
            save_model(model, staging)
        copy_companions(artifact, staging)
        if artifact.ops_library:
            shutil.copy(artifact.ops_library, staging)
        _write_genai_config(artifact, layers, staging)
        _write_recipe(artifact, depth, layers, staging)
    return open_artifact(output)


def _depth(artifact: Artifact) -> int:
    depth = artifact.decoder.get("num_hidden_layers")
    if not isinstance(depth, int):
        raise SparseccError(f"{artifact.directory / GENAI_CONFIG_NAME} does not say how many layers the model has")
    return depth


def _repeat_last_layer(graph: ir.Graph, artifact: Artifact, depth: int, layers: int) -> None:
    _rename_what_follows(graph, depth, layers)
    last = [node for node in graph if _layer_of(node.name) == depth - 1]
    below = [node for node in graph if _layer_of(node.name) == depth - 2]
    outputs = _named_outputs(last)
    sources = _sources(below, last, outputs, depth)
    readers = [node for node in graph if node not in last]
    top = outputs
    for layer in range(depth, layers):
        copies = {value: top[name] for value, name in sources.items()}
        nodes = _copied_layer(graph, last, copies, _renaming(artifact, depth - 1, layer))
        graph.extend(nodes)
        top = {name: copies[value] for name, value in outputs.items()}
    for node in readers:
        for i, value in enumerate(node.inputs):
            if value is not None and value.name in outputs and value.producer() in last:
                node.replace_input_with(i, top[value.name])
    graph.sort()


def _layer_of(name: str | None) -> int | None:
    found = _LAYER.search(name or "")
    return int(found.group(1)) if found else None


def _renumbered(name: str, old: int, new: int) -> str:
    return _LAYER.sub(lambda found: f"layers.{new}" if int(found.group(1)) == old else found.group(), name)


def _renaming(artifact: Artifact, old: int, new: int) -> Renaming:
    """A function that names after one layer what is named after another, also in the key-value cache."""
    settings = {**_DEFAULT_CACHE_NAMES, **artifact.decoder.get("inputs", {}), **artifact.decoder.get("outputs", {})}
    patterns = [str(settings[key]) for key in _DEFAULT_CACHE_NAMES]
    of_cache = {pattern.replace("%d", str(old)): pattern.replace("%d", str(new)) for pattern in patterns}
    return lambda name: of_cache.get(name) or _renumbered(name, old, new)


def _rename_what_follows(graph: ir.Graph, depth: int, layers: int) -> None:
    """Number what is behind the last layer as if it were one more: the norm, by exports, and a thresholded head."""
    for value in [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        if value.name:
            value.name = _renumbered(value.name, depth, layers)
    for node in graph:
        node.name = _renumbered(node.name or "", depth, layers)
        node.metadata_props.update(_renamed_notes(node.metadata_props, lambda name: _renumbered(name, depth, layers)))


def _named_outputs(nodes: Iterable[ir.Node]) -> dict[str, ir.Value]:
    return {value.name: value for node in nodes for value in node.outputs if value.name}


def _sources(
    below: Sequence[ir.Node], last: Sequence[ir.Node], outputs: Mapping[str, ir.Value], depth: int
) -> dict[ir.Value, str]:
    """What the last layer reads of the one below it, each with the name of what a copy reads of the last layer."""
    sources = {
        value: _renumbered(name, depth - 2, depth - 1)
        for name, value in _named_outputs(below).items()
        if any(node in last for node in value.consumers())
    }
    if not sources or not outputs.keys() >= set(sources.values()):
        raise SparseccError(f"layer {depth - 1} is not named as layer {depth - 2} is, so the model cannot be stacked")
    return sources


def _copied_layer(
    graph: ir.Graph, layer: Sequence[ir.Node], copies: dict[ir.Value, ir.Value], renamed: Renaming
) -> list[ir.Node]:
    """Nodes like those of a layer, with weights and a cache of their own; ``copies`` says and learns what they read."""
    nodes = []
    for node in layer:
        for value in node.inputs:
            if value is not None and value not in copies:
                copies[value] = _copied_input(graph, value, layer, renamed)
        outputs = [
            ir.Value(name=renamed(value.name) if value.name else "", shape=value.shape, type=value.type)
            for value in node.outputs
        ]
        nodes.append(
            ir.node(
                node.op_type,
                [copies[value] if value is not None else None for value in node.inputs],
                {name: attribute.value for name, attribute in node.attributes.items()},
                domain=node.domain,
                name=renamed(node.name or ""),
                outputs=outputs,
                metadata_props=_renamed_notes(node.metadata_props, renamed),
            )
        )
        copies.update(zip(node.outputs, outputs, strict=True))
        for value in filter(ir.Value.is_graph_output, node.outputs):
            graph.outputs.append(copies[value])
    return nodes


def _copied_input(graph: ir.Graph, value: ir.Value, layer: Sequence[ir.Node], renamed: Renaming) -> ir.Value:
    """A copy of a weight or a cache that a layer alone reads; what it shares with other layers stays one."""
    if any(node not in layer for node in value.consumers()):
        return value
    if value.const_value is not None and value.is_initializer():
        name = renamed(str(value.name))
        return register(graph, name, _with_another_element(value.const_value, _layer_of(name) or 0))
    if not value.is_graph_input():
        return value
    copied = ir.Value(name=renamed(str(value.name)), shape=value.shape, type=value.type)
    graph.inputs.append(copied)
    return copied


def _with_another_element(tensor: ir.TensorProtocol, place: int) -> ir.TensorProtocol:
    """A matrix whose element at ``place`` differs by the least that it can, made when it is written; all else as is."""
    if len(tensor.shape) < 2 or tensor.size <= place:
        return tensor

    def changed() -> ir.TensorProtocol:
        array = np.array(tensor.numpy())
        element = array.reshape(-1)[place : place + 1]
        element[:] = np.nextafter(element, -1) if tensor.dtype.is_floating_point() else int(element[0]) ^ 1
        return ir.Tensor(array, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()))

    return ir.LazyTensor(changed, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()))


def _renamed_notes(notes: Mapping[str, str], renamed: Renaming) -> dict[str, str]:
    names = {key: renamed(note) for key, note in notes.items()}
    layer = _layer_of(renamed(f"layers.{notes['layer']}")) if "layer" in notes else None
    return names if layer is None else {**names, "layer": str(layer)}


def _require_room(graph: ir.Graph, depth: int, layers: int, directory: Path) -> None:
    sizes = {value.name: value.const_value.nbytes for value in graph.initializers.values() if value.const_value}
    of_last = sum(size for name, size in sizes.items() if _layer_of(name) == depth - 1)
    needed = sum(sizes.values()) + (layers - depth) * of_last
    if shutil.disk_usage(directory).free < needed:
        raise SparseccError(f"the disk is full: the model needs {needed / 1e9:.1f} GB in {directory.parent}")


def _write_genai_config(artifact: Artifact, layers: int, directory: Path) -> None:
    config = copy.deepcopy(artifact.genai_config)
    config["model"]["decoder"].update(filename=MODEL_NAME, num_hidden_layers=layers)
    (directory / GENAI_CONFIG_NAME).write_text(json.dumps(config, indent=4) + "\n", "utf-8")


def _write_recipe(artifact: Artifact, depth: int, layers: int, directory: Path) -> None:
    document = artifact.recipe_document
    if document is None:
        return
    document.pop("measured", None)
    entries = [entry for entry in document["projections"] if entry["layer"] == depth - 1]
    behind = [entry for entry in document["projections"] if entry["layer"] == depth]
    copies = [_entry_of_copy(entry, depth - 1, layer) for layer in range(depth, layers) for entry in entries]
    kept = [entry for entry in document["projections"] if entry["layer"] != depth]
    document["projections"] = [*kept, *copies, *(_entry_of_copy(entry, depth, layers) for entry in behind)]
    (directory / RECIPE_NAME).write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _entry_of_copy(entry: Mapping[str, Any], old: int, new: int) -> dict[str, Any]:
    threshold = entry["threshold"]
    if isinstance(threshold, dict):
        threshold = {"initializer": _renumbered(threshold["initializer"], old, new)}
    return {**entry, "name": _renumbered(entry["name"], old, new), "layer": new, "threshold": threshold}
