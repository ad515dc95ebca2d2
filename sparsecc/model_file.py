"""Read and write ONNX files with external data, trusting nothing that a file says about where its data lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir
from google.protobuf.message import DecodeError

from sparsecc.errors import SparseccError

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
ALIGNMENT = 4096
"""Bytes. Weights start on a page, so that the memory map serves them in place."""
_HUGE_PAGE = 1 << 21
"""Bytes, of x86-64 and aarch64."""
_SMALLEST_EXTERNAL_TENSOR = 1024
"""Bytes. What is smaller stays in the graph file, where a viewer shows it; scalar thresholds do."""
_READ_BYTES = 1 << 24
"""Whole huge pages."""


def load_model(path: Path) -> ir.Model:
    """Load a graph whose weights stay on disk until they are used.

    Raises:
        SparseccError: the file is missing or no ONNX model, or its external data is missing, cut short or outside the
            model's folder.
    """
    if not path.is_file():
        raise SparseccError(f"{path} is missing; export or compile the model again")
    try:
        model = ir.load(path)
        if not len(model.graph):
            raise ValueError("the graph has no node")
        for tensor in _external_tensors(model):
            _check_external_tensor(tensor, path.parent)
    except (DecodeError, ValueError, TypeError, KeyError, OSError, AttributeError, RuntimeError) as error:
        raise SparseccError(f"{path} is not a readable ONNX model; export or compile it again") from error
    return model


class _TensorInLongPieces(ir.ExternalTensor):
    """A tensor in a file that is written to another one in pieces of whole huge pages.

    Where the file system can, Linux keeps in huge pages what is written so, and the memory map then has them: rows of
    weights, which are far apart, are read faster. Copied range by range, as onnx_ir does, it would be in small pages
    until it is read from the disk again.
    """

    __slots__ = ()

    def tofile(self, file: BinaryIO) -> None:
        with Path(self.path).open("rb") as source:
            source.seek(self.offset or 0)
            left = self.nbytes
            while left:
                piece = source.read(min(left, _READ_BYTES))
                if not piece:
                    raise OSError(f"{self.path} ends within tensor {self.name}")
                file.write(piece)
                left -= len(piece)


def save_model(model: ir.Model, directory: Path) -> None:
    """Write ``model.onnx`` and ``model.onnx.data`` into a directory, the weights page-aligned.

    Tensors that fill huge pages come first, so that none of them begins within one; the model keeps that order.
    """
    initializers = model.graph.initializers
    for name, value in sorted(initializers.items(), key=lambda item: not _fills_huge_pages(item[1])):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _in_long_pieces(value.const_value)
        initializers[name] = initializers.pop(name)
    ir.save(
        model,
        directory / MODEL_NAME,
        external_data=DATA_NAME,
        size_threshold_bytes=_SMALLEST_EXTERNAL_TENSOR,
        alignment=ALIGNMENT,
        align_threshold=_SMALLEST_EXTERNAL_TENSOR,
    )


def _fills_huge_pages(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes % _HUGE_PAGE == 0


def _in_long_pieces(tensor: ir.ExternalTensor) -> _TensorInLongPieces:
    return _TensorInLongPieces(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        base_dir=tensor.base_dir,
    )


def model_files(path: Path) -> list[Path]:
    """A graph file and all the data files that it names, in the order of their names."""
    locations = sorted({str(tensor.location) for tensor in _external_tensors(load_model(path))})
    return [path, *(path.parent / location for location in locations)]


def model_sha256(path: Path) -> str:
    """The hash of a model's files, one after the other."""
    digest = hashlib.sha256()
    for file in model_files(path):
        with file.open("rb") as stream:
            while block := stream.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def _external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """Every tensor whose data lies in another file, wherever the model keeps it."""
    tensors: list[object] = [value.const_value for value in model.graph.initializers.values()]
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                tensors += attribute.value if isinstance(attribute.value, Sequence) else [attribute.value]
                if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                    tensors += [value.const_value for value in attribute.as_graph().initializers.values()]
    return [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]


def _check_external_tensor(tensor: ir.ExternalTensor, directory: Path) -> None:
    location = Path(tensor.location)
    file = (directory / location).resolve()
    if location.is_absolute() or not file.is_relative_to(directory.resolve()):
        raise SparseccError(
            f"tensor {tensor.name} keeps its data in {location}, outside the model's folder; export or compile it again"
        )
    if not file.is_file():
        raise SparseccError(f"{directory / location} is missing; copy it beside the model or compile again")
    offset, length = tensor.offset or 0, tensor.length if tensor.length is not None else tensor.nbytes
    if offset < 0 or length != tensor.nbytes or offset + length > file.stat().st_size:
        raise SparseccError(
            f"{directory / location} is cut short or does not fit its model: tensor {tensor.name} ends at byte "
            f"{offset + tensor.nbytes} of {file.stat().st_size}; copy or compile it again"
        )
