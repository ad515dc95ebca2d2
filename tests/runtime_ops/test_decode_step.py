"""A decode step of what methods make: the host waits for nothing in it, and it computes what onnxruntime does."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsecc.artifact import open_artifact, staged_directory
from sparsecc.calibration import calibrate
from sparsecc.compilation import make_recipe, write_sparse_artifact
from sparsecc.dense_export import export
from sparsecc.methods import METHODS
from sparsecc.methods.evolution import Search
from sparsecc.model_file import load_model
from sparsecc.runtime_ops.triton import reference
from sparsecc.runtime_ops.triton.decoding import open_decoder
from sparsecc.session import open_session, run_prompt
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from .. import small_llama

TOKENS, SPARSITY = 256, 0.4
IDS = [5814, 5399, 6036, 3867]
"""No more than are thresholded at once, and no magnitudes that nearly tie."""
OTHERS = {"best": "is one of the others", "relu": "makes graphs as ffn-threshold does, of other models"}
CASES = [
    *((method, "fp32") for method in METHODS if method not in OTHERS),
    *((method, weights) for method in ("cats", "larosa") for weights in ("fp16", "int4")),
    ("r-sparse", "fp16"),
]
SHORTER = {
    "larosa": {"ROTATION_TOKENS": TOKENS},
    "r_sparse": {"Search": lambda: Search(population=2, generations=1, tokens=64), "COVARIANCE_TOKENS": TOKENS},
    "wisparse": {
        **dict.fromkeys(("SCORE_TOKENS", "BLOCK_TOKENS", "SEARCH_TOKENS"), 64),
        "EXPONENTS": (0.0, 0.5),
        "GENERATIONS": 1,
        "CHILDREN": 2,
    },
}
"""Constants of methods that search or learn, for less of it."""


class NothingForTheHost(TorchDispatchMode):
    """Refuses what makes the host wait for the device, or gives shapes that depend on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in {torch.ops.aten.nonzero.default, torch.ops.aten._local_scalar_dense.default}
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def small(checkpoint, tmp_path_factory):
    """A small random Llama, exported, and its statistics."""
    folder = tmp_path_factory.mktemp("small-llama")
    small_llama.write_checkpoint(folder / "checkpoint", checkpoint)
    dense = export(folder / "checkpoint", folder / "dense")
    tokenizer = load_tokenizer(dense.directory)
    windows = token_windows(shipped_text("calibration"), tokenizer, tokens=TOKENS, window=small_llama.CONTEXT)
    return dense, calibrate(dense, windows, threads=1)


@pytest.fixture
def artifact(request, small, tmp_path, monkeypatch):
    dense, statistics = small
    method, weights = request.param
    for module, constants in SHORTER.items():
        for name, value in constants.items():
            monkeypatch.setattr(importlib.import_module(f"sparsecc.methods.{module}"), name, value)
    recipe = make_recipe(dense, statistics, method, SPARSITY, weights=weights, threads=1)
    with staged_directory(tmp_path / "compiled", overwrite=False) as staging:
        write_sparse_artifact(dense, dataclasses.replace(recipe, weights=weights), staging)
    return open_artifact(tmp_path / "compiled")


@pytest.mark.parametrize("artifact", CASES, ids="-".join, indirect=True)
def test_a_step_of_each_method_can_be_captured_and_gives_the_logits_of_onnxruntime(artifact, monkeypatch):
    """In a sparse projection a GPU's kernel finds active channels; the plain torch that stands for it lists them."""
    monkeypatch.setattr(reference, "active_rows", lambda values, weight: (values, weight))
    model = load_model(artifact.model_path)
    decoder = open_decoder(model, len(IDS), device="cpu", dtype=torch.float32, **artifact.cache_shape)
    logits = [decoder.start(IDS[:1]).clone()]
    with NothingForTheHost():
        logits.extend(decoder.step(token).clone() for token in IDS[1:])
    session = open_session(artifact.model_path, threads=1)
    (expected,) = (logits for (logits,) in run_prompt(session, np.array(IDS), ["logits"], **artifact.cache_shape))
    error = np.abs(torch.stack(logits).numpy() - expected[0]).max()
    assert error < 1e-5 * np.abs(expected).max()
