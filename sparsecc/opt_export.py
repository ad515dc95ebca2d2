"""Export OPT checkpoints (Zhang et al., arXiv 2205.01068), which onnxruntime-genai's model builder does not know.

OPT is what trained models with ReLU come as: no gate, biases, learned positions, LayerNorm before or after each
network. Run as ``python -m sparsecc.opt_export CHECKPOINT DIRECTORY fp32|int8|int4``: in a process of its own, which
gives torch's memory back when it ends.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from transformers import AutoTokenizer, OPTForCausalLM

from sparsecc.artifact import GENAI_CONFIG_NAME
from sparsecc.model_file import MODEL_NAME, save_model

OPSET = 22
_IR_VERSION = 10
_MICROSOFT = "com.microsoft"
_FLOAT = ir.TensorType(ir.DataType.FLOAT)
_UNUSED_POSITIONS = 2
"""OPT's table of positions begins with rows that no token has."""
_ACTIVATIONS: Mapping[str, tuple[str, dict[str, str]]] = {
    "relu": ("Relu", {}),
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
}
_BLOCK_SIZE = 32
_ACCURACY_LEVEL = 4


def export_opt(checkpoint: Path, directory: Path, weights: str) -> None:
    """Write the ONNX decoder, its genai_config.json and its tokenizer into an existing directory.

    ``weights`` is ``fp32``, or ``int8`` or ``int4`` for ``MatMulNBits`` in blocks of 32 input channels with activations
    in int8, as the model builder makes them.

    Raises:
        NotImplementedError: the activation is none that the exporter knows.
    """
    model = OPTForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    if model.config.activation_function not in _ACTIVATIONS:
        raise NotImplementedError(f"activation {model.config.activation_function}")
    decoder = _DecoderGraph(model).build()
    if weights == "fp32":
        save_model(decoder, directory)
    else:
        save_model(_quantized(decoder, int(weights.removeprefix("int"))), directory)
    config = json.dumps(_genai_config(model.config), indent=4) + "\n"
    (directory / GENAI_CONFIG_NAME).write_text(config, "utf-8")
    AutoTokenizer.from_pretrained(checkpoint, local_files_only=True).save_pretrained(directory)


class _DecoderGraph:
    """The graph of a decoder, built from the modules of transformers."""

    def __init__(self, model: Any) -> None:
        self.model, self.decoder, self.config = model, model.model.decoder, model.config
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, _MICROSOFT: 1}, name="opt")
        self.tape = ir.tape.Tape(self.graph)
        self.token_ids = self._input("input_ids", "sequence")
        self.mask = self._input("attention_mask", "total_sequence")
        self.position_ids = self._input("position_ids", "sequence")
        layers = range(len(self.decoder.layers))
        self.pasts = [self._cache("past_key_values", layer, "past_sequence") for layer in layers]
        self.presents = [self._cache("present", layer, "total_sequence") for layer in layers]

    def build(self) -> ir.Model:
        self.lengths = self._lengths()
        head = self._initializer("lm_head/MatMul/W", self.model.lm_head.weight.T)
        hidden = self._embedding(head)
        for index, layer in enumerate(self.decoder.layers):
            name = f"/model/layers.{index}"
            attention = partial(self._attention, layer.self_attn, index)
            feed_forward = partial(self._feed_forward, layer, f"{name}/mlp")
            hidden = self._residual(attention, layer.self_attn_layer_norm, hidden, f"{name}/attn")
            hidden = self._residual(feed_forward, layer.final_layer_norm, hidden, f"{name}/mlp")
        if self.decoder.final_layer_norm is not None:
            hidden = self._norm(self.decoder.final_layer_norm, hidden, "/model/final_layer_norm")
        if self.decoder.project_out is not None:
            hidden = self._linear(self.decoder.project_out, hidden, "/model/project_out")
        logits = self._op("MatMul", [hidden, head], "/lm_head/MatMul", width=self.config.vocab_size)
        logits.name = "logits"
        self.graph.inputs.extend([self.token_ids, self.mask, self.position_ids, *itertools.chain(*self.pasts)])
        self.graph.outputs.extend([logits, *itertools.chain(*self.presents)])
        return ir.Model(self.graph, ir_version=_IR_VERSION, producer_name="sparsecc")

    def _lengths(self) -> list[ir.Value]:
        """What attention takes for a mask: how many tokens each sequence has, less one, and the most that one has."""
        one = self.tape.initializer(ir.tensor(np.array(1, np.int64), name="/model/lengths/one"))
        last_axis = self.tape.initializer(ir.tensor(np.array([1], np.int64), name="/model/lengths/last_axis"))
        counts = self.tape.op("ReduceSum", [self.mask, last_axis], {"keepdims": 0}, name="/model/lengths/ReduceSum")
        lasts = self.tape.op("Sub", [counts, one], name="/model/lengths/Sub")
        shape = self.tape.op("Shape", [self.mask], name="/model/total_length/Shape")
        total = self.tape.op("Gather", [shape, one], name="/model/total_length/Gather")
        return [
            self.tape.op("Cast", [lasts], {"to": ir.DataType.INT32}, name="/model/lengths/Cast"),
            self.tape.op("Cast", [total], {"to": ir.DataType.INT32}, name="/model/total_length/Cast"),
        ]

    def _embedding(self, head: ir.Value) -> ir.Value:
        """The embedding of tokens, which shares the head's matrix where they are tied, and of their positions."""
        table = self.decoder.embed_tokens.weight
        if self.model.lm_head.weight is table:
            tokens = self.tape.op("Transpose", [head], {"perm": [1, 0]}, name="/model/embed_tokens/Transpose")
        else:
            tokens = self._initializer("/model/embed_tokens/Gather/W", table)
        name = "/model/embed_tokens/Gather"
        hidden = self._op("Gather", [tokens, self.token_ids], name, width=table.shape[1])
        if self.decoder.project_in is not None:
            hidden = self._linear(self.decoder.project_in, hidden, "/model/project_in")
        positions = self.decoder.embed_positions.weight[_UNUSED_POSITIONS:]
        name, width = "/model/embed_positions/Gather", positions.shape[1]
        where = self._op("Gather", [self._initializer(f"{name}/W", positions), self.position_ids], name, width=width)
        return self._op("Add", [hidden, where], "/model/embed_positions/Add", width=width)

    def _residual(
        self, network: Callable[[ir.Value], ir.Value], norm: torch.nn.LayerNorm, hidden: ir.Value, name: str
    ) -> ir.Value:
        """A network with its norm before it, or behind the sum."""
        width = norm.normalized_shape[0]
        norm_name, sum_name = f"{name}/layer_norm", f"{name}/residual/Add"
        if self.config.do_layer_norm_before:
            product = network(self._norm(norm, hidden, norm_name))
            return self._op("Add", [hidden, product], sum_name, width=width)
        return self._norm(norm, self._op("Add", [hidden, network(hidden)], sum_name, width=width), norm_name)

    def _attention(self, module: Any, index: int, hidden: ir.Value) -> ir.Value:
        """Attention scales scores by the root of the head size, as OPT scales queries."""
        name = f"/model/layers.{index}/attn"
        linears = {"q": module.q_proj, "k": module.k_proj, "v": module.v_proj}
        sources: list[ir.Value | None] = [
            self._linear(linear, hidden, f"{name}/{kind}_proj") for kind, linear in linears.items()
        ]
        attended = self._hidden_state(f"{name}/GroupQueryAttention/output_0", module.embed_dim)
        self.tape.op_multi_out(
            "GroupQueryAttention",
            [*sources, *self.pasts[index], *self.lengths],
            {"num_heads": module.num_heads, "kv_num_heads": module.num_heads},
            domain=_MICROSOFT,
            name=f"{name}/GroupQueryAttention",
            outputs=[attended, *self.presents[index]],
        )
        return self._linear(module.out_proj, attended, f"{name}/o_proj")

    def _feed_forward(self, layer: Any, name: str, hidden: ir.Value) -> ir.Value:
        operator, attributes = _ACTIVATIONS[self.config.activation_function]
        product = self._linear(layer.fc1, hidden, f"{name}/fc1")
        width = layer.fc1.out_features
        activated = self._op(operator, [product], f"{name}/act_fn/{operator}", attributes, width=width)
        return self._linear(layer.fc2, activated, f"{name}/fc2")

    def _linear(self, module: torch.nn.Linear, hidden: ir.Value, name: str) -> ir.Value:
        """x W, and + b where there is a bias; torch keeps W[N, K], the graph W[K, N]."""
        width = module.out_features
        weight = self._initializer(f"{name}/MatMul/W", module.weight.T)
        product = self._op("MatMul", [hidden, weight], f"{name}/MatMul", width=width)
        if module.bias is None:
            return product
        bias = self._initializer(f"{name}/Add/bias", module.bias)
        return self._op("Add", [product, bias], f"{name}/Add", width=width)

    def _norm(self, module: torch.nn.LayerNorm, hidden: ir.Value, name: str) -> ir.Value:
        width = module.normalized_shape[0]
        scale = self._initializer(f"{name}/scale", torch.ones(width) if module.weight is None else module.weight)
        bias = self._initializer(f"{name}/bias", torch.zeros(width) if module.bias is None else module.bias)
        attributes = {"axis": -1, "epsilon": module.eps}
        return self._op("LayerNormalization", [hidden, scale, bias], name, attributes, width=width)

    def _op(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        width: int,
    ) -> ir.Value:
        """An operator whose output is a hidden state of ``width`` channels."""
        return self.tape.op(operator, inputs, attributes, name=name, output=self._hidden_state(f"{name}/output", width))

    def _hidden_state(self, name: str, width: int) -> ir.Value:
        return ir.Value(name=name, type=_FLOAT, shape=ir.Shape(["batch", "sequence", width]))

    def _input(self, name: str, length: str) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", length]))

    def _cache(self, name: str, layer: int, length: str) -> list[ir.Value]:
        heads = self.config.num_attention_heads
        shape = ["batch", heads, length, self.config.hidden_size // heads]
        names = [f"{name}.{layer}.{kind}" for kind in ("key", "value")]
        return [ir.Value(name=name, type=_FLOAT, shape=ir.Shape(shape)) for name in names]

    def _initializer(self, name: str, parameter: torch.Tensor) -> ir.Value:
        """Made contiguous only when it is written, so that no second copy of the model lies in memory."""

        def contiguous() -> ir.TensorProtocol:
            array: NDArray[np.float32] = np.ascontiguousarray(parameter.detach().numpy())
            return ir.Tensor(array, name=name)

        shape = ir.Shape(list(parameter.shape))
        return self.tape.initializer(ir.LazyTensor(contiguous, dtype=ir.DataType.FLOAT, shape=shape, name=name))


def _quantized(model: ir.Model, bits: int) -> ir.Model:
    """The same with MatMulNBits for each MatMul by a constant, the head's too."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder))
        quantizer = MatMulNBitsQuantizer(
            str(Path(folder) / MODEL_NAME),
            bits=bits,
            block_size=_BLOCK_SIZE,
            is_symmetric=True,
            accuracy_level=_ACCURACY_LEVEL,
        )
        quantizer.process()
        proto: onnx.ModelProto = quantizer.model.model
        return ir.from_proto(proto)


def _genai_config(config: Any) -> dict[str, Any]:
    """What onnxruntime-genai needs to run the decoder, which it knows as one of no special architecture."""
    token_ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "model": {
            "type": "decoder",
            "context_length": config.max_position_embeddings,
            "vocab_size": config.vocab_size,
            **{name: token_id for name, token_id in token_ids.items() if token_id is not None},
            "decoder": {
                "filename": MODEL_NAME,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "hidden_size": config.hidden_size,
                "head_size": config.hidden_size // config.num_attention_heads,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"max_length": config.max_position_embeddings, "past_present_share_buffer": True},
    }


if __name__ == "__main__":
    export_opt(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
