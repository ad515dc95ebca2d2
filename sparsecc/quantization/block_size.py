"""How many consecutive weights share a scale.

Scales lie apart from their rows, so reading and rounding them costs more time than their bytes: int8 and int4 in blocks
of 64 are added from memory 7 to 15 % faster than in blocks of 32.
"""

from __future__ import annotations

VOCABULARY_BLOCK_SIZE = 32
"""Of a row of the head or the embedding, which has to be whole blocks."""

_CACHED_WEIGHTS = 1 << 25
"""So many of int4 are 16 MiB."""


def block_size(bits: int, projection_weights: int) -> int:
    """The block of each projection of a model that has so many weights in projections.

    int8 loses nothing by 64, and int4 neither where the model is large. A small one loses up to half a percent of
    perplexity, and gains little: as int4 it stays in the third-level cache. 2 and 3 bits, which no graph stores, lose
    more and have 32.
    """
    return 64 if bits == 8 or (bits == 4 and projection_weights > _CACHED_WEIGHTS) else 32
