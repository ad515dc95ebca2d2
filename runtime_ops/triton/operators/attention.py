"""onnxruntime's attention operators: grouped queries, a key-value cache and rotary embedding."""

from __future__ import annotations

import dataclasses
import math

import onnx_ir as ir
import torch
from torch.nn import functional

from sparsecc.errors import SparseccError
from sparsecc.runtime_ops.triton.operators.operator import (
    Kernel,
    Operator,
    Placement,
    has_input,
    integers,
    is_for_triton,
    require,
)

_CACHE = (3, 4)
"""Of GroupQueryAttention's inputs: keys and values before the new ones."""


@dataclasses.dataclass(frozen=True)
class AttentionSetting:
    """What a node says of its attention.

    Attributes:
        scale: multiplies the products of queries and keys; None for one over the root of the head size.
        window: a query sees that many keys, itself included; 0 for all before it.
        softcap: scores s become softcap * tanh(s / softcap); 0 leaves them.
        rotates: whether queries and keys are turned by their positions.
        interleaved: whether the two numbers that are turned together are neighbours, not half a head apart.
    """

    heads: int
    kv_heads: int
    scale: float | None
    window: int
    softcap: float
    rotates: bool
    interleaved: bool


def attention_setting(node: ir.Node) -> AttentionSetting:
    """The attributes of a GroupQueryAttention.

    Raises:
        SparseccError: it asks for a form of attention that the executor does not have.
    """
    attributes = node.attributes
    for name in ("smooth_softmax", "qk_output"):
        require(attributes.get_int(name, 0) <= 0, node, f"has {name}")
    for name in ("k_quant_type", "v_quant_type"):
        require(attributes.get_string(name, "NONE") == "NONE", node, "has a quantized cache")
    for index in range(10, len(node.inputs)):
        require(not has_input(node, index), node, f"has an input {index}, which the executor does not know")
    window = attributes.get_int("local_window_size", -1)
    return AttentionSetting(
        heads=attributes.get_int("num_heads"),
        kv_heads=attributes.get_int("kv_num_heads"),
        scale=attributes.get_float("scale", 0.0) or None,
        window=max(window, 0),
        softcap=attributes.get_float("softcap", 0.0),
        rotates=bool(attributes.get_int("do_rotary", 0)),
        interleaved=bool(attributes.get_int("rotary_interleaved", 0)),
    )


def split_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, S, heads * D] as [B, heads, S, D]."""
    return rows.reshape(*rows.shape[:2], heads, -1).transpose(1, 2)


def join_heads(rows: torch.Tensor) -> torch.Tensor:
    """[B, heads, S, D] as [B, S, heads * D]."""
    return rows.transpose(1, 2).flatten(2)


def rotate(
    heads: torch.Tensor, positions: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    """Turn [B, H, S, D] by positions [B, S] (RoFormer, arXiv 2104.09864, equation 34).

    cosines and sines are [most positions, R / 2]; only the first R of D numbers are turned.
    """
    turned = cosines.shape[-1] * 2
    cosine, sine = cosines[positions].unsqueeze(1), sines[positions].unsqueeze(1)
    wide = heads[..., :turned].to(cosine.dtype)
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else wide.chunk(2, dim=-1)
    pair = (first * cosine - second * sine, second * cosine + first * sine)
    rotated = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return torch.cat([rotated.to(heads.dtype), heads[..., turned:]], dim=-1)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    setting: AttentionSetting,
    query_positions: torch.Tensor | None,
) -> torch.Tensor:
    """Causal attention of query [B, H, S, D] to key and value [B, G, L, D], whose positions are 0 to L - 1.

    ``query_positions`` [B, S] say how far each query may look; None where the queries are at positions 0 to S - 1 of
    as many keys.
    """
    is_plain = query_positions is None and not setting.window and not setting.softcap
    if is_plain:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=setting.scale, enable_gqa=setting.heads != setting.kv_heads
        )
    if query_positions is None:
        query_positions = torch.arange(query.shape[2], device=query.device)[None]
    visible = _visible(query_positions, key.shape[2], setting.window)
    if not setting.softcap:
        return functional.scaled_dot_product_attention(
            query, key, value, visible, scale=setting.scale, enable_gqa=setting.heads != setting.kv_heads
        )
    repeats = setting.heads // setting.kv_heads
    scale = setting.scale or 1 / math.sqrt(query.shape[-1])
    scores = query.float() @ key.float().repeat_interleave(repeats, dim=1).transpose(-1, -2) * scale
    scores = setting.softcap * torch.tanh(scores / setting.softcap)
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
    return (weights @ value.float().repeat_interleave(repeats, dim=1)).to(query.dtype)


def _visible(query_positions: torch.Tensor, keys: int, window: int) -> torch.Tensor:
    """Whether a query sees a key: [B, 1, S, keys]."""
    key_positions = torch.arange(keys, device=query_positions.device)
    distance = query_positions[:, None, :, None] - key_positions
    visible = distance >= 0
    return visible & (distance < window) if window else visible


def _bind_group_query_attention(node: ir.Node, _placement: Placement) -> Kernel:
    setting = attention_setting(node)
    require(all(has_input(node, index) for index in _CACHE), node, "has no key-value cache")
    is_cache_its_own = not _is_cache_given(node)

    def group_query_attention(
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        past_key: torch.Tensor,
        past_value: torch.Tensor,
        last_positions: torch.Tensor,
        total_length: torch.Tensor,
        cosines: torch.Tensor | None = None,
        sines: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        *_absent: None,
    ) -> tuple[torch.Tensor, ...]:
        queries, keys, values = _heads_of(query, key, value, setting)
        length, total = queries.shape[2], integers(total_length)[0]
        is_in_place = past_key.shape[2] >= total
        if is_in_place and queries.shape[0] != 1:
            raise SparseccError("several sequences have caches longer than what they hold; give each by itself")
        if is_in_place and is_cache_its_own:
            past_key, past_value = past_key.clone(), past_value.clone()
        if (
            is_in_place
            and length == 1
            and positions is None
            and _has_kernel(queries, keys, values, (past_key, past_value), last_positions, (cosines, sines), setting)
        ):
            attended = _attend_one(
                queries, keys, values, (past_key, past_value), last_positions, (cosines, sines), setting
            )
            return attended, past_key, past_value
        placed = _positions(last_positions, past_key.shape[2], queries, is_in_place)
        if setting.rotates:
            assert cosines is not None
            assert sines is not None
            turned_by = placed if positions is None else positions
            queries = rotate(queries, turned_by, cosines, sines, setting.interleaved)
            keys = rotate(keys, turned_by, cosines, sines, setting.interleaved)
        if is_in_place:
            present_key, present_value = past_key, past_value
            present_key.index_copy_(2, placed[0], keys.to(past_key.dtype))
            present_value.index_copy_(2, placed[0], values.to(past_value.dtype))
        else:
            present_key = torch.cat([past_key.to(keys.dtype), keys], dim=2) if past_key.shape[2] else keys
            present_value = torch.cat([past_value.to(values.dtype), values], dim=2) if past_value.shape[2] else values
        seen_key, seen_value = present_key[:, :, :total], present_value[:, :, :total]
        starts_at_zero = length == total
        attended = attend(queries, seen_key, seen_value, setting, None if starts_at_zero else placed)
        return join_heads(attended), present_key, present_value

    return group_query_attention


def is_written_in_place(node: ir.Node, index: int) -> bool:
    """Whether a node writes new keys or values into that input, where it is longer than what it holds."""
    is_attention = (node.domain, node.op_type) == ("com.microsoft", "GroupQueryAttention")
    return is_attention and index in _CACHE and _is_cache_given(node)


def _is_cache_given(node: ir.Node) -> bool:
    return all(has_input(node, index) and _is_given(node.inputs[index]) for index in _CACHE)


def _is_given(value: ir.Value | None) -> bool:
    """Whether a value is the caller's, who wants it written; any other may be read elsewhere, or lie in a file."""
    return value is not None and value.is_graph_input() and not value.is_initializer()


def _heads_of(
    query: torch.Tensor, key: torch.Tensor | None, value: torch.Tensor | None, setting: AttentionSetting
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values by head, also where one tensor [B, S, (H + 2 G) D] holds them all."""
    if key is not None and value is not None:
        return (
            split_heads(query, setting.heads),
            split_heads(key, setting.kv_heads),
            split_heads(value, setting.kv_heads),
        )
    packed = split_heads(query, setting.heads + 2 * setting.kv_heads)
    queries, keys, values = torch.split(packed, [setting.heads, setting.kv_heads, setting.kv_heads], dim=1)
    return queries, keys, values


def _has_kernel(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor,
    rotation: tuple[torch.Tensor | None, torch.Tensor | None],
    setting: AttentionSetting,
) -> bool:
    """Whether a Triton kernel computes the attention of one token; what does not fit together is torch's to refuse."""
    if not is_for_triton(queries, keys, values, *cache, position) or position.numel() != 1:
        return False
    from sparsecc.runtime_ops.triton.decode_attention import is_served

    head_size, capacity = queries.shape[-1], cache[0].shape[2]
    head, held = (1, setting.kv_heads, 1, head_size), (1, setting.kv_heads, capacity, head_size)
    return (
        is_served(setting.heads, setting.kv_heads, head_size)
        and queries.shape == (1, setting.heads, 1, head_size)
        and keys.shape == values.shape == head
        and all(part.shape == held and part.is_contiguous() and part.dtype == queries.dtype for part in cache)
        and (not setting.rotates or _turns_whole_heads(rotation, head_size, setting))
    )


def _turns_whole_heads(
    rotation: tuple[torch.Tensor | None, torch.Tensor | None], head_size: int, setting: AttentionSetting
) -> bool:
    """Whether all of a head is turned, in halves."""
    cosines, sines = rotation
    if cosines is None or sines is None or setting.interleaved or not is_for_triton(cosines, sines):
        return False
    return cosines.shape == sines.shape == (cosines.shape[0], head_size // 2) and len(cosines) > 0


def _attend_one(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor,
    rotation: tuple[torch.Tensor | None, torch.Tensor | None],
    setting: AttentionSetting,
) -> torch.Tensor:
    from sparsecc.runtime_ops.triton.decode_attention import Rotation, decode_attention

    cosines, sines = rotation
    attended = decode_attention(
        queries.reshape(-1),
        keys.reshape(-1),
        values.reshape(-1),
        *cache,
        position,
        Rotation(cosines, sines) if setting.rotates and cosines is not None and sines is not None else None,
        scale=setting.scale or 1 / math.sqrt(queries.shape[-1]),
        window=setting.window,
        softcap=setting.softcap,
    )
    return attended.reshape(1, 1, -1)


def _positions(
    last_positions: torch.Tensor, past_length: int, queries: torch.Tensor, is_in_place: bool
) -> torch.Tensor:
    """Where in the sequence the new tokens are: [B or 1, S].

    A cache that is written in place is longer than what it holds: the last position says where it ends.
    """
    steps = torch.arange(queries.shape[2], device=queries.device)
    if not is_in_place:
        return (past_length + steps)[None]
    first = last_positions.to(queries.device).reshape(-1, 1) + 1 - queries.shape[2]
    return first + steps


def _bind_rotary_embedding(node: ir.Node, _placement: Placement) -> Kernel:
    heads = node.attributes.get_int("num_heads", 0)
    interleaved = bool(node.attributes.get_int("interleaved", 0))
    require(not node.attributes.get_int("is_packed_batching", 0), node, "packs batches")
    require(node.attributes.get_float("scale", 1.0) == 1.0, node, "has a scale")

    def rotary_embedding(
        rows: torch.Tensor, positions: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> torch.Tensor:
        length = rows.shape[-2] if rows.dim() == 4 else rows.shape[1]
        if positions.numel() == 1 and positions.dim() == 1:
            positions = (positions + torch.arange(length, device=positions.device))[None]
        positions = positions.to(rows.device)
        if rows.dim() == 4:
            return rotate(rows, positions, cosines, sines, interleaved)
        head_size = rows.shape[-1] // heads if heads else cosines.shape[-1] * 2
        by_head = split_heads(rows, rows.shape[-1] // head_size)
        return join_heads(rotate(by_head, positions, cosines, sines, interleaved))

    return rotary_embedding


def _bind_multi_head_attention(node: ir.Node, _placement: Placement) -> Kernel:
    heads = node.attributes.get_int("num_heads")
    is_causal = bool(node.attributes.get_int("unidirectional", 0))
    scale = node.attributes.get_float("scale", 0.0) or None
    for index in (3, 4, 8, 9):
        require(not has_input(node, index), node, f"has an input {index}, which the executor does not know")
    require(has_input(node, 1) and has_input(node, 2), node, "has packed queries, keys and values")

    def multi_head_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        _bias: None = None,
        _mask: None = None,
        added: torch.Tensor | None = None,
        past_key: torch.Tensor | None = None,
        past_value: torch.Tensor | None = None,
        *_absent: None,
    ) -> tuple[torch.Tensor, ...]:
        queries, keys, values = (split_heads(rows, heads) for rows in (query, key, value))
        if past_key is not None and past_value is not None:
            keys, values = torch.cat([past_key, keys], dim=2), torch.cat([past_value, values], dim=2)
        if is_causal:
            positions = torch.arange(keys.shape[2] - queries.shape[2], keys.shape[2], device=keys.device)
            visible = _visible(positions[None], keys.shape[2], 0)
            unseen = torch.zeros_like(visible, dtype=queries.dtype).masked_fill(~visible, -torch.inf)
            added = unseen if added is None else added + unseen
        attended = functional.scaled_dot_product_attention(queries, keys, values, added, scale=scale)
        return join_heads(attended), keys, values

    return multi_head_attention


OPERATORS = {
    ("com.microsoft", "GroupQueryAttention"): Operator(_bind_group_query_attention, frozenset({7, 8})),
    ("com.microsoft", "MultiHeadAttention"): Operator(_bind_multi_head_attention),
    ("com.microsoft", "RotaryEmbedding"): Operator(_bind_rotary_embedding, frozenset({2, 3})),
}
