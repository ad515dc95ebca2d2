"""Weights as the kernels read them: the file's own bytes, unless they cannot be read in runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from sparsecc.runtime_ops.triton import weight_rows
from sparsecc.runtime_ops.triton.projection import PlainWeight, Weight, unpacked_int4

VECTOR_BYTES = 16
"""What a thread reads at a time."""
_CODES_IN_WORD = 8
_MOST_INT4_BYTES = 4 << 31
"""Words and scales are counted in 32 bits."""


@dataclass(frozen=True)
class Stored:
    """kind of weight_rows.py; bits of a weight; scales by blocks of block_size in a row; columns read in one run."""

    kind: int
    weights: torch.Tensor
    scales: torch.Tensor
    bits: int
    blocks: int
    block_size: int
    run: int


def stored(weight: Weight, widths: tuple[int, ...]) -> Stored:
    """The weight for segments of these widths.

    Columns of one run share a scale, so a run divides the scales' blocks and the places where segments end. int4
    whose runs are shorter than a word of eight codes is unpacked to int8.
    """
    if isinstance(weight, PlainWeight):
        bits = weight.values.element_size() * 8
        return Stored(weight_rows.PLAIN.value, weight.values, weight.values, bits, 0, 1, 1)
    aligned = math.gcd(weight.block_size, *itertools.accumulate(widths))
    blocks = weight.scales.shape[1]
    run = math.gcd(aligned, 2 * VECTOR_BYTES)
    if weight.is_packed and run % _CODES_IN_WORD == 0 and weight.codes.nbytes < _MOST_INT4_BYTES:
        words = weight.codes.view(torch.int32)
        return Stored(weight_rows.INT4.value, words, weight.scales, 4, blocks, weight.block_size, run)
    codes = unpacked_int4(weight.codes) if weight.is_packed else weight.codes
    run = math.gcd(aligned, VECTOR_BYTES)
    return Stored(weight_rows.INT8.value, codes, weight.scales, 8, blocks, weight.block_size, run)
