"""What the weights of a compiled model are stored as."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.passes import (
    HalveAddedPass,
    HalveVocabularyPass,
    HalveWeightsPass,
    PackedTensors,
    QuantizedTensors,
    QuantizeVocabularyPass,
    QuantizeWeightsPass,
)
from sparsecc.progress import track
from sparsecc.projections import Projection
from sparsecc.quantization.block_size import VOCABULARY_BLOCK_SIZE, block_size
from sparsecc.quantization.finite_weight import require_finite, weight_array
from sparsecc.quantization.gptq import ErrorFeedback, gptq, gptq_by_output
from sparsecc.quantization.input_covariance import input_covariances
from sparsecc.quantization.packed_matrix import packed_blocks
from sparsecc.quantization.quantized_weight import QuantizedWeight
from sparsecc.quantization.round_to_nearest import round_to_nearest
from sparsecc.quantization.scratch_tensors import ScratchTensors
from sparsecc.text import load_tokenizer, token_windows

QUANTIZATION_TOKENS = 16_384
"""How much of a text int4 is rounded by."""
_TYPES = {8: ir.DataType.INT8, 4: ir.DataType.INT4}

Quantized = Iterator[tuple[str, QuantizedWeight]]
"""The names of projections and their weights, one at a time."""


def storage_passes(
    dense: Artifact,
    projections: Sequence[Projection],
    weights: str,
    text: Path,
    scratch: Path,
    *,
    by_output: Collection[str] = (),
    threads: int = 0,
) -> tuple[ir.passes.InPlacePass, ...]:
    """The passes that store the weights of a sparse model as one of :data:`sparsecc.recipe.WEIGHTS`.

    int8 is rounded to the nearest. int4 is rounded by GPTQ with what the projections are given on ``text``, except for
    the embedding, and a head that is none of ``projections`` since it is read whole. Of the projections named in
    ``by_output``, whose outputs are skipped, blocks run along the input channels. What a method added beside the
    projections is float16 then. Quantized weights lie in the directory ``scratch`` until the model is written.

    Raises:
        SparseccError: a weight is not finite, or the text is unusable.
    """
    tensors = ScratchTensors(scratch)
    if weights == "fp16":
        return HalveVocabularyPass(), HalveAddedPass(), HalveWeightsPass()
    if weights == "int8":
        return _quantizing_passes(_rounded(projections, by_output), projections, 8, tensors)
    if weights == "int4":
        quantized = _calibrated(dense, projections, text, by_output, threads)
        return _quantizing_passes(quantized, projections, 4, tensors)
    return ()


def _quantizing_passes(
    quantized: Quantized, projections: Sequence[Projection], bits: int, tensors: ScratchTensors
) -> tuple[ir.passes.InPlacePass, ...]:
    stored = {name: _stored(name, weight, tensors) for name, weight in track(quantized, "quantizing", len(projections))}

    def pack(name: str, matrix: NDArray[np.float32]) -> PackedTensors:
        require_finite(matrix, name)
        weight = round_to_nearest(matrix, bits, VOCABULARY_BLOCK_SIZE)
        packed = tensors.add(f"{name}/packed", packed_blocks(weight), ir.DataType.UINT8)
        scales = tensors.add(f"{name}/scales", weight.scales.astype(np.float32), ir.DataType.FLOAT)
        return PackedTensors(packed, scales, bits, weight.block_size)

    return QuantizeWeightsPass(stored), HalveAddedPass(), QuantizeVocabularyPass(pack, VOCABULARY_BLOCK_SIZE)


def _rounded(projections: Sequence[Projection], by_output: Collection[str]) -> Quantized:
    block = block_size(8, _weight_count(projections))
    for projection in projections:
        weight = weight_array(projection)
        yield projection.name, round_to_nearest(weight.T if projection.name in by_output else weight, 8, block)


def _calibrated(
    dense: Artifact, projections: Sequence[Projection], text: Path, by_output: Collection[str], threads: int
) -> Quantized:
    """By GPTQ; two int4 share a byte, so a weight whose rows have an odd length is int8."""
    tokenizer = load_tokenizer(dense.directory)
    windows = token_windows(text, tokenizer, tokens=QUANTIZATION_TOKENS, window=dense.window)
    channels = {str(projection.input.name): projection.channels for projection in projections}
    weights = _weight_count(projections)
    for hidden_state, covariance in input_covariances(dense, channels, windows, threads=threads):
        feedback = ErrorFeedback(covariance)
        for projection in projections:
            if str(projection.input.name) == hidden_state:
                is_by_output = projection.name in by_output
                bits = 8 if (projection.channels if is_by_output else projection.outputs) % 2 else 4
                quantize = gptq_by_output if is_by_output else gptq
                yield projection.name, quantize(weight_array(projection), feedback, bits, block_size(bits, weights))


def _weight_count(projections: Sequence[Projection]) -> int:
    return sum(projection.weight_count for projection in projections)


def _stored(name: str, weight: QuantizedWeight, tensors: ScratchTensors) -> QuantizedTensors:
    return QuantizedTensors(
        tensors.add(f"{name}/Wq", weight.integers, _TYPES[weight.bits]),
        tensors.add(f"{name}/scales", weight.scales, ir.DataType.FLOAT16),
        weight.block_size,
    )
