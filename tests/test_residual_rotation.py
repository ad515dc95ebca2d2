import numpy as np
import pytest
import torch

from sparsecc import residual_rotation
from sparsecc.residual_rotation import ObservedStream, learn_rotation

TOKENS, WIDTH, SPARSITY = 2048, 16, 0.5


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
