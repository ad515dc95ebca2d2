"""Rotations leave what a model computes as it is, whatever the bases are."""

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.artifact import Artifact
from sparsecc.model_file import load_model
from sparsecc.operators import is_added
from sparsecc.passes import CleanUpPass, RotateHiddenStatesPass, value_heads
from sparsecc.projections import find_projections
from sparsecc.recipe import Rotations
from sparsecc.residual_stream import UnknownResidualStreamError, find_residual_stream
from sparsecc.session import open_session, run_prompt

from ..conftest import THREADS
from ..graphs import Array

LAYERS, WIDTH, GROUPS, HEAD = 8, 384, 2, 64
TOKENS = [5, 100, 2000, 31, 7]


def orthogonal(rng: np.random.Generator, size: int) -> Array:
    return np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)


@pytest.fixture(scope="module")
def rotations() -> Rotations:
    """Layers 0 to 2 share a basis; every other has its own."""
    rng = np.random.default_rng(0)
    first, *others = (orthogonal(rng, WIDTH) for _ in range(LAYERS - 2))
    heads = tuple(np.stack([orthogonal(rng, HEAD) for _ in range(GROUPS)]) for _ in range(LAYERS))
    return Rotations((first, first, first, *others), heads)


def logits(model: ir.Model, dense: Artifact) -> Array:
    session = open_session(ir.to_proto(model).SerializeToString(), data_folder=dense.directory, threads=THREADS)
    return next(run_prompt(session, TOKENS, [dense.logits_name], **dense.cache_shape))[0]


def test_a_rotated_model_computes_the_same_logits(dense: Artifact, rotations: Rotations):
    expected = logits(load_model(dense.model_path), dense)
    model = load_model(dense.model_path)
    assert RotateHiddenStatesPass(rotations)(model).modified
    assert not RotateHiddenStatesPass(rotations)(model).modified
    CleanUpPass()(model)
    np.testing.assert_allclose(logits(model, dense), expected, atol=1e-3 * np.abs(expected).max())
    assert [node.metadata_props["layer"] for node in model.graph if is_added(node)] == ["3", "4", "5", "6", "7"]
    assert [entry.name for entry in find_projections(model.graph)] == [
        entry.name for entry in find_projections(load_model(dense.model_path).graph)
    ]


def test_hidden_states_are_in_their_bases(dense: Artifact, rotations: Rotations):
    """What gate reads in layer 4 is the normalized stream without its gain, in that layer's basis."""
    name = "/model/layers.4/post_attention_layernorm/output_0"
    whole, model = load_model(dense.model_path), load_model(dense.model_path)
    gain = whole.graph.initializers["model.layers.4.post_attention_layernorm.weight"].const_value
    RotateHiddenStatesPass(rotations)(model)
    states = []
    for graph in (whole.graph, model.graph):
        graph.outputs.append(next(v for node in graph for v in node.outputs if v.name == name))
        proto = ir.to_proto(whole if graph is whole.graph else model).SerializeToString()
        session = open_session(proto, data_folder=dense.directory, threads=THREADS)
        states.append(next(run_prompt(session, TOKENS, [name], **dense.cache_shape))[0][0])
    plain = states[0].astype(np.float64) / gain.numpy()
    np.testing.assert_allclose(states[1], plain @ rotations.residual[4], atol=2e-3)


def test_the_stream_and_the_heads_of_a_model_are_found(dense: Artifact):
    graph = load_model(dense.model_path).graph
    stream = find_residual_stream(graph)
    assert stream.width == WIDTH
    assert [norm.layer for norm in stream.norms] == [layer for layer in range(LAYERS) for _ in "ab"] + [None]
    assert [len(norm.readers) for norm in stream.norms] == [3, 2] * LAYERS + [1]
    assert value_heads(graph) == [(GROUPS, HEAD)] * LAYERS


def test_a_stream_of_another_form_is_refused(model: ir.Model, dense: Artifact, rotations: Rotations):
    with pytest.raises(ir.passes.PreconditionError, match="hidden states cannot be rotated"):
        RotateHiddenStatesPass(rotations)(model)
    tapped = load_model(dense.model_path).graph
    stream = next(node for node in tapped if "layers.3/input_layernorm" in (node.name or "")).outputs[3]
    ir.node("Relu", [stream], graph=tapped, name="spy")
    with pytest.raises(UnknownResidualStreamError, match="is read by more than an RMS norm"):
        find_residual_stream(tapped)


@pytest.mark.parametrize(
    ("residual", "heads", "message"),
    [
        ([WIDTH] * 7, [], "7 layers"),
        ([WIDTH] * 7 + [WIDTH - 1], [], "384 channels"),
        ([WIDTH] * 8, [(GROUPS, HEAD - 1)] * 8, "key-value heads"),
        ([WIDTH] * 8, [(GROUPS, HEAD)] * 7, "key-value heads"),
    ],
)
def test_rotations_that_do_not_fit_are_refused(
    dense: Artifact, residual: list[int], heads: list[tuple[int, int]], message: str
):
    given = Rotations(
        tuple(np.eye(size, dtype=np.float32) for size in residual),
        tuple(np.zeros((groups, size, size), np.float32) for groups, size in heads),
    )
    with pytest.raises(ir.passes.PreconditionError, match=message):
        RotateHiddenStatesPass(given)(load_model(dense.model_path))
