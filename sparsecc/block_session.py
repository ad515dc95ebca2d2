"""Decoder blocks that run alone, on what the dense model gives them, under any thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError, runtime_failures
from sparsecc.model_file import load_model
from sparsecc.passes import ExposeThresholdsPass, ShipFunctionsPass, TapValuesPass, threshold_input_name
from sparsecc.progress import track
from sparsecc.projections import PASS_THROUGH_OPS, Projection, find_projections
from sparsecc.session import empty_cache, open_session, ops_library_path, piece_inputs, run_prompt
from sparsecc.text import TokenWindows
from sparsecc.threshold_session import Thresholds

_RESIDUAL_SUMS = {"Add", "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"}
_KEEP_ALL = np.zeros(1, np.float32)


@dataclasses.dataclass(frozen=True)
class Block:
    """A decoder layer, from what its projections read to the residual stream that it leaves.

    Attributes:
        layer: its index, from 0.
        projections: those of the layer, in graph order.
        inputs: the values that flow in: the hidden states before it, the attention mask's lengths and the like.
        outputs: the terms of the residual sum that the block leaves, as far as it computes them.
    """

    layer: int
    projections: tuple[Projection, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


class BlockSession:
    """A loaded block, what flowed into it on a text, and what the dense block made of that."""

    def __init__(self, model: bytes, dense: Artifact, block: Block, states: Sequence[Path], threads: int) -> None:
        self.projections = block.projections
        self._outputs = [str(value.name) for value in block.outputs]
        self._states = states
        self._session = open_session(
            model, data_folder=dense.directory, ops_library=ops_library_path(), threads=threads
        )
        self._dense = list(self._run({}))

    def error(self, thresholds: Thresholds) -> float:
        """The Euclidean norm of what thresholds change in the block's output, over all tokens.

        A projection without a threshold runs dense.
        """
        total = 0.0
        for dense, sparse in zip(self._dense, self._run(thresholds), strict=True):
            total += float(np.square(dense - sparse, dtype=np.float64).sum())
        return float(np.sqrt(total))

    def _run(self, thresholds: Thresholds) -> Iterator[NDArray[np.float32]]:
        """The block's output float32 [1, T, D] for each window."""
        settings = {threshold_input_name(p.name): thresholds.get(p.name, _KEEP_ALL) for p in self.projections}
        for path in self._states:
            with runtime_failures("onnxruntime cannot run a block of the model"):
                outputs = self._session.run(self._outputs, {**load_file(path), **settings})
            yield np.asarray(sum(outputs))


def block_sessions(dense: Artifact, windows: TokenWindows, scratch: Path, *, threads: int) -> Iterator[BlockSession]:
    """The blocks of a dense model, one after the other, on a text.

    ``windows`` are no longer than ``PIECE_TOKENS``, so that each is run at once and nothing is in the key-value cache.
    What flows into them is kept in ``scratch``: tokens x channels x 8 bytes for each block.

    Raises:
        SparseccError: the model adds no block's result to a residual stream.
    """
    model = load_model(dense.model_path)
    ExposeThresholdsPass()(model)
    blocks = find_blocks(model.graph)
    states = _dense_states(dense, blocks, windows, scratch, threads=threads)
    for block in track(blocks, "allocating", len(blocks)):
        files = [folder / f"{block.layer}.safetensors" for folder in states]
        yield BlockSession(block_model(model, block), dense, block, files, threads)


def find_blocks(graph: ir.Graph) -> list[Block]:
    """The blocks of a decoder, the first layer first.

    Raises:
        SparseccError: there is a layer whose down projection leads to no residual sum.
    """
    projections = sorted(find_projections(graph), key=lambda projection: projection.layer)
    return [_block(layer, tuple(members)) for layer, members in groupby(projections, lambda member: member.layer)]


def _block(layer: int, projections: tuple[Projection, ...]) -> Block:
    last = projections[-1].node.outputs[0]
    terms = _residual_terms(last)
    if terms is None:
        raise SparseccError(f"layer {layer} adds its result to no residual stream; choose a method without blocks")
    starts = [projection.threshold or projection.node for projection in projections]
    before = _reached(filter(None, (value.producer() for value in terms)), _previous_nodes)
    inside = {node for node in _reached(starts, _next_nodes) if node in before}
    used = dict.fromkeys(value for node in before if node in inside for value in node.inputs if value is not None)
    inputs = [value for value in used if _flows_in(value, inside)]
    own_settings = {threshold_input_name(projection.name) for projection in projections}
    return Block(
        layer,
        projections,
        tuple(value for value in inputs if value.name not in own_settings),
        tuple(value for value in terms if value.producer() in inside),
    )


def _residual_terms(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The two sides of the sum that a value reaches through nothing but bias, norm or reshaping."""
    for node in value.consumers():
        sides = [side for side in node.inputs[:2] if side is not None and side.const_value is None]
        if node.op_type in _RESIDUAL_SUMS and len(sides) == 2:
            return sides[0], sides[1]
        if node.op_type in PASS_THROUGH_OPS and (terms := _residual_terms(node.outputs[0])):
            return terms
    return None


def _reached(starts: Iterable[ir.Node], neighbours: Callable[[ir.Node], Iterable[ir.Node]]) -> dict[ir.Node, None]:
    """All nodes that are reached from some, those included, in the order in which they are found."""
    reached = dict.fromkeys(starts)
    waiting = list(reached)
    while waiting:
        for node in neighbours(waiting.pop()):
            if node not in reached:
                reached[node] = None
                waiting.append(node)
    return reached


def _next_nodes(node: ir.Node) -> Iterable[ir.Node]:
    return node.successors()


def _previous_nodes(node: ir.Node) -> Iterable[ir.Node]:
    return node.predecessors()


def _flows_in(value: ir.Value, inside: Container[ir.Node]) -> bool:
    return value.const_value is None and value.producer() not in inside


def block_model(model: ir.Model, block: Block) -> bytes:
    """A block of a model with exposed thresholds as a model of its own, serialized; weights stay where they lie."""
    settings = [threshold_input_name(projection.name) for projection in block.projections]
    graph = ir.convenience.extract(
        model.graph, [*(str(value.name) for value in block.inputs), *settings], block.outputs
    )
    graph.opset_imports.update(model.opset_imports)
    alone = ir.Model(graph, ir_version=model.ir_version)
    ShipFunctionsPass()(alone)
    return bytes(ir.to_proto(alone).SerializeToString())


def _dense_states(
    dense: Artifact, blocks: Sequence[Block], windows: TokenWindows, scratch: Path, *, threads: int
) -> list[Path]:
    """A folder for each window, with the named inputs of each block in a file of its own.

    Inputs whose type the graph does not say get the one that they have.
    """
    model = load_model(dense.model_path)
    computed = [str(value.name) for block in blocks for value in block.inputs if value.producer() is not None]
    computed = list(dict.fromkeys(computed))
    TapValuesPass(computed)(model)
    session = open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=threads)
    folders = []
    for index, ids in enumerate(track(windows.ids, "running the dense model", len(windows.ids))):
        folders.append(scratch / str(index))
        folders[-1].mkdir()
        ((*values,),) = run_prompt(session, ids, computed, **dense.cache_shape)
        known: dict[str, NDArray[Any]] = dict(zip(computed, values, strict=True))
        known.update(piece_inputs(session, ids[None], 0))
        known.update(empty_cache(session, **dense.cache_shape))
        for block in blocks:
            states = {str(value.name): known[str(value.name)] for value in block.inputs}
            for value in block.inputs:
                value.type = value.type or ir.TensorType(ir.DataType.from_numpy(states[str(value.name)].dtype))
            save_file(states, folders[-1] / f"{block.layer}.safetensors")
    return folders
