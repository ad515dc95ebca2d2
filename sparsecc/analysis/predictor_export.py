"""Write a trained predictor as an ONNX graph, so that what fetches weights ahead can run it beside the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray

from sparsecc.analysis.prediction import SOURCE, LayerPredictor
from sparsecc.analysis.predictor import Predictor

FORMAT = "sparsecc-predictor"
VERSION = 1
_OPSET = 22
_IR_VERSION = 10
_CHECKED_TOKENS = 32
_RELATIVE_DIFFERENCE = 1e-4
"""Of the largest score. Sums in another order differ by less, a wrong graph by more."""


def predictor_name(source_layer: int) -> str:
    """The file of the predictor that reads a layer's state."""
    return f"predictor-{source_layer}.onnx"


def target_name(layer: int, component: str) -> str:
    """The graph output with the scores of a component."""
    return f"layers.{layer}.{component}"


def write_predictor(path: Path, predictor: LayerPredictor, *, model_sha256: str) -> None:
    """Write a predictor, seen to compute in onnxruntime what it computes in torch.

    Its input ``ffn_input`` is float32 [tokens, channels]. For each target there is an output as :func:`target_name`
    calls it, float32 [tokens, neurons]: above 0 for a neuron that is predicted to be active, and the larger the surer.
    The metadata name the layer that it reads and the hash of the model that it was trained for.

    Raises:
        RuntimeError: onnxruntime computes something else.
        OSError: the file cannot be written.
    """
    content = ir.to_proto(_model(predictor, model_sha256)).SerializeToString()
    _check(content, predictor.network)
    path.write_bytes(content)


def _model(predictor: LayerPredictor, model_sha256: str) -> ir.Model:
    network = predictor.network
    tensors: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "first/weight": network.first_weight,
        "first/bias": network.first_bias,
        "second/weight": network.second_weight,
        "second/bias": network.second_bias,
        "neurons": np.array([neurons for _, _, neurons in predictor.targets], np.int64),
    }
    constants = {name: ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in tensors.items()}
    state = _float(SOURCE, network.first_weight.shape[0])
    outputs = [_float(target_name(layer, component), neurons) for layer, component, neurons in predictor.targets]
    product = ir.node("MatMul", [state, constants["first/weight"]], name="first/MatMul")
    biased = ir.node("Add", [product.outputs[0], constants["first/bias"]], name="first/Add")
    hidden = ir.node("Relu", [biased.outputs[0]], name="first/Relu")
    scores = ir.node("MatMul", [hidden.outputs[0], constants["second/weight"]], name="second/MatMul")
    shifted = ir.node("Add", [scores.outputs[0], constants["second/bias"]], name="second/Add")
    split = ir.node(
        "Split", [shifted.outputs[0], constants["neurons"]], {"axis": -1}, outputs=outputs, name="second/Split"
    )
    graph = ir.Graph(
        [state],
        outputs,
        nodes=[product, biased, hidden, scores, shifted, split],
        initializers=list(constants.values()),
        opset_imports={"": _OPSET},
        name="predictor",
    )
    notes = {"source": json.dumps([predictor.source_layer, SOURCE]), "model_sha256": model_sha256}
    return ir.Model(
        graph,
        ir_version=_IR_VERSION,
        producer_name="sparsecc",
        metadata_props={"format": FORMAT, "version": str(VERSION), **notes},
    )


def _float(name: str, width: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(["tokens", width]), type=ir.TensorType(ir.DataType.FLOAT))


def _check(content: bytes, network: Predictor) -> None:
    channels = network.first_weight.shape[0]
    states = np.random.default_rng(0).standard_normal((_CHECKED_TOKENS, channels), np.float32)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    computed = np.concatenate(session.run(None, {SOURCE: states}), axis=1)
    expected = torch_scores(network, states)
    if not np.allclose(computed, expected, rtol=0, atol=_RELATIVE_DIFFERENCE * np.abs(expected).max()):
        raise RuntimeError("onnxruntime computes other scores than torch")


def torch_scores(network: Predictor, states: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores [tokens, neurons] of a predictor, computed by torch."""
    first_weight, first_bias, second_weight, second_bias = (torch.from_numpy(w) for w in vars(network).values())
    hidden = torch.relu(torch.from_numpy(states) @ first_weight + first_bias)
    scores: NDArray[np.float32] = (hidden @ second_weight + second_bias).numpy()
    return scores
