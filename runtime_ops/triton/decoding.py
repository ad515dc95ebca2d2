"""Open a decoder's model for decoding on a device."""

from __future__ import annotations

import onnx_ir as ir
import torch

from sparsecc.errors import SparseccError
from sparsecc.passes import FuseSwiGLUPass
from sparsecc.runtime_ops.triton.decoder import Decoder, is_cache
from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.runtime_ops.triton.fuse_gated_linear import FuseGatedLinearPass
from sparsecc.runtime_ops.triton.fuse_norms import FuseNormsPass
from sparsecc.runtime_ops.triton.fuse_selected_linear import FuseSelectedLinearPass
from sparsecc.runtime_ops.triton.operators.attention import is_written_in_place
from sparsecc.runtime_ops.triton.positions_first import PositionsFirstPass
from sparsecc.runtime_ops.triton.read_every_channel import ReadEveryChannelPass

_PASSES = (
    PositionsFirstPass,
    ReadEveryChannelPass,
    FuseSelectedLinearPass,
    FuseSwiGLUPass,
    FuseGatedLinearPass,
    FuseNormsPass,
)


def require_gpu() -> torch.device:
    """The GPU to compute on.

    Raises:
        SparseccError: there is none, or no PyTorch for it, or no Triton.
    """
    if torch.version.cuda is None:
        raise SparseccError("this PyTorch computes on CPUs only; install one with CUDA, or run with --device cpu")
    if not torch.cuda.is_available():
        raise SparseccError("no CUDA GPU is available; run with --device cpu")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise SparseccError("Triton is not installed; `pip install triton`, or run with --device cpu") from error
    return torch.device("cuda")


def open_decoder(
    model: ir.Model,
    capacity: int,
    *,
    kv_heads: int,
    head_size: int,
    logits_name: str = "logits",
    device: torch.device | str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> Decoder:
    """A decoder with room for ``capacity`` tokens, its graph fused for speed. The model is not changed.

    Raises:
        SparseccError: the executor cannot compute a node of the model, or the model keeps its cache in another way.
    """
    _require_caches_in_place(model.graph)
    executor = GraphExecutor(model, device, dtype, [graph_pass() for graph_pass in _PASSES])
    return Decoder(executor, capacity, kv_heads=kv_heads, head_size=head_size, logits_name=logits_name)


def _require_caches_in_place(graph: ir.Graph) -> None:
    """Refuse a cache that attention would read and not write: each step would forget the ones before it."""
    for value in graph.inputs:
        reads = value.uses()
        if is_cache(str(value.name)) and reads and not any(is_written_in_place(*read) for read in reads):
            raise SparseccError(f"{value.name} is no cache that attention writes in place; run with --device cpu")
