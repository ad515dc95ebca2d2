"""What the weights of a compiled model are stored as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx_ir as ir

from sparsecc.passes import HalveWeightsPass, QuantizedTensors, QuantizeWeightsPass
from sparsecc.progress import track
from sparsecc.projections import Projection
from sparsecc.quantization.finite_weight import finite_weight
from sparsecc.quantization.quantized_weight import BLOCK_SIZE, QuantizedWeight
from sparsecc.quantization.round_to_nearest import round_to_nearest
from sparsecc.quantization.scratch_tensors import ScratchTensors

_BITS = {"int8": 8, "int4": 4}
_TYPES = {8: ir.DataType.INT8, 4: ir.DataType.INT4}


def storage_passes(projections: list[Projection], weights: str, scratch: Path) -> tuple[ir.passes.InPlacePass, ...]:
    """The passes that store the weights of a sparse model as one of :data:`sparsecc.recipe.WEIGHTS`.

    Quantized weights lie in the directory ``scratch`` until the model is written.

    Raises:
        SparseccError: a weight is not finite.
    """
    if weights == "fp32":
        return ()
    if weights == "fp16":
        return (HalveWeightsPass(),)
    tensors = ScratchTensors(scratch)
    quantized = _rounded(projections, _BITS[weights])
    stored = {name: _stored(name, weight, tensors) for name, weight in track(quantized, "quantizing", len(projections))}
    return (QuantizeWeightsPass(stored),)


def _rounded(projections: Iterable[Projection], bits: int) -> Iterator[tuple[str, QuantizedWeight]]:
    for projection in projections:
        yield projection.name, round_to_nearest(finite_weight(projection), bits)


def _stored(name: str, weight: QuantizedWeight, tensors: ScratchTensors) -> QuantizedTensors:
    return QuantizedTensors(
        tensors.add(f"{name}/Wq", weight.integers, _TYPES[weight.bits]),
        tensors.add(f"{name}/scales", weight.scales, ir.DataType.FLOAT16),
        BLOCK_SIZE,
    )
