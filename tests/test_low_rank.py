"""Leading directions of matrices against singular value decompositions in float64."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecc.low_rank import leading_output_directions, whitened


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.data())
def test_the_leading_directions_give_the_nearest_matrix_of_their_rank(rows: int, columns: int, data: st.DataObject):
    rank = data.draw(st.integers(0, min(rows, columns)))
    matrix = np.random.default_rng(data.draw(st.integers(0, 2**32))).standard_normal((rows, columns))
    directions = leading_output_directions(matrix, rank)
    assert (directions.shape, directions.dtype) == ((rank, columns), np.float32)
    np.testing.assert_allclose(directions @ directions.T, np.eye(rank), atol=1e-5)
    lost = np.linalg.norm(matrix - matrix @ directions.T @ directions)
    trailing = np.linalg.svd(matrix, compute_uv=False)[rank:]
    np.testing.assert_allclose(lost, np.linalg.norm(trailing), atol=1e-4)


def test_directions_beyond_the_rank_of_a_matrix_are_orthonormal_too():
    matrix = np.outer(np.arange(1.0, 5), np.arange(1.0, 8))
    directions = leading_output_directions(matrix, 3)
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(matrix @ directions.T @ directions, matrix, atol=1e-4)


def test_whitened_directions_lose_least_of_the_products_with_given_vectors():
    rng = np.random.default_rng(0)
    dropped = (rng.standard_normal((500, 12)) @ rng.standard_normal((12, 12))).astype(np.float32)
    weight = rng.standard_normal((12, 9)).astype(np.float32)
    exact = dropped.astype(np.float64) @ weight

    def lost(matrix: np.ndarray) -> float:
        directions = leading_output_directions(matrix, 4).astype(np.float64)
        return float(np.linalg.norm(exact - exact @ directions.T @ directions))

    least = np.linalg.norm(np.linalg.svd(exact, compute_uv=False)[4:])
    np.testing.assert_allclose(lost(whitened(weight, dropped.T @ dropped)), least, rtol=1e-4)
    assert lost(weight) > least
