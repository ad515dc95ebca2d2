"""LaRoSA on the trained model, and a small model with its formula in float64."""

import importlib
import json
from collections import defaultdict

import numpy as np
import pytest

from sparsecc.artifact import Artifact
from sparsecc.calibration import calibrate
from sparsecc.calibration_statistics import Statistics
from sparsecc.compilation import make_recipe, write_sparse_artifact
from sparsecc.dense_export import export
from sparsecc.evaluation import evaluate
from sparsecc.generation import generate
from sparsecc.hidden_states import hidden_states_on
from sparsecc.inspection import inspect
from sparsecc.methods.larosa import ROTATION_TOKENS, principal_components
from sparsecc.model_file import load_model
from sparsecc.operators import is_added
from sparsecc.session import open_session, run_prompt
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from . import small_llama
from .conftest import THREADS

WIDTH, LAYERS = 384, 8
LEADING = 4


TOKENS = 512
"""Of the text that the small model's bases are of."""
IDS = np.array([5814, 5399, 6036, 3867])
"""No more than are decoded at once, since of a longer prompt nothing is skipped; of no magnitudes that nearly tie."""


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
    assert evaluate(larosa, windows, threads=THREADS).sparsity == pytest.approx(0.5, abs=0.002)


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
    for piece in hidden_states_on(dense, list(gains), windows, "reading", threads=THREADS):
        for name, norm_gain in gains.items():
            normalized = piece[name].reshape(-1, WIDTH).astype(np.float64) / norm_gain
            moment += normalized.T @ normalized
    values, vectors = np.linalg.eigh(moment)
    leading = vectors[:, ::-1][:, :LEADING]
    assert (values[::-1][:LEADING] > 1.002 * values[::-1][1 : LEADING + 1]).all(), "they can be told apart"
    np.testing.assert_allclose(np.abs(np.sum(leading * basis[:, :LEADING], axis=0)), 1, atol=0.02)
    np.testing.assert_allclose((normalized @ basis) @ rotated, normalized @ plain, atol=1e-2)


@pytest.fixture(scope="module")
def small(checkpoint, tmp_path_factory) -> tuple[Artifact, dict[str, np.ndarray]]:
    """A small random Llama and its weights in float64."""
    folder = tmp_path_factory.mktemp("small-llama")
    small_llama.write_checkpoint(folder / "checkpoint", checkpoint)
    return export(folder / "checkpoint", folder / "dense"), small_llama.read_weights(folder / "checkpoint")


@pytest.fixture(scope="module")
def small_recipe(small):
    dense, _ = small
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("sparsecc.methods.larosa"), "ROTATION_TOKENS", TOKENS)
        return make_recipe(
            dense, calibrate(dense, small_windows(dense), threads=THREADS), "larosa", 0.5, threads=THREADS
        )


def small_windows(dense):
    return token_windows(
        shipped_text("calibration"), load_tokenizer(dense.directory), tokens=TOKENS, window=small_llama.CONTEXT
    )


def principal(states: np.ndarray) -> np.ndarray:
    return np.linalg.eigh(states.T @ states)[1][:, ::-1]


@pytest.fixture(scope="module")
def small_bases(small) -> dict[tuple[int, str], np.ndarray]:
    """What each rotated hidden state of each layer is multiplied by, from the formula in float64."""
    dense, weights = small
    seen = defaultdict(list)

    def read(layer, place, hidden):
        seen[layer, place].append(hidden)
        return hidden

    for ids in small_windows(dense).ids:
        small_llama.logits(weights, ids, read)
    states = {key: np.concatenate(pieces) for key, pieces in seen.items()}
    bases = {}
    for layer in range(small_llama.LAYERS):
        of_layer = np.concatenate([states[layer, "attention"], states[layer, "mlp"]])
        bases[layer, "attention"] = bases[layer, "mlp"] = principal(of_layer)
        of_heads = np.split(states[layer, "values"], small_llama.HEADS, axis=1)
        together = small_llama.HEADS // small_llama.GROUPS
        bases[layer, "values"] = np.zeros((len(of_heads) * small_llama.HEAD_SIZE,) * 2)
        for head in range(len(of_heads)):
            group = head // together
            place = slice(head * small_llama.HEAD_SIZE, (head + 1) * small_llama.HEAD_SIZE)
            own = np.concatenate(of_heads[group * together : (group + 1) * together])
            bases[layer, "values"][place, place] = principal(own)
    return bases


def test_bases_are_eigenvectors_of_the_stream_of_each_layer_and_of_the_values_of_each_head(small_recipe, small_bases):
    """Up to their signs. Query heads that share a key-value head share its basis."""
    size, together = small_llama.HEAD_SIZE, small_llama.HEADS // small_llama.GROUPS
    for layer in range(small_llama.LAYERS):
        stream, heads = small_recipe.rotations.residual[layer], small_recipe.rotations.heads[layer]
        assert_same_directions(stream, small_bases[layer, "mlp"])
        assert heads.shape == (small_llama.GROUPS, size, size)
        for head in range(small_llama.HEADS):
            place = slice(head * size, (head + 1) * size)
            assert_same_directions(heads[head // together], small_bases[layer, "values"][place, place])


def assert_same_directions(found, expected):
    np.testing.assert_allclose(np.abs(found.T @ expected), np.eye(len(expected)), atol=0.01)


@pytest.mark.parametrize("has_library", [True, False])
def test_a_small_model_computes_what_the_formula_says(small, small_recipe, small_bases, tmp_path, has_library):
    """Every projection multiplies topk(x Q) Q^T by W, the one that reads no rotated hidden state topk(x)."""
    dense, weights = small
    artifact = write_sparse_artifact(dense, small_recipe, tmp_path)
    skipped = 0.5 + (small_llama.LAYERS - 1) * small_llama.WIDTH**2 / sum(
        array.size for name, array in weights.items() if name.startswith("layers.") and name.endswith("proj.weight")
    )

    def read(layer, place, hidden):
        kept = hidden.shape[1] - round(skipped * hidden.shape[1])
        basis = small_bases.get((layer, place), np.eye(hidden.shape[1]))
        return largest(hidden @ basis, kept) @ basis.T

    expected = small_llama.logits(weights, IDS, read)
    dense_logits = small_llama.logits(weights, IDS, lambda _layer, _place, hidden: hidden)
    library = artifact.ops_library if has_library else None
    session = open_session(artifact.model_path, ops_library=library, threads=1)
    (computed,) = next(run_prompt(session, IDS, [artifact.logits_name], **artifact.cache_shape))
    np.testing.assert_allclose(computed[0], expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected - dense_logits).max() > 0.1 * np.abs(expected).max()


def largest(hidden: np.ndarray, kept: int) -> np.ndarray:
    """The largest entries of each row, so many that no rounding decides which."""
    magnitudes = np.sort(np.abs(hidden), axis=1)[:, ::-1]
    assert (magnitudes[:, kept - 1] - magnitudes[:, kept] > 5e-3 * magnitudes[:, kept]).all()
    return np.where(np.abs(hidden) >= magnitudes[:, kept - 1 : kept], hidden, 0)


def test_it_generates_and_its_perplexity_is_that_of_a_language_model(larosa: Artifact):
    text = "".join(generate(larosa, "It was a dark night", max_new_tokens=8))
    assert text.strip()
    windows = token_windows(shipped_text("evaluation"), load_tokenizer(larosa.directory), tokens=1024, window=512)
    assert evaluate(larosa, windows, threads=THREADS).perplexity < 70


def test_at_zero_sparsity_nothing_is_rotated_or_skipped(dense: Artifact, statistics: Statistics):
    recipe = make_recipe(dense, statistics, "larosa", 0.0)
    assert recipe.rotations is None
    channels = {projection.name: projection.input_channels for projection in inspect(dense)}
    assert {entry.name: entry.kept for entry in recipe.projections} == channels


def test_the_recipe_says_what_is_kept(larosa: Artifact):
    document = json.loads((larosa.directory / "recipe.json").read_text())
    assert document["method"] == "larosa"
    assert all(entry["kept"] > 0 and entry["threshold"] == 0 for entry in document["projections"])
