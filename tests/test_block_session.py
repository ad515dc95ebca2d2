"""A block that runs alone does what it does in the model, and what float64 says."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparsecc.artifact import Artifact
from sparsecc.block_session import BlockSession, block_model, block_sessions, find_blocks
from sparsecc.model_file import load_model
from sparsecc.passes import ExposeThresholdsPass
from sparsecc.text import load_tokenizer, shipped_text, token_windows

from .conftest import THREADS
from .graphs import BLOCK_KINDS, BLOCK_SHAPES, block, block_output, random_arrays

KEEP_ALL = dict.fromkeys(BLOCK_KINDS, np.zeros(1, np.float32))


@pytest.fixture
def weights():
    return random_arrays(BLOCK_SHAPES)


@pytest.fixture
def states():
    rng = np.random.default_rng(5)
    return [rng.standard_normal((1, tokens, 8)).astype(np.float32) for tokens in (6, 3)]


@pytest.fixture
def session(weights, states, tmp_path):
    model = block(weights)
    ExposeThresholdsPass()(model)
    (only,) = find_blocks(model.graph)
    files = [tmp_path / f"{index}.safetensors" for index in range(len(states))]
    for file, x in zip(files, states, strict=True):
        save_file({"x": x}, file)
    return BlockSession(block_model(model, only), Artifact(tmp_path, {}), only, files, THREADS)


@pytest.mark.parametrize("kinds", [["q"], ["k"], ["v", "o"], ["down"], BLOCK_KINDS])
def test_the_error_is_that_of_the_blocks_output(session, weights, states, kinds):
    rng = np.random.default_rng(6)
    channels = {projection.kind: projection.channels for projection in session.projections}
    chosen = {kind: rng.random(channels[kind]).astype(np.float32) for kind in kinds}
    exact = sum(
        np.square(block_output(x, weights, {**KEEP_ALL, **chosen}) - block_output(x, weights), dtype=np.float64).sum()
        for x in states
    )
    names = {projection.kind: projection.name for projection in session.projections}
    error = session.error({names[kind]: threshold for kind, threshold in chosen.items()})
    assert error == pytest.approx(np.sqrt(exact), rel=1e-4)


def test_a_dense_block_has_no_error(session):
    assert session.error({}) == 0


def test_the_blocks_of_a_decoder_are_its_layers(dense):
    model = load_model(dense.model_path)
    ExposeThresholdsPass()(model)
    blocks = find_blocks(model.graph)
    assert [found.layer for found in blocks] == list(range(8))
    for found in blocks:
        assert [projection.kind for projection in found.projections] == BLOCK_KINDS
        assert {projection.layer for projection in found.projections} == {found.layer}
        assert len(found.outputs) == 2


def test_blocks_run_on_what_the_dense_model_gives_them(dense, tmp_path):
    windows = token_windows(shipped_text("calibration"), load_tokenizer(dense.directory), tokens=64, window=64)
    sessions = block_sessions(dense, windows, tmp_path, threads=THREADS)
    for session in sessions:
        skipped_down = {session.projections[-1].name: np.array([np.inf], np.float32)}
        assert session.error({}) == 0
        assert session.error(skipped_down) > 1
