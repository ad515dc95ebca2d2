"""LaRoSA on the trained model, and its formula on one layer in float64."""

import json

import numpy as np
import pytest

from sparsecc.artifact import Artifact
from sparsecc.calibration_statistics import Statistics
from sparsecc.compilation import make_recipe
from sparsecc.evaluation import evaluate
from sparsecc.generation import generate
from sparsecc.hidden_states import hidden_states_on
from sparsecc.inspection import inspect
from sparsecc.methods.larosa import ROTATION_TOKENS, principal_components
from sparsecc.model_file import load_model
from sparsecc.operators import is_added
from sparsecc.text import load_tokenizer, shipped_text, token_windows

WIDTH, LAYERS = 384, 8
LEADING = 4


@pytest.fixture(scope="module")
def larosa(compiled) -> Artifact:
    return compiled("larosa", 0.5)


def test_principal_components_are_the_directions_of_most_energy():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((400, 10)) * np.geomspace(5, 0.1, 10) @ rng.standard_normal((10, 10))
    basis = principal_components(states.T @ states)
    np.testing.assert_allclose(basis.T @ basis, np.eye(10), atol=1e-6)
    energies = np.linalg.norm(states @ basis, axis=0)
    np.testing.assert_allclose(energies, np.linalg.svd(states, compute_uv=False), rtol=1e-4)


def test_a_token_keeps_as_many_channels_as_the_recipe_says(larosa: Artifact):
    """The adapters are read, so more of the projections is skipped than the model-level target."""
    sizes = [(entry.input_channels, entry.output_channels) for entry in inspect(larosa)]
    adapters = (LAYERS - 1) * WIDTH**2 / sum(rows * columns for rows, columns in sizes)
    for entry in inspect(larosa):
        assert entry.kept == entry.input_channels - round((0.5 + adapters) * entry.input_channels)
        assert entry.threshold is None
    assert sum(is_added(node) for node in load_model(larosa.model_path).graph) == LAYERS - 1
    windows = token_windows(shipped_text("evaluation"), load_tokenizer(larosa.directory), tokens=256, window=128)
    assert evaluate(larosa, windows, threads=2).sparsity == pytest.approx(0.5, abs=0.002)


def test_a_projection_computes_the_formula(dense: Artifact, larosa: Artifact):
    """gate and up of layer 0 multiply by Q^T diag(gain) W, and Q holds the principal components of what is read."""
    graph = load_model(larosa.model_path).graph
    dense_graph = load_model(dense.model_path).graph

    def constant(name: str) -> np.ndarray:
        return dense_graph.initializers[name].const_value.numpy().astype(np.float64)

    gain = constant("model.layers.0.post_attention_layernorm.weight")
    weights = [constant(f"model.layers.0.mlp.{kind}_proj.MatMul.weight") for kind in ("gate", "up")]
    fused = next(node for node in graph if "layers.0/mlp/gate_proj+up_proj/SparseMatMul" in (node.name or ""))
    rotated = fused.inputs[2].const_value.numpy().astype(np.float64)
    plain = gain[:, None] * np.concatenate(weights, axis=1)
    basis = np.linalg.lstsq(plain.T, rotated.T, rcond=None)[0]  # plain^T Q = rotated^T
    np.testing.assert_allclose(basis.T @ basis, np.eye(WIDTH), atol=1e-3)
    tokenizer = load_tokenizer(dense.directory)
    windows = token_windows(shipped_text("calibration"), tokenizer, tokens=ROTATION_TOKENS, window=dense.window)
    gains = {
        f"/model/layers.0/{norm}/output_0": constant(f"model.layers.0.{norm}.weight")
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    moment = np.zeros((WIDTH, WIDTH))
    for piece in hidden_states_on(dense, list(gains), windows, "reading", threads=2):
        for name, norm_gain in gains.items():
            normalized = piece[name].reshape(-1, WIDTH).astype(np.float64) / norm_gain
            moment += normalized.T @ normalized
    values, vectors = np.linalg.eigh(moment)
    leading = vectors[:, ::-1][:, :LEADING]
    assert (values[::-1][:LEADING] > 1.002 * values[::-1][1 : LEADING + 1]).all(), "they can be told apart"
    np.testing.assert_allclose(np.abs(np.sum(leading * basis[:, :LEADING], axis=0)), 1, atol=0.02)
    np.testing.assert_allclose((normalized @ basis) @ rotated, normalized @ plain, atol=1e-2)


def test_it_generates_and_its_perplexity_is_that_of_a_language_model(larosa: Artifact):
    text = "".join(generate(larosa, "It was a dark night", max_new_tokens=8))
    assert text.strip()
    windows = token_windows(shipped_text("evaluation"), load_tokenizer(larosa.directory), tokens=1024, window=512)
    assert evaluate(larosa, windows, threads=2).perplexity < 70


def test_at_zero_sparsity_nothing_is_rotated_or_skipped(dense: Artifact, statistics: Statistics):
    recipe = make_recipe(dense, statistics, "larosa", 0.0)
    assert recipe.rotations is None
    channels = {projection.name: projection.input_channels for projection in inspect(dense)}
    assert {entry.name: entry.kept for entry in recipe.projections} == channels


def test_the_recipe_says_what_is_kept(larosa: Artifact):
    document = json.loads((larosa.directory / "recipe.json").read_text())
    assert document["method"] == "larosa"
    assert all(entry["kept"] > 0 and entry["threshold"] == 0 for entry in document["projections"])
