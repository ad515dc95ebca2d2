"""A sparse decoder of a real model's shape, in the operators that `sparsecc compile` writes, with random weights.

The weights are drawn on the GPU when they are read, so that nothing is stored.
"""

import numpy as np
import onnx_ir as ir
import torch

from sparsecc.operators import DOMAIN
from sparsecc.quantization.block_size import VOCABULARY_BLOCK_SIZE

EPSILON = 1e-5
CONTEXT = 4096
PROJECTION_BLOCK_SIZE = 64
CODE_DEVIATION = 4.32
"""Of integers drawn evenly from -7 to 7."""


class RandomDecoder:
    """An ONNX decoder of one shape whose weights are drawn when they are read."""

    def __init__(self, shape, weights, thresholds, device):
        self.shape, self.weights, self.thresholds, self.device = shape, weights, thresholds, device
        self.head_size = shape.hidden_size // shape.heads
        self.graph = ir.Graph([], [], nodes=[], name="decoder", opset_imports={"": 22, "com.microsoft": 1, DOMAIN: 1})
        self.build()
        self.model = ir.Model(self.graph, ir_version=10)

    def build(self):
        hidden_size, layers, vocabulary = self.shape.hidden_size, self.shape.layers, self.shape.vocabulary
        ids = self.input("input_ids", ir.DataType.INT64, [1, "s"])
        mask = self.input("attention_mask", ir.DataType.INT64, [1, "t"])
        one = self.integers("one", [1])
        last = self.node("Sub", [self.node("ReduceSum", [mask, one], keepdims=0), one])
        last = self.node("Cast", [last], to=int(ir.DataType.INT32))
        total = self.node("Gather", [self.node("Shape", [mask]), self.integers("axis", 1)], axis=0)
        total = self.node("Cast", [total], to=int(ir.DataType.INT32))
        angles = np.outer(np.arange(CONTEXT), 500_000.0 ** (-2 * np.arange(self.head_size // 2) / self.head_size))
        rotary = [
            self.constant(f"{name}_cache", ir.Tensor(function(angles).astype(np.float32)))
            for name, function in (("cos", np.cos), ("sin", np.sin))
        ]
        hidden = self.embedding(ids, vocabulary, hidden_size)
        normed = self.node("SimplifiedLayerNormalization", [hidden, self.ones("norm")], epsilon=EPSILON, axis=-1)
        for layer in range(layers):
            attended = self.attention(layer, normed, last, total, rotary)
            normed, hidden = self.add_and_norm(hidden, attended, f"layers.{layer}.post_attention")
            fed = self.feed_forward(layer, normed)
            normed, hidden = self.add_and_norm(hidden, fed, f"layers.{layer + 1}.input")
        self.graph.outputs.append(self.head(normed, vocabulary, hidden_size))

    def attention(self, layer, normed, last, total, rotary):
        shape, name = self.shape, f"layers.{layer}.attn"
        kv_width = shape.kv_heads * self.head_size
        widths = self.integers("qkv_widths", [shape.hidden_size, kv_width, kv_width])
        qkv = self.projection(f"{name}.qkv", normed, "norm", shape.hidden_size, shape.hidden_size + 2 * kv_width)
        queries, keys, values = self.nodes("Split", [qkv, widths], 3, axis=-1)
        cache_shape = [1, shape.kv_heads, "past", self.head_size]
        past = [
            self.input(f"past_key_values.{layer}.{part}", ir.DataType.FLOAT, cache_shape) for part in ("key", "value")
        ]
        attended, *present = self.nodes(
            "GroupQueryAttention",
            [queries, keys, values, *past, last, total, *rotary],
            3,
            domain="com.microsoft",
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
        )
        self.graph.outputs.extend(present)
        return self.projection(f"{name}.o", attended, "attended", shape.hidden_size, shape.hidden_size)

    def feed_forward(self, layer, normed):
        shape, name = self.shape, f"layers.{layer}.mlp"
        gate_up = self.projection(f"{name}.gate_up", normed, "norm", shape.hidden_size, 2 * shape.feed_forward_size)
        gated = self.node("SwiGLU", [gate_up], domain=DOMAIN)
        return self.projection(f"{name}.down", gated, "gated", shape.feed_forward_size, shape.hidden_size)

    def projection(self, name, hidden, state, channels, columns):
        threshold = self.constant(f"{state}/T", ir.Tensor(np.array([self.thresholds[state]], np.float32)))
        if self.weights == "int4":
            codes = self.drawn(f"{name}/Wq", ir.DataType.INT4, [channels, columns])
            scale = 1 / (CODE_DEVIATION * channels**0.5)
            scales = self.filled(f"{name}/scales", np.float16, [channels, columns // PROJECTION_BLOCK_SIZE], scale)
            product = self.node(
                "SparseLinearNBits",
                [hidden, threshold, codes, scales],
                domain=DOMAIN,
                name=f"{name}/SparseLinearNBits",
                max_sparse_rows=4,
                block_size=PROJECTION_BLOCK_SIZE,
            )
        else:
            weight = self.drawn(f"{name}/W", ir.DataType.FLOAT, [channels, columns], channels**-0.5)
            product = self.node(
                "SparseLinear",
                [hidden, threshold, weight],
                domain=DOMAIN,
                name=f"{name}/SparseLinear",
                max_sparse_rows=4,
            )
        return product

    def add_and_norm(self, hidden, added, name):
        normed, _, _, total = self.nodes(
            "SkipSimplifiedLayerNormalization",
            [hidden, added, self.ones(f"{name}.norm")],
            4,
            domain="com.microsoft",
            epsilon=EPSILON,
        )
        return normed, total

    def embedding(self, ids, vocabulary, channels):
        if self.weights != "int4":
            return self.node("Gather", [self.drawn("embedding", ir.DataType.FLOAT, [vocabulary, channels], 1.0), ids])
        packed = self.drawn("embedding/packed", ir.DataType.UINT8, [vocabulary, channels // 2])
        scales = self.filled(
            "embedding/scales", np.float32, [vocabulary, channels // VOCABULARY_BLOCK_SIZE], 1 / CODE_DEVIATION
        )
        return self.node(
            "GatherBlockQuantized",
            [packed, ids, scales],
            domain="com.microsoft",
            bits=4,
            block_size=VOCABULARY_BLOCK_SIZE,
            gather_axis=0,
            quantize_axis=1,
        )

    def head(self, normed, vocabulary, channels):
        if self.weights != "int4":
            weight = self.drawn("head", ir.DataType.FLOAT, [channels, vocabulary], channels**-0.5)
            return self.node("MatMul", [normed, weight], output="logits")
        packed = self.drawn(
            "head/packed",
            ir.DataType.UINT8,
            [vocabulary, channels // VOCABULARY_BLOCK_SIZE, VOCABULARY_BLOCK_SIZE // 2],
        )
        scale = 1 / (CODE_DEVIATION * channels**0.5)
        scales = self.filled("head/scales", np.float32, [vocabulary, channels // VOCABULARY_BLOCK_SIZE], scale)
        return self.node(
            "MatMulNBits",
            [normed, packed, scales],
            domain="com.microsoft",
            output="logits",
            K=channels,
            N=vocabulary,
            bits=4,
            block_size=VOCABULARY_BLOCK_SIZE,
        )

    def node(self, op, inputs, *, output=None, **attributes):
        (result,) = self.nodes(op, inputs, 1, **attributes)
        if output:
            result.name = output
        return result

    def nodes(self, op, inputs, count, *, domain="", name=None, **attributes):
        index = len(self.graph)
        outputs = [ir.Value(name=f"{name or op}/{index}/{slot}") for slot in range(count)]
        node = ir.node(op, inputs, attributes, domain=domain, name=name or f"{op}/{index}", outputs=outputs)
        self.graph.append(node)
        return node.outputs

    def input(self, name, dtype, shape):
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def constant(self, name, tensor):
        if name not in self.graph.initializers:
            value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def integers(self, name, entries):
        return self.constant(name, ir.Tensor(np.array(entries, np.int64)))

    def ones(self, name):
        return self.constant(name, ir.Tensor(np.ones(self.shape.hidden_size, np.float32)))

    def filled(self, name, dtype, shape, entry):
        onnx_type = ir.DataType.from_numpy(np.dtype(dtype))
        return self.constant(
            name, ir.LazyTensor(lambda: ir.Tensor(np.full(shape, entry, dtype)), onnx_type, ir.Shape(shape))
        )

    def drawn(self, name, dtype, shape, deviation=None):
        """Normal numbers of that deviation, or any bits."""
        return self.constant(
            name, ir.LazyTensor(lambda: draw(dtype, shape, deviation, self.device), dtype, ir.Shape(shape))
        )


def draw(dtype, shape, deviation, device):
    if dtype == ir.DataType.FLOAT:
        return ir.Tensor((torch.randn(shape, device=device) * deviation).cpu().numpy())
    if dtype == ir.DataType.UINT8:
        return ir.Tensor(packed_codes(shape, 1, 16, device))
    return ir.PackedTensor(packed_codes([shape[0], shape[1] // 2], -7, 8, device), dtype, shape=shape)


def packed_codes(shape, low, high, device):
    """Bytes that hold two numbers of 4 bits each, from low to high - 1, whose mean stands for 0."""
    first, second = (torch.randint(low, high, shape, dtype=torch.int8, device=device) for _ in range(2))
    return ((first & 15) | (second << 4)).view(torch.uint8).cpu().numpy()
