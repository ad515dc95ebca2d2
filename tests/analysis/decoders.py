"""Small decoders whose activations a test sets, as directories that sparsecc takes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsecc.artifact import Artifact, open_artifact
from sparsecc.model_file import save_model

from ..conftest import MODEL
from ..graphs import model_of

VOCABULARY = 8192
WIDTH = 8
NEURONS = 16
GATED = """
decoder (int64[1, s] input_ids) => (float[1, s, 8192] logits) {
  x = Gather(embedding, input_ids)
  gate = MatMul(x, w_gate)
  up = MatMul(x, w_up)
  sigmoid = Sigmoid(gate)
  silu = Mul(gate, sigmoid)
  product = Mul(silu, up)
  down = MatMul(product, w_down)
  r = Add(x, down)
  logits = MatMul(r, head)
}"""
RELU = """
decoder (int64[1, s] input_ids) => (float[1, s, 8192] logits) {
  x = Gather(embedding, input_ids)
  u = MatMul(x, w_up)
  h = Relu(u)
  down = MatMul(h, w_down)
  r = Add(x, down)
  logits = MatMul(r, head)
}"""


def random_weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """For :data:`GATED`; :data:`RELU` leaves ``w_gate`` out."""
    random = np.random.default_rng(seed)
    shapes = {"embedding": (VOCABULARY, WIDTH), "head": (WIDTH, VOCABULARY)}
    shapes |= {"w_gate": (WIDTH, NEURONS), "w_up": (WIDTH, NEURONS), "w_down": (NEURONS, WIDTH)}
    return {name: random.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}


def write_decoder(directory: Path, text: str, weights: Mapping[str, NDArray[np.float32]]) -> Artifact:
    """A dense artifact with the shipped tokenizer; the decoder has no attention, and so no cache."""
    directory.mkdir(parents=True)
    used = {name: array for name, array in weights.items() if name in text}
    save_model(model_of(text, used), directory)
    decoder = {"filename": "model.onnx", "num_key_value_heads": 1, "head_size": 1}
    config = {"model": {"context_length": 1024, "decoder": decoder}}
    (directory / "genai_config.json").write_text(json.dumps(config))
    shutil.copy(MODEL / "tokenizer.json", directory)
    return open_artifact(directory)
