"""Show a model's graph in Netron, each projection by itself, with what was done to it in the nodes' metadata."""

from __future__ import annotations

import contextlib
import logging
import socketserver
from types import ModuleType

import onnx_ir as ir

from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError
from sparsecc.fusion import unfuse
from sparsecc.model_file import load_model
from sparsecc.passes import CleanUpPass
from sparsecc.passes.merge_products import MERGED

HOST = "localhost"
_LARGEST_SHOWN_TENSOR = 1 << 16
"""Bytes. Thresholds are smaller, weights larger."""
_CUT_LOCATION = "columns-of-a-merged-weight"


def viewable_graph(artifact: Artifact) -> bytes:
    """The graph of an artifact as an ONNX file, unfused, with thresholds but without weights.

    Weights stay where they are: the file names the artifact's data. Columns that unfusing would cut out of a merged
    weight are nowhere on disk, so only their shape and type are told.

    Raises:
        SparseccError: the model is damaged.
    """
    model = load_model(artifact.model_path)
    unfuse(model)
    CleanUpPass()(model)
    for node in model.graph:
        node.metadata_props.pop(MERGED, None)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.const_value = _without_weights(value.const_value)
    return bytes(ir.to_proto(model).SerializeToString())


def serve_graph(artifact: Artifact, *, port: int = 0, open_browser: bool = True) -> str:
    """Serve Netron with an artifact's graph on this machine alone, from memory, until :func:`wait` returns.

    Args:
        artifact: the model.
        port: where to listen; 0 takes a free one.
        open_browser: whether to show the page in the user's browser.

    Returns:
        The page's address.

    Raises:
        SparseccError: the model is damaged, Netron is not installed, or the port is taken.
    """
    netron = _netron()
    graph = viewable_graph(artifact)
    # Browsers connect before they ask for anything; threads that wait for that must not outlive Ctrl+C.
    socketserver.ThreadingMixIn.daemon_threads = True
    try:
        # Netron finds external data beside the path that it is given.
        host, chosen = netron.serve(str(artifact.model_path), bytearray(graph), (HOST, port), browse=open_browser)
    except (OSError, OverflowError) as error:
        raise SparseccError(f"cannot listen on port {port} ({error}); give another --port") from error
    return f"http://{host}:{chosen}"


def wait() -> None:
    """Serve until the user interrupts."""
    with contextlib.suppress(KeyboardInterrupt):
        _netron().wait()


def _netron() -> ModuleType:
    try:
        import netron
    except ImportError as error:
        raise SparseccError("viewing needs Netron; run `pip install 'sparsecc[view]'`") from error
    logging.getLogger("netron.server").setLevel(logging.WARNING)
    module: ModuleType = netron
    return module


def _without_weights(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A small tensor with its values, any other as a reference to where they lie."""
    if tensor.nbytes <= _LARGEST_SHOWN_TENSOR:
        return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    if isinstance(tensor, ir.ExternalTensor):
        return tensor
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(_CUT_LOCATION, None, None, tensor.dtype, shape=shape, name=tensor.name or "")
