"""The executor against onnxruntime on the trained model, and its gradients against finite differences."""

import contextlib

import numpy as np
import onnx_ir as ir
import pytest
import torch

from sparsecc.errors import SparseccError
from sparsecc.model_file import load_model
from sparsecc.runtime_ops.triton import cuda_graph, executor
from sparsecc.runtime_ops.triton.current_device import on_device
from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.runtime_ops.triton.failures import executor_failures
from sparsecc.session import open_session, run_prompt
from sparsecc.text import first_tokens, load_tokenizer

from ..conftest import THREADS
from ..graphs import model_of

TOLERANCE = 1e-4


def relative_error(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


def prompt_of(artifact, tokens):
    return np.array(first_tokens(load_tokenizer(artifact.directory), tokens))


def prompt_inputs(artifact, executor, token_ids):
    """A prompt with nothing before it."""
    empty = torch.zeros(1, artifact.cache_shape["kv_heads"], 0, artifact.cache_shape["head_size"])
    inputs = {name: empty for name in executor.input_names if name.startswith("past")}
    inputs["input_ids"] = torch.tensor(token_ids)[None]
    return inputs | {"attention_mask": torch.ones(1, len(token_ids), dtype=torch.int64)}


def onnxruntime_logits(artifact, token_ids):
    session = open_session(artifact.model_path, ops_library=artifact.ops_library, threads=THREADS)
    pieces = run_prompt(session, token_ids, ["logits"], **artifact.cache_shape)
    return np.concatenate([logits for (logits,) in pieces], axis=1)


@pytest.mark.parametrize("tokens", [1, 1024])
def test_a_dense_prompt_gives_the_logits_of_onnxruntime(dense, tokens):
    token_ids = prompt_of(dense, tokens)
    executor = GraphExecutor(load_model(dense.model_path))
    logits = executor.run(prompt_inputs(dense, executor, token_ids), ["logits"])["logits"]
    assert relative_error(logits.numpy(), onnxruntime_logits(dense, token_ids)) < TOLERANCE


@pytest.mark.parametrize("tokens", [1, 3, 32])
def test_a_sparse_prompt_gives_the_logits_of_onnxruntime(compiled, tokens):
    artifact = compiled("teal", 0.5)
    token_ids = prompt_of(artifact, tokens)
    executor = GraphExecutor(load_model(artifact.model_path))
    logits = executor.run(prompt_inputs(artifact, executor, token_ids), ["logits"])["logits"]
    assert relative_error(logits.numpy(), onnxruntime_logits(artifact, token_ids)) < TOLERANCE


def test_gradients_reach_hidden_states(dense):
    executor = GraphExecutor(load_model(dense.model_path))
    inputs = prompt_inputs(dense, executor, prompt_of(dense, 16))
    embedded = "/model/embed_tokens/Gather/output_0"
    hidden = "/model/layers.3/post_attention_layernorm/output_0"
    results = executor.run(
        inputs, [embedded, hidden, "logits"], {embedded: lambda value: value.detach().requires_grad_()}
    )
    loss = results["logits"].double().logsumexp(-1).sum()
    gradients = torch.autograd.grad(loss, [results[embedded], results[hidden]])
    for name, gradient in zip((embedded, hidden), gradients, strict=True):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
        step = 1e-3 * direction

        def loss_at(value, name=name):
            return executor.run({**inputs, name: value}, ["logits"])["logits"].double().logsumexp(-1).sum()

        with torch.no_grad():
            slope = (loss_at(results[name] + step) - loss_at(results[name] - step)) / 2e-3
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-2)


def test_an_unknown_operator_is_named():
    model = model_of('g (float[2, 3] x) => (float[2, 3] y) { ["hash"] y = com.microsoft.MurmurHash3 (x) }')
    with pytest.raises(SparseccError, match=r"'hash' is a com\.microsoft\.MurmurHash3"):
        GraphExecutor(model)


@pytest.mark.parametrize("domain", ["ai.sparsecc", "ai.sparsecc.executor"])
def test_what_only_passes_make_is_unknown_in_a_file(domain):
    model = model_of(
        'g (float[1, 8] x, float[0] squares) => (float[1, 4] y) { ["own"] y = '
        f"{domain}.NormedSparseLinear (x, t, w, b, gain, squares) }}",
        {"t": (1,), "w": (8, 4), "b": (4,), "gain": (8,)},
    )
    with pytest.raises(SparseccError, match=rf"'own' is a {domain}\.NormedSparseLinear, which the executor does not"):
        GraphExecutor(model)


def test_a_missing_input_is_named():
    model = model_of("g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y) { y = Add (x, z) }")
    with pytest.raises(SparseccError, match="computes no z"):
        GraphExecutor(model).run({"x": torch.zeros(2, 3)}, ["y"])


def test_kernels_are_launched_on_the_device_of_the_graph(monkeypatch):
    model = model_of("g (float[2, 3] x) => (float[2, 3] y) { y = Neg (x) }")
    chosen = []
    monkeypatch.setattr(executor, "on_device", lambda device: contextlib.nullcontext(chosen.append(device)))
    GraphExecutor(model).run({"x": torch.zeros(2, 3)}, ["y"])
    assert chosen == [torch.device("cpu")]
    monkeypatch.setattr(torch.cuda, "device", lambda device: device)
    assert on_device(torch.device("cuda:1")) == torch.device("cuda:1")


def test_a_split_into_fewer_pieces_than_outputs_is_named():
    model = model_of(
        'g (float[2, 6] x) => (float[2, 2] y) { ["cut"] a, b, c, d = Split <axis = 1> (x, widths) y = Add (c, d) }',
        {"widths": np.array([2, 2, 2])},
    )
    with pytest.raises(SparseccError, match="Split 'cut' has 4 outputs and gives 3"):
        GraphExecutor(model).run({"x": torch.zeros(2, 6)}, ["y"])


def test_an_output_that_an_operator_does_not_give_is_named():
    model = model_of('g (float[2, 6] x) => (float[2, 6] z) { ["more"] y, z = Neg (x) }')
    with pytest.raises(SparseccError, match="Neg 'more' has 2 outputs and gives 1"):
        GraphExecutor(model).run({"x": torch.zeros(2, 6)}, ["z"])


def test_a_missing_file_of_weights_is_one_line(tmp_path):
    ir.save(model_of("g (float[2, 3] x) => (float[2, 3] y) { y = Add (x, w) }", {"w": (2, 3)}), tmp_path / "m.onnx")
    model = ir.load(tmp_path / "m.onnx")
    missing = ir.ExternalTensor("gone", 0, 24, ir.DataType.FLOAT, shape=ir.Shape([2, 3]), name="w", base_dir=tmp_path)
    model.graph.initializers["w"].const_value = missing
    with pytest.raises(SparseccError, match=r"the constants of Add of output 'y' cannot be loaded: .*gone"):
        GraphExecutor(model)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
            "reading: the memory of cuda:1 is full; take",
        ),
        (AttributeError("'NoneType' has no shape"), "reading: 'NoneType' has no shape; export or compile"),
        (OSError(5, "broken"), "reading: .*broken; export or compile"),
        (SparseccError("one line"), "^one line$"),
    ],
)
def test_failures_are_one_line_and_name_full_memory(error, said):
    with pytest.raises(SparseccError, match=said), executor_failures("reading", torch.device("cuda:1")):
        raise error


def test_a_step_that_cannot_be_captured_is_one_line(monkeypatch):
    def invalid(_step, _reset):
        raise RuntimeError("operation not permitted when stream is capturing\nSearch for it")

    monkeypatch.setattr(cuda_graph, "_captured", invalid)
    said = "a decode step cannot be captured as a CUDA graph: operation not permitted when stream is capturing; export"
    with pytest.raises(SparseccError, match=said):
        cuda_graph.captured(lambda: torch.zeros(1), lambda: None, torch.device("cpu"))
