"""The evaluation protocol, held to an independent PyTorch implementation of it (tests/data/reference-*.json)."""

import functools
import json
from pathlib import Path

import pytest

from sparsecc.calibration import calibrate
from sparsecc.compilation import make_recipe, write_sparse_artifact
from sparsecc.evaluation import evaluate
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from .conftest import THREADS

REFERENCE = json.loads((Path(__file__).parent / "data" / "reference-books-16m.json").read_text())
TOLERANCE = 0.005


@pytest.fixture(scope="module")
def sparse(dense, tmp_path_factory):
    """A function from a method to an artifact of half sparsity, calibrated on all tokens of the protocol."""
    windows = token_windows(shipped_text("calibration"), load_tokenizer(dense.directory))
    statistics, folder = calibrate(dense, windows, threads=THREADS), tmp_path_factory.mktemp("by-protocol")

    @functools.cache
    def artifact(method):
        (folder / method).mkdir()
        return write_sparse_artifact(dense, make_recipe(dense, statistics, method, 0.5), folder / method)

    return artifact


def perplexity_of(artifact):
    windows = token_windows(shipped_text("evaluation"), load_tokenizer(artifact.directory))
    return evaluate(artifact, windows, threads=THREADS)


def test_dense_perplexity_agrees_with_pytorch(dense):
    evaluation = perplexity_of(dense)
    assert evaluation.perplexity == pytest.approx(REFERENCE["perplexity"]["dense"], rel=TOLERANCE)
    assert evaluation.sparsity == 0


@pytest.mark.parametrize("method", ["teal", pytest.param("wina", marks=pytest.mark.slow)])
def test_sparse_perplexity_agrees_with_pytorch(sparse, method):
    evaluation = perplexity_of(sparse(method))
    assert evaluation.perplexity == pytest.approx(REFERENCE["perplexity"][f"{method}-0.5"], rel=TOLERANCE)
    assert evaluation.sparsity == pytest.approx(0.5, abs=0.02)
    assert set(evaluation.sparsity_by_kind) == {"q", "k", "v", "o", "gate", "up", "down"}


def test_thresholds_agree_with_pytorch(sparse):
    recipe = json.loads((sparse("teal").directory / "recipe.json").read_text())
    for entry in recipe["projections"]:
        block = "mlp" if entry["kind"] in ("gate", "up", "down") else "self_attn"
        reference = REFERENCE["thresholds_teal_50"][f"model.layers.{entry['layer']}.{block}.{entry['kind']}_proj"]
        assert entry["threshold"] == pytest.approx(reference, rel=1e-3)
