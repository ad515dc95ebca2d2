"""A dense Llama in plain torch, written to be fast under torch.compile: the peer of the executor."""

import torch
from torch import nn
from torch.nn import functional


class DenseDecoder(nn.Module):
    """One token at a time: static shapes, q, k and v in one matrix, gate and up in one, the cache in place."""

    def __init__(self, shape, capacity):
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden_size)
        self.layers = nn.ModuleList([Layer(shape, capacity) for _ in range(shape.layers)])
        self.norm = nn.RMSNorm(shape.hidden_size, eps=1e-5)
        self.head = nn.Linear(shape.hidden_size, shape.vocabulary, bias=False)
        head_size = shape.hidden_size // shape.heads
        frequencies = 500_000.0 ** (-torch.arange(0, head_size, 2) / head_size)
        angles = torch.outer(torch.arange(capacity), frequencies).repeat(1, 2)
        self.register_buffer("rotary", torch.stack([angles.cos(), angles.sin()]))
        self.register_buffer("positions", torch.arange(capacity), persistent=False)

    def forward(self, token, position):
        """token and position int64 [1] to logits [vocabulary]."""
        hidden = self.embedding(token)[None]
        cosine, sine = self.rotary[:, position]
        visible = (self.positions <= position)[None, None, None]
        for layer in self.layers:
            hidden = layer(hidden, position, cosine, sine, visible)
        return self.head(self.norm(hidden))[0, 0]


class Layer(nn.Module):
    def __init__(self, shape, capacity):
        super().__init__()
        self.heads, self.kv_heads = shape.heads, shape.kv_heads
        self.head_size = shape.hidden_size // shape.heads
        width = self.head_size * (shape.heads + 2 * shape.kv_heads)
        self.qkv = nn.Linear(shape.hidden_size, width, bias=False)
        self.o = nn.Linear(shape.hidden_size, shape.hidden_size, bias=False)
        self.gate_up = nn.Linear(shape.hidden_size, 2 * shape.feed_forward_size, bias=False)
        self.down = nn.Linear(shape.feed_forward_size, shape.hidden_size, bias=False)
        self.attention_norm = nn.RMSNorm(shape.hidden_size, eps=1e-5)
        self.feed_forward_norm = nn.RMSNorm(shape.hidden_size, eps=1e-5)
        cache = torch.zeros(1, shape.kv_heads, capacity, self.head_size)
        self.register_buffer("keys", cache.clone())
        self.register_buffer("values", cache.clone())

    def forward(self, hidden, position, cosine, sine, visible):
        heads = self.qkv(self.attention_norm(hidden)).view(1, 1, -1, self.head_size).transpose(1, 2)
        query, key, value = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        self.keys.index_copy_(2, position, rotated(key, cosine, sine))
        self.values.index_copy_(2, position, value)
        attended = functional.scaled_dot_product_attention(
            rotated(query, cosine, sine), self.keys, self.values, visible, enable_gqa=True
        )
        hidden = hidden + self.o(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.feed_forward_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.down(functional.silu(gate) * up)


def rotated(heads, cosine, sine):
    first, second = heads.chunk(2, dim=-1)
    return (heads * cosine + torch.cat([-second, first], dim=-1) * sine).to(heads.dtype)
