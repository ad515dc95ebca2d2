"""What a small change of a hidden state does to a model's predictions, by automatic differentiation of its graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.errors import MisfitError, SparseccError, runtime_failures
from sparsecc.model_file import load_model
from sparsecc.progress import track
from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.text import TokenWindows

Observation = tuple[torch.Tensor, torch.Tensor]
"""A hidden state and its gradient, each float32 [T, K]."""


def hidden_state_gradients(
    dense: Artifact, hidden_states: Sequence[str], windows: TokenWindows, *, seed: int = 0
) -> Iterator[Mapping[str, Observation]]:
    """For each window of a text, hidden states and the gradients of the loss with respect to them.

    The loss is the summed negative log-likelihood of tokens drawn from the model's own predictions, so that the second
    moment of a gradient g is the Fisher information F of the predictions: where a hidden state changes by d, they
    diverge by d^T F d / 2 nats to second order. All that reads a hidden state takes part in its gradient.

    Raises:
        MisfitError: the model cannot be differentiated.
        SparseccError: logits or a gradient are not finite.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _misfits():
        executor = GraphExecutor(load_model(dense.model_path), device)
    generator = torch.Generator(device).manual_seed(seed)
    for window in track(windows.ids, "differentiating", len(windows.ids)):
        outputs = [dense.logits_name, *hidden_states]
        with _misfits():
            results = executor.run(_inputs(dense, executor, window), outputs, {hidden_states[0]: _as_leaf})
            logits = results[dense.logits_name][0].float()
            _require_finite(logits, f"{dense.model_path} computes NaN or infinity; check the checkpoint")
            drawn = torch.multinomial(torch.softmax(logits.detach(), -1), 1, generator=generator)[:, 0]
            loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
            gradients = torch.autograd.grad(loss, [results[name] for name in hidden_states])
        for gradient in gradients:
            _require_finite(gradient, f"{dense.model_path} has gradients that are not finite; check the checkpoint")
        yield {
            name: (results[name].detach().flatten(0, -2), gradient.flatten(0, -2))
            for name, gradient in zip(hidden_states, gradients, strict=True)
        }


def _require_finite(tensor: torch.Tensor, complaint: str) -> None:
    if not bool(tensor.isfinite().all()):
        raise SparseccError(complaint)


@contextlib.contextmanager
def _misfits() -> Iterator[None]:
    """What the executor or torch cannot do with a model, memory included, is no mistake of the user's."""
    try:
        with runtime_failures("the model cannot be differentiated"):
            yield
    except SparseccError as error:
        raise MisfitError(str(error)) from error


def _as_leaf(hidden: torch.Tensor) -> torch.Tensor:
    """The first hidden state: all others are computed from it, so gradients reach them as well."""
    return hidden.detach().requires_grad_()


def _inputs(dense: Artifact, executor: GraphExecutor, window: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """A window with nothing before it."""
    shape = dense.cache_shape
    empty = torch.zeros(1, shape["kv_heads"], 0, shape["head_size"])
    ids = torch.from_numpy(window)[None]
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(ids.shape[1])[None],
        **{name: empty for name in executor.input_names if name.startswith("past")},
    }
    return {name: given[name] for name in executor.input_names if name in given}
