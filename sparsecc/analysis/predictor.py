"""A network with one hidden layer that foretells from an early hidden state which neurons later layers will need.

ShadowLLM (arXiv 2406.16635) and Deja Vu (arXiv 2310.17157) train such networks: scores = relu(x W1 + b1) W2 + b2,
one score for each neuron of all the layers behind, by binary cross-entropy against what was active.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecc.progress import track

HIDDEN = 128
STEPS = 160
"""However many tokens there are: fewer are seen more often."""
_BATCH = 128
_LEARNING_RATE = 3e-3
_DROPOUT = 0.2
_RAREST = 1e-3
"""Neurons that are active less often than that, or inactive, start as if they were not."""


@dataclasses.dataclass(frozen=True)
class Predictor:
    """The weights of a trained network, float32.

    Attributes:
        first_weight, first_bias: [channels, hidden] and [hidden].
        second_weight, second_bias: [hidden, neurons] and [neurons].
    """

    first_weight: NDArray[np.float32]
    first_bias: NDArray[np.float32]
    second_weight: NDArray[np.float32]
    second_bias: NDArray[np.float32]

    def hidden(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """The hidden layer [tokens, hidden] for states [tokens, channels]."""
        layer: NDArray[np.float32] = np.maximum(states @ self.first_weight + self.first_bias, 0)
        return layer

    def scores(self, hidden: NDArray[np.float32], neurons: slice = slice(None)) -> NDArray[np.float32]:
        """The scores [tokens, neurons] of some neurons, from the hidden layer."""
        scores: NDArray[np.float32] = hidden @ self.second_weight[:, neurons] + self.second_bias[neurons]
        return scores


def train(
    states: NDArray[np.float32],
    active: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    frequency: NDArray[np.float32],
    *,
    seed: int,
) -> Predictor:
    """Train a predictor; the same seed and inputs give the same network on the same machine.

    Args:
        states: finite float32 [tokens, channels].
        active: from token numbers [batch] what was active at them, bool [batch, neurons].
        frequency: float32 [neurons], how often each neuron is active. The network starts from it, so that it begins
            where always predicting the hottest neurons would end.
        seed: of the first weights and of the order of tokens.
    """
    mean, scale = states.mean(axis=0), states.std(axis=0)
    scale[scale == 0] = 1
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Network(states.shape[1], frequency)
        _fit(network, torch.from_numpy((states - mean) / scale), active)
    first_weight = _transposed(network.first.weight)
    return Predictor(
        first_weight / scale[:, None],
        network.first.bias.detach().numpy() - (mean / scale) @ first_weight,
        _transposed(network.second.weight),
        network.second.bias.detach().numpy(),
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch from waiting: where another process has a core, its threads spin for each other, ten times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Network(torch.nn.Module):
    """What is trained: a :class:`Predictor` of standardized states, with dropout."""

    def __init__(self, channels: int, frequency: NDArray[np.float32]) -> None:
        super().__init__()
        self.first = torch.nn.Linear(channels, HIDDEN)
        self.second = torch.nn.Linear(HIDDEN, frequency.size)
        likely = np.clip(frequency, _RAREST, 1 - _RAREST)
        with torch.no_grad():
            self.second.bias.copy_(torch.from_numpy(np.log(likely / (1 - likely))))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.dropout(torch.relu(self.first(states)), _DROPOUT)
        scores: torch.Tensor = self.second(hidden)
        return scores


def _fit(
    network: _Network,
    states: torch.Tensor,
    active: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=STEPS)
    orders = [torch.randperm(len(states)) for _ in range(-(-STEPS * _BATCH // len(states)))]
    order = torch.cat(orders)
    steps = [order[start : start + _BATCH] for start in range(0, STEPS * _BATCH, _BATCH)]
    for step in track(steps, "training a predictor", STEPS):
        scores = network(states[step])
        wanted = torch.from_numpy(active(step.numpy()))
        optimizer.zero_grad()
        # The gradient of binary cross-entropy, without the passes over memory that its value would take.
        scores.backward((torch.sigmoid(scores.detach()) - wanted.float()) / scores.numel())
        optimizer.step()
        schedule.step()


def _transposed(weight: torch.Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(weight.detach().numpy().T)
