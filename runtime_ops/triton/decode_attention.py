"""A Triton kernel for the attention of one token: rotary embedding, the write to the cache and the sum over it.

Flash decoding: each program takes one key-value head and a share of the cached positions, and the last of a head to
finish joins what all found (FlashAttention-2, arXiv 2307.08691, section 3.1, over splits of the keys).
"""

from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from sparsecc.runtime_ops.triton.dependent_launch import launch_options, starts_early
from sparsecc.runtime_ops.triton.early_start import let_next_kernel_start, wait_for_kernel_ahead
from sparsecc.runtime_ops.triton.workspace import workspace

_QUERY_ROWS = 16
"""tl.dot wants that many rows; a key-value head has at most as many query heads."""
_KEYS_AT_ONCE = 64
_MOST_SPLITS = 16
_WARPS = 4


@dataclasses.dataclass(frozen=True)
class Rotation:
    """cosines and sines [most positions, D / 2] that turn the halves of queries and keys."""

    cosines: torch.Tensor
    sines: torch.Tensor


@triton.jit
def _rotated(first, second, cosine, sine, dtype):
    """Both halves of a head, turned, and rounded as they are stored."""
    return (first * cosine - second * sine).to(dtype), (second * cosine + first * sine).to(dtype)


@triton.jit
def _capped(scores, SOFTCAP: tl.constexpr):
    if SOFTCAP > 0:
        scaled = scores / SOFTCAP
        scores = SOFTCAP * (2 / (1 + tl.exp(-2 * scaled)) - 1)
    return scores


@triton.jit
def _cached_tile(cached_key_ptr, cached_value_ptr, start, end, HALF: tl.constexpr, KEYS: tl.constexpr):
    """The keys from ``start`` on as two halves [HALF, KEYS] and the values [KEYS, 2 HALF], 0 from ``end`` on."""
    size: tl.constexpr = 2 * HALF
    keys = start + tl.arange(0, KEYS)
    is_cached = keys < end
    key_at = cached_key_ptr + keys[None, :].to(tl.int64) * size + tl.arange(0, HALF)[:, None]
    first = tl.load(key_at, mask=is_cached[None, :], other=0.0)
    second = tl.load(key_at + HALF, mask=is_cached[None, :], other=0.0)
    value_at = cached_value_ptr + keys[:, None].to(tl.int64) * size + tl.arange(0, size)[None, :]
    return first, second, tl.load(value_at, mask=is_cached[:, None], other=0.0)


@triton.jit
def _joined(
    largest_ptr, weight_ptr, partial_ptr, head, live, ROWS: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr
):
    """What the ``live`` splits of a head found, as one: [ROWS, SIZE]. All is asked for before any is used."""
    row, column = tl.arange(0, ROWS), tl.arange(0, SIZE)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        found = tl.load(
            largest_ptr + (head * SPLITS + split) * ROWS + row,
            mask=row * 0 + split < live,
            other=float("-inf"),
            cache_modifier=".cg",
        )
        largest = tl.maximum(largest, found)
    weight = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, SIZE], tl.float32)
    for split in tl.static_range(SPLITS):
        slot = (head * SPLITS + split) * ROWS + row
        is_live = row * 0 + split < live
        found = tl.load(largest_ptr + slot, mask=is_live, other=float("-inf"), cache_modifier=".cg")
        kept = tl.exp(found - largest)
        weight += kept * tl.load(weight_ptr + slot, mask=is_live, other=0.0, cache_modifier=".cg")
        partial_at = partial_ptr + slot[:, None] * SIZE + column[None, :]
        total += kept[:, None] * tl.load(partial_at, mask=is_live[:, None], other=0.0, cache_modifier=".cg")
    return total / weight[:, None]


@triton.jit
def _decode_attention(
    query_ptr,
    key_ptr,
    value_ptr,
    cached_key_ptr,
    cached_value_ptr,
    position_ptr,
    cosine_ptr,
    sine_ptr,
    out_ptr,
    largest_ptr,
    weight_ptr,
    partial_ptr,
    ticket_ptr,
    capacity,
    positions,
    scale,
    REPEATS: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    ROTATES: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """One split of the positions for one key-value head and its REPEATS query heads, HEADS if rounded up.

    Position, angles and cache were written by kernels that ended before the one ahead began, so they are read before
    the wait for that. Of SPLITS only as many have work as the positions give tiles. A position that is none of
    ``positions`` is taken for the first, of which nothing is cached, and its weight for NaN.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    size: tl.constexpr = 2 * HALF
    dtype = cached_key_ptr.dtype.element_ty
    given = tl.load(position_ptr)
    is_position = (given >= 0) & (given < positions)
    position = tl.where(is_position, given, 0).to(tl.int32)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    share = tl.cdiv(tl.cdiv(position - first, SPLITS), KEYS) * KEYS
    live = tl.maximum(tl.cdiv(position - first, tl.maximum(share, 1)), 1)
    begin = first + split * share
    end = tl.minimum(begin + share, position)
    row, half, column = tl.arange(0, ROWS), tl.arange(0, HALF), tl.arange(0, size)
    is_head = row < REPEATS
    cached_key_ptr += head.to(tl.int64) * capacity * size
    cached_value_ptr += head.to(tl.int64) * capacity * size
    if ROTATES:
        cosine = tl.load(cosine_ptr + position * HALF + half).to(tl.float32)
        sine = tl.load(sine_ptr + position * HALF + half).to(tl.float32)
    cached1, cached2, values = _cached_tile(cached_key_ptr, cached_value_ptr, begin, end, HALF, KEYS)
    if EARLY:
        wait_for_kernel_ahead()
        let_next_kernel_start()
    if split < live:
        query_at = query_ptr + (head * REPEATS + row[:, None]) * size + half[None, :]
        query1 = tl.load(query_at, mask=is_head[:, None], other=0.0).to(tl.float32)
        query2 = tl.load(query_at + HALF, mask=is_head[:, None], other=0.0).to(tl.float32)
        key1 = tl.load(key_ptr + head * size + half).to(tl.float32)
        key2 = tl.load(key_ptr + head * size + HALF + half).to(tl.float32)
        value = tl.load(value_ptr + head * size + column).to(dtype)
        if ROTATES:
            query1, query2 = _rotated(query1, query2, cosine[None, :], sine[None, :], dtype)
            key1, key2 = _rotated(key1, key2, cosine, sine, dtype)
        query1, query2, key1, key2 = query1.to(dtype), query2.to(dtype), key1.to(dtype), key2.to(dtype)
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        weight = tl.zeros([ROWS], tl.float32)
        partial = tl.zeros([ROWS, size], tl.float32)
        if split == 0:
            new_at = position.to(tl.int64) * size
            written = tl.where(is_position, size, 0)
            tl.store(cached_key_ptr + new_at + half, key1, mask=half < written)
            tl.store(cached_key_ptr + new_at + HALF + half, key2, mask=half < written)
            tl.store(cached_value_ptr + new_at + column, value, mask=column < written)
            products = query1.to(tl.float32) * key1.to(tl.float32)[None, :]
            products += query2.to(tl.float32) * key2.to(tl.float32)[None, :]
            largest = _capped(tl.sum(products, 1) * scale, SOFTCAP)
            weight += tl.where(is_position, 1.0, float("nan"))
            partial += value.to(tl.float32)[None, :]
        for start in tl.range(begin, end, KEYS):
            scores = tl.dot(query1, cached1, input_precision=PRECISION)
            scores += tl.dot(query2, cached2, input_precision=PRECISION)
            is_cached = start + tl.arange(0, KEYS) < end
            scores = tl.where(is_cached[None, :], _capped(scores * scale, SOFTCAP), float("-inf"))
            new_largest = tl.maximum(largest, tl.max(scores, 1))
            kept = tl.exp(largest - new_largest)
            weights = tl.exp(scores - new_largest[:, None])
            weight = weight * kept + tl.sum(weights, 1)
            partial = partial * kept[:, None] + tl.dot(weights.to(dtype), values, input_precision=PRECISION)
            largest = new_largest
            cached1, cached2, values = _cached_tile(cached_key_ptr, cached_value_ptr, start + KEYS, end, HALF, KEYS)
        out_at = out_ptr + (head * REPEATS + row[:, None]) * size + column[None, :]
        if live == 1:
            tl.store(out_at, (partial / weight[:, None]).to(out_ptr.dtype.element_ty), mask=is_head[:, None])
        else:
            slot = (head * SPLITS + split) * HEADS + row
            tl.store(largest_ptr + slot, largest, mask=is_head)
            tl.store(weight_ptr + slot, weight, mask=is_head)
            tl.store(partial_ptr + slot[:, None] * size + column[None, :], partial, mask=is_head[:, None])
            tl.debug_barrier()
            ticket = tl.atomic_add(ticket_ptr + head, 1)
            if ticket == live - 1:
                found = _joined(largest_ptr, weight_ptr, partial_ptr, head, live, HEADS, size, SPLITS)
                query_head = tl.arange(0, HEADS)[:, None]
                joined_at = out_ptr + (head * REPEATS + query_head) * size + column[None, :]
                tl.store(joined_at, found.to(out_ptr.dtype.element_ty), mask=query_head < REPEATS)
                tl.store(ticket_ptr + head, 0)


def is_served(heads: int, kv_heads: int, head_size: int) -> bool:
    """Whether the kernel has room for so many query heads of a key-value head, and for heads of that size."""
    is_power = head_size & (head_size - 1) == 0
    is_grouped = kv_heads > 0 and heads % kv_heads == 0
    return is_power and 32 <= head_size <= 256 and is_grouped and 0 < heads // kv_heads <= _QUERY_ROWS


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cached_key: torch.Tensor,
    cached_value: torch.Tensor,
    position: torch.Tensor,
    rotation: Rotation | None,
    *,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    """Attend with one token's query [H D] to itself and all before it: [H D].

    key and value [G D] are written to the cache, two contiguous [1, G, capacity, D], at ``position``, an integer [1] on
    the device. Where it is negative, or the cache or the rotation has no such position, nothing is written and the
    output is NaN. The position, the rotation and what is cached must not come from the launch right before this one,
    whose end is not waited for before they are read.
    Queries and keys are turned by that position first. A ``window`` of 0 sees all keys; scores s become
    softcap * tanh(s / softcap) unless that is 0.
    """
    _, kv_heads, capacity, head_size = cached_key.shape
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    cosines, sines = (rotation.cosines.contiguous(), rotation.sines.contiguous()) if rotation else (query, query)
    out = torch.empty_like(query)
    splits = min(_MOST_SPLITS, triton.cdiv(capacity, _KEYS_AT_ONCE))
    repeats = query.numel() // head_size // kv_heads
    _decode_attention[(kv_heads, splits)](
        query,
        key,
        value,
        cached_key,
        cached_value,
        position,
        cosines,
        sines,
        out,
        *_notes(query.device, kv_heads, head_size),
        capacity,
        min(capacity, cosines.shape[0]) if rotation else capacity,
        scale,
        REPEATS=repeats,
        HEADS=triton.next_power_of_2(repeats),
        ROWS=_QUERY_ROWS,
        HALF=head_size // 2,
        KEYS=_KEYS_AT_ONCE,
        SPLITS=splits,
        WINDOW=window,
        SOFTCAP=softcap,
        ROTATES=rotation is not None,
        PRECISION="ieee",
        EARLY=starts_early(query.device),
        num_warps=_WARPS,
        **launch_options(query.device),
    )
    return out


def _notes(device: torch.device, kv_heads: int, head_size: int) -> tuple[torch.Tensor, ...]:
    """What the splits of a head leave for the last of them, and the tickets that tell which is."""
    rows = kv_heads * _MOST_SPLITS * _QUERY_ROWS
    space = workspace(device)
    found = space.sums(rows * (2 + head_size))[: rows * (2 + head_size)]
    return *found.split((rows, rows, rows * head_size)), space.tickets(kv_heads)
