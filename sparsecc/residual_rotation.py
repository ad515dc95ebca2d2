"""An orthogonal basis for the residual stream in which fewer entries of its hidden states matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sparsecc.artifact import Artifact
from sparsecc.hidden_state_gradients import hidden_state_gradients
from sparsecc.progress import track
from sparsecc.text import TokenWindows

STEPS = 200
LEARNING_RATE = 1e-2
ROWS_PER_STEP = 256
"""Tokens of each hidden state that a step sees."""
SAMPLED_BYTES = 4 << 30
"""How much memory the observed tokens may take: all 16,384 of a model of width 768 with 12 layers."""
_STEPS_BETWEEN_LEVELS = 20


@dataclasses.dataclass(frozen=True)
class ObservedStream:
    """What one layer half, or the head, reads of the residual stream, on some tokens of a text.

    Attributes:
        normalized: float32 [T, D], the stream after its RMS norm without the norm's gain.
        gradient: float32 [T, D], of the loss of :func:`hidden_state_gradients` with respect to it.
        outputs: N, how many outputs of projections read it.
    """

    normalized: torch.Tensor
    gradient: torch.Tensor
    outputs: int


def observe_stream(
    dense: Artifact, gains: Mapping[str, NDArray[np.float32]], outputs: Mapping[str, int], windows: TokenWindows
) -> list[ObservedStream]:
    """Sample the hidden states that norms with the given gains compute, and their gradients, in ``SAMPLED_BYTES``.

    ``gains`` has float32 [D] for the name of each hidden state, ``outputs`` how many outputs read it.

    Raises:
        MisfitError: the model cannot be differentiated.
    """
    rows = torch.Generator().manual_seed(0)
    bytes_per_token = sum(2 * gain.nbytes for gain in gains.values())
    per_window = max(1, SAMPLED_BYTES // bytes_per_token // len(windows.ids))
    samples: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in gains}
    for observed in hidden_state_gradients(dense, list(gains), windows):
        chosen = torch.randperm(windows.window, generator=rows)[:per_window]
        for name, (hidden, gradient) in observed.items():
            picked = chosen.to(hidden.device)
            samples[name].append((hidden[picked], gradient[picked]))
    return [_without_gain(samples.pop(name), torch.from_numpy(gain), outputs[name]) for name, gain in gains.items()]


def _without_gain(
    samples: Sequence[tuple[torch.Tensor, torch.Tensor]], gain: torch.Tensor, outputs: int
) -> ObservedStream:
    """A gain moves from the norm into the weights: the hidden state is divided by it, the gradient multiplied.

    What a gain of zero hides has no gradient, so it counts as zero.
    """
    hidden = torch.cat([hidden for hidden, _ in samples])
    gradient = torch.cat([gradient for _, gradient in samples])
    gain = gain.to(hidden.device)
    normalized = torch.where(gain == 0, 0, hidden / torch.where(gain == 0, 1, gain))
    return ObservedStream(normalized, gradient * gain, outputs)


def learn_rotation(streams: Sequence[ObservedStream], sparsity: float) -> NDArray[np.float32]:
    """The basis Q float32 [D, D], orthogonal, in which skipping channels costs least divergence for what it spares.

    In the basis Q a hidden state is x Q, and skipping its entry k makes predictions diverge by v = (x Q)_k^2 F_k / 2
    nats, F_k = E[(g Q)_k^2], and spares N weights (see :func:`sparsecc.methods.fisher.fisher`). With a level of v / N
    that skips ``sparsity`` of the weights, each entry costs min(v / N, level) * N: its divergence if it is skipped, and
    what its weights are worth if it is kept. Q makes the sum of this over all entries, tokens and layers small;
    r / (1 + r) with r = v / N / level stands for min(r, 1) because it is smooth. No weight is trained: whatever Q is,
    the dense model computes the same, since the norm's gain is folded into the weights and an RMS norm without a gain
    commutes with a rotation (Ashkboos et al., SliceGPT, arXiv 2401.15024).

    Q is the Cayley transform of a skew-symmetric matrix, which Adam moves, beginning at the identity.
    """
    width, device = streams[0].normalized.shape[1], streams[0].normalized.device
    generator = torch.Generator(device).manual_seed(0)
    free = torch.zeros(width, width, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([free], LEARNING_RATE)
    level = torch.tensor(0.0)
    for step in track(range(STEPS), "rotating", STEPS):
        basis = _cayley(free)
        batch = [_rows(stream, generator) for stream in streams]
        values = [_divergence_by_weight(stream, basis) for stream in batch]
        if step % _STEPS_BETWEEN_LEVELS == 0:
            level = _level(values, batch, sparsity)
        optimizer.zero_grad()
        torch.autograd.backward(_cost(values, batch, level))
        optimizer.step()
    with torch.no_grad():
        return _cayley(free.double()).float().cpu().numpy()


def _cayley(free: torch.Tensor) -> torch.Tensor:
    """(I + S)^-1 (I - S) with the skew-symmetric S = (A - A^T) / 2: orthogonal, and the identity where A is zero."""
    skew = (free - free.T) / 2
    identity = torch.eye(len(free), dtype=free.dtype, device=free.device)
    basis: torch.Tensor = torch.linalg.solve(identity + skew, identity - skew)
    return basis


def _rows(stream: ObservedStream, generator: torch.Generator) -> ObservedStream:
    count = len(stream.normalized)
    chosen = torch.randint(count, (min(ROWS_PER_STEP, count),), generator=generator, device=generator.device)
    return dataclasses.replace(stream, normalized=stream.normalized[chosen], gradient=stream.gradient[chosen])


def _divergence_by_weight(stream: ObservedStream, basis: torch.Tensor) -> torch.Tensor:
    """(x Q)_k^2 F_k / N [T, D], with F from as many tokens."""
    divergence = (stream.normalized @ basis).square() * (stream.gradient @ basis).square().mean(0)
    return divergence / stream.outputs


def _cost(values: Sequence[torch.Tensor], streams: Sequence[ObservedStream], level: torch.Tensor) -> torch.Tensor:
    """What the entries of a token cost, each as often as weights hang on it, over the weights of one channel."""
    costs = [
        stream.outputs * (value / level / (1 + value / level)).sum(1).mean()
        for stream, value in zip(streams, values, strict=True)
    ]
    return torch.stack(costs).sum() / sum(stream.outputs for stream in streams)


@torch.no_grad()
def _level(values: Sequence[torch.Tensor], streams: Sequence[ObservedStream], sparsity: float) -> torch.Tensor:
    """The quantile of all values, each as often as weights hang on it."""
    pooled = torch.cat([value.flatten() for value in values])
    weights = torch.cat(
        [torch.full_like(value, stream.outputs).flatten() for value, stream in zip(values, streams, strict=True)]
    )
    order = pooled.argsort()
    below = weights[order].double().cumsum(0)
    index = int(torch.searchsorted(below, sparsity * below[-1]).clamp(max=len(order) - 1))
    return pooled[order[index]].clamp(min=torch.finfo(torch.float32).tiny)
