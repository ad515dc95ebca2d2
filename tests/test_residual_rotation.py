"""The objective of a rotation, against float64, and what is learned by it."""

import dataclasses

import numpy as np
import pytest
import torch

from sparsecc import residual_rotation
from sparsecc.residual_rotation import ObservedStream, _cayley, _cost, _divergence_by_weight, _level, learn_rotation

TOKENS, WIDTH, SPARSITY = 2048, 16, 0.5
NARROW = 6


def hidden_in_a_random_basis(seed):
    """Hidden states whose entries differ a thousandfold in variance in a basis that only the test knows."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    normalized = (rng.normal(size=(TOKENS, WIDTH)) * np.geomspace(1, 1e-3, WIDTH)) @ basis.T
    gradient = rng.normal(size=(TOKENS, WIDTH))
    return basis, ObservedStream(_float32(normalized), _float32(gradient), outputs=3)


def _float32(array):
    return torch.from_numpy(array.astype(np.float32))


def least_divergence(stream, basis):
    """The divergence, in float64, of skipping the half of all entries that matters least in a basis."""
    normalized, gradient = stream.normalized.numpy().astype(np.float64), stream.gradient.numpy().astype(np.float64)
    divergence = (normalized @ basis) ** 2 * ((gradient @ basis) ** 2).mean(0)
    skipped = np.sort(divergence, axis=None)[: round(SPARSITY * divergence.size)]
    return skipped.sum() / divergence.sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_basis_is_found_in_which_half_of_the_entries_hardly_matter(seed):
    known, stream = hidden_in_a_random_basis(seed)
    found = learn_rotation([stream], SPARSITY)
    identity, best = least_divergence(stream, np.eye(WIDTH)), least_divergence(stream, known)
    assert best < least_divergence(stream, found) < best + 0.05 * (identity - best)


def test_the_basis_is_orthogonal():
    _, stream = hidden_in_a_random_basis(2)
    found = learn_rotation([stream], SPARSITY).astype(np.float64)
    np.testing.assert_allclose(found.T @ found, np.eye(WIDTH), atol=1e-6)


def test_it_is_the_same_every_time():
    _, stream = hidden_in_a_random_basis(3)
    np.testing.assert_array_equal(learn_rotation([stream], SPARSITY), learn_rotation([stream], SPARSITY))


def test_hidden_states_that_are_all_zero_change_nothing(monkeypatch):
    monkeypatch.setattr(residual_rotation, "STEPS", 3)
    stream = ObservedStream(torch.zeros(8, WIDTH), torch.zeros(8, WIDTH), outputs=3)
    np.testing.assert_array_equal(learn_rotation([stream], SPARSITY), np.eye(WIDTH, dtype=np.float32))


@pytest.fixture
def streams():
    """Two of other N, other numbers of tokens and other scales, in float64."""
    rng = np.random.default_rng(4)
    scales = [np.geomspace(1, 0.1, NARROW), np.geomspace(0.2, 4, NARROW)]
    return [
        ObservedStream(
            torch.from_numpy(rng.normal(size=(tokens, NARROW)) * scale),
            torch.from_numpy(rng.normal(size=(tokens, NARROW))),
            outputs,
        )
        for tokens, outputs, scale in zip((30, 50), (5, 2), scales, strict=True)
    ]


def by_weight(stream, basis):
    """v / N of every entry, by loops."""
    hidden, gradient = stream.normalized.numpy() @ basis, stream.gradient.numpy() @ basis
    fisher = [sum(g * g for g in column) / len(column) for column in gradient.T]
    return np.array([[x * x * f / stream.outputs for x, f in zip(row, fisher, strict=True)] for row in hidden])


def objective(streams, free, level):
    """What learn_rotation says it makes small, for one channel's weights: the sum of r / (1 + r) over the weights."""
    skew = (free - free.T) / 2
    basis = np.linalg.inv(np.eye(NARROW) + skew) @ (np.eye(NARROW) - skew)
    total = 0.0
    for stream in streams:
        ratio = by_weight(stream, basis) / level
        total += stream.outputs * (ratio / (1 + ratio)).sum() / len(ratio)
    return total / sum(stream.outputs for stream in streams)


def test_streams_cost_as_much_as_they_have_weights(streams):
    """The objective and, by central differences, its gradient."""
    start = np.random.default_rng(5).normal(size=(NARROW, NARROW)) / 2
    free, level = torch.from_numpy(start).requires_grad_(), torch.tensor(0.1, dtype=torch.float64)
    cost = _cost([_divergence_by_weight(stream, _cayley(free)) for stream in streams], streams, level)
    assert cost.item() == pytest.approx(objective(streams, start, 0.1), rel=1e-12)
    (gradient,) = torch.autograd.grad(cost, free)
    step, expected = 1e-5, np.zeros_like(start)
    for place in np.ndindex(start.shape):
        moved = np.zeros_like(start)
        moved[place] = step
        expected[place] = (objective(streams, start + moved, 0.1) - objective(streams, start - moved, 0.1)) / (2 * step)
    np.testing.assert_allclose(gradient, expected, atol=1e-7 * np.abs(expected).max())


def test_the_level_skips_a_share_of_the_weights_not_of_the_entries(streams):
    basis = np.eye(NARROW)
    level = _level([_divergence_by_weight(stream, torch.eye(NARROW).double()) for stream in streams], streams, SPARSITY)
    below = [int((by_weight(stream, basis) < level.item()).sum()) for stream in streams]
    weights = sum(stream.outputs * stream.normalized.numel() for stream in streams)
    skipped = sum(stream.outputs * count for stream, count in zip(streams, below, strict=True))
    largest = max(stream.outputs for stream in streams)
    assert SPARSITY * weights - largest <= skipped <= SPARSITY * weights


def test_the_basis_suits_the_stream_that_more_weights_read():
    """Either of two streams that ask for different bases gives way where hardly anything reads it."""
    first, second = hidden_in_a_random_basis(4)[1], hidden_in_a_random_basis(5)[1]
    for heavy, light in ((first, second), (second, first)):
        weighted = [dataclasses.replace(stream, outputs=50 if stream is heavy else 1) for stream in (first, second)]
        found = learn_rotation(weighted, SPARSITY)
        assert least_divergence(heavy, found) < 0.5 * least_divergence(light, found)
