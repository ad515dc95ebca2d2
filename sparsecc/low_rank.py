"""The directions in which a matrix is best approximated by one of low rank."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def leading_output_directions(matrix: NDArray[np.floating], rank: int) -> NDArray[np.float32]:
    """The ``rank`` leading right singular vectors of a matrix [K, N], as orthonormal rows float32 [rank, N].

    With B for them, ``matrix`` B^T B is the nearest matrix of that rank (Eckart, Young and Mirsky). They are found on
    the smaller side of the matrix; a rank above that of the matrix is filled up with other orthonormal rows.
    """
    wide = matrix.astype(np.float64)
    if wide.shape[1] <= wide.shape[0]:
        _, vectors = np.linalg.eigh(wide.T @ wide)
        leading = vectors[:, ::-1][:, :rank]
    else:
        _, vectors = np.linalg.eigh(wide @ wide.T)
        leading, _ = np.linalg.qr(wide.T @ vectors[:, ::-1][:, :rank])
    return np.ascontiguousarray(leading.T, np.float32)


def whitened(weight: NDArray[np.float32], covariance: NDArray[np.float32]) -> NDArray[np.float64]:
    """A matrix [K, N] whose norm is that of the product of W [K, N] with vectors of second moment C [K, K].

    It is L^T W with C = L L^T, so its leading output directions are those that lose least of such products.
    A part of C that rounding makes negative counts as zero.
    """
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0))
    product: NDArray[np.float64] = root.T @ weight
    return product
