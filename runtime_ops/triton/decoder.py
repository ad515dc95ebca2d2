"""A decoder on a device: prompts fill a key-value cache in place, and each step decodes one token from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sparsecc.errors import SparseccError
from sparsecc.runtime_ops.triton.cuda_graph import captured
from sparsecc.runtime_ops.triton.executor import GraphExecutor

PIECE_TOKENS = 256
"""How many tokens of a prompt are run at once, which bounds the memory of hidden states and logits.

Pieces are of even length: a short one at the end would be thresholded as decoded tokens are.
"""

_ROWS_OF_LOGITS = 256


class Decoder:
    """One sequence that is continued.

    Every step has the same shapes, since the cache and the attention mask are as long as the sequence may become; how
    long it is stands in tensors on the device. So on a GPU a step is captured once, as a CUDA graph, and replayed.

    Attributes:
        executor: computes the graph.

    Args:
        executor: a decoder's graph, as onnxruntime-genai's model builder makes it.
        capacity: the most tokens, prompt and decoded.
        kv_heads, head_size: of the cache.
        logits_name: the output with the logits [1, S, vocabulary].

    Raises:
        SparseccError: the cache has no room, or none is left for it.
    """

    def __init__(
        self, executor: GraphExecutor, capacity: int, *, kv_heads: int, head_size: int, logits_name: str = "logits"
    ) -> None:
        placement = executor.placement
        if min(capacity, kv_heads, head_size) < 1:
            raise SparseccError(f"a cache of {capacity} tokens, {kv_heads} heads of {head_size}, holds nothing")
        cache_shape = (1, kv_heads, capacity, head_size)
        self.executor = executor
        self._capacity = capacity
        self._logits_name = logits_name
        try:
            self._cache = {
                name: torch.zeros(cache_shape, dtype=placement.dtype, device=placement.device)
                for name in executor.input_names
                if is_cache(name)
            }
            self._mask = torch.zeros((1, capacity), dtype=torch.int64, device=placement.device)
        except RuntimeError as error:
            raise SparseccError(
                f"a cache of {capacity} tokens does not fit the memory of {placement.device}; take fewer"
            ) from error
        self._length = torch.zeros(1, dtype=torch.int64, device=placement.device)
        self._next_token = torch.zeros((1, 1), dtype=torch.int64, device=placement.device)
        self._held = 0
        is_captured = placement.device.type == "cuda"
        self._step = captured(self._decode, self._forget, placement.device) if is_captured else self._decode

    @torch.no_grad()
    def start(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Begin a new sequence with a prompt; the logits [vocabulary] of what follows it.

        Raises:
            SparseccError: the prompt is empty or longer than the capacity.
        """
        if not 0 < len(token_ids) <= self._capacity:
            raise SparseccError(f"a prompt of {len(token_ids)} tokens does not fit a cache of {self._capacity}")
        self._forget()
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self._mask.device)[None]
        pieces = -(-len(token_ids) // PIECE_TOKENS)
        for piece in torch.tensor_split(ids, pieces, dim=1):
            start, self._held = self._held, self._held + piece.shape[1]
            positions = torch.arange(start, self._held, device=self._mask.device)[None]
            logits = self._run(piece, torch.ones_like(self._mask[:, : self._held]), positions)[0, -1]
        self._mask[:, : self._held] = 1
        self._length.fill_(self._held)
        self._next_token.copy_(_likeliest(logits))
        return logits

    @torch.no_grad()
    def step(self, token: int | None = None) -> torch.Tensor:
        """Append a token, the likeliest one by default; the logits [vocabulary] of what follows it.

        The logits are valid until the next step.

        Raises:
            SparseccError: the sequence is as long as the capacity.
        """
        if self._held >= self._capacity:
            raise SparseccError(f"the cache of {self._capacity} tokens is full")
        if token is not None:
            self._next_token.fill_(token)
        self._held += 1
        return self._step()

    @property
    def next_token(self) -> torch.Tensor:
        """The likeliest token after the last step, int64 [1, 1] on the device; it is overwritten by each step."""
        return self._next_token

    def _decode(self) -> torch.Tensor:
        self._mask.index_fill_(1, self._length, 1)
        logits = self._run(self._next_token, self._mask, self._length[None])[0, -1]
        self._length.add_(1)
        self._next_token.copy_(_likeliest(logits))
        return logits

    def _run(self, token_ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        inputs = {"input_ids": token_ids, "attention_mask": mask, "position_ids": positions, **self._cache}
        logits = self.executor.run(inputs, [self._logits_name])[self._logits_name]
        if logits.dim() != 3 or not logits.numel():
            raise SparseccError(f"{self._logits_name} is {list(logits.shape)}, logits are [1, tokens, vocabulary]")
        return logits

    def _forget(self) -> None:
        for held in self._cache.values():
            held.zero_()  # attention multiplies what it masks by 0, which NaN survives
        self._mask.zero_()
        self._length.zero_()
        self._next_token.zero_()
        self._held = 0


def is_cache(input_name: str) -> bool:
    """Whether an input of a decoder holds keys or values."""
    return input_name.startswith("past")


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The index [1] of the largest of logits [vocabulary], in two steps: of one row a GPU takes many times as long.

    Nothing here may ask the device for a number, as indexing with a tensor of no axes does.
    """
    rows = math.gcd(len(logits), _ROWS_OF_LOGITS)
    largest, columns = logits.reshape(rows, -1).max(dim=1)
    row = largest.argmax(dim=0, keepdim=True)
    return row * (len(logits) // rows) + columns.index_select(0, row)
