"""The shapes of published models, as their configurations give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Shape:
    """The architecture and the sizes that decide how much a decoder reads and computes.

    Attributes:
        model_type: the architecture by transformers' name, as in ``llama``.
        vocabulary: how many tokens there are, and rows of the embedding.
        ties_embedding: whether the language-model head is the embedding.
    """

    model_type: str
    hidden_size: int
    feed_forward_size: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    ties_embedding: bool

    def configuration(self) -> dict[str, object]:
        """The settings of transformers' configuration class for ``model_type``."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.feed_forward_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.ties_embedding,
            "max_position_embeddings": 4096,
        }


SHAPES: Mapping[str, Shape] = {
    "smollm2-135m": Shape("llama", 576, 1536, 30, 9, 3, 49_152, ties_embedding=True),
    "qwen2.5-0.5b": Shape("qwen2", 896, 4864, 24, 14, 2, 151_936, ties_embedding=True),
    "llama-3.2-1b": Shape("llama", 2048, 8192, 16, 32, 8, 128_256, ties_embedding=True),
    "llama-3-8b": Shape("llama", 4096, 14_336, 32, 32, 8, 128_256, ties_embedding=False),
}
