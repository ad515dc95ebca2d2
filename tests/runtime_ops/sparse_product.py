"""Sparse products with weights of each type: how to make one, its value in float64, and how far a kernel may be off."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from .one_op import LIBRARY, Arrays, run

WEIGHT_TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "int4": ml_dtypes.int4}
QUANTIZED = {"int8": (-128, 127), "int4": (-8, 7)}

ROWS_OF_A_GROUP = 32
OUTLIER = 8
MOST_FEW_ROWS = 6  # of values; more are multiplied tile by tile
CHANNELS_OF_A_TILE = 256
FEWEST_CHANNELS_IN_INTEGERS = 64
COLUMNS_OF_A_PANEL = 16
LARGEST_MULTIPLIER = {"int8": 32767, "int4": 127}
SMALLEST_NORMAL = 2.0**-126  # of float32: what is smaller need not be kept


@dataclass(frozen=True)
class SparseProduct:
    """values[..., A] @ W[indices] + bias, with W[K, N] = weights, or weights * scales in blocks along a row."""

    weight_type: str
    values: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    scales: np.ndarray | None = None
    block: int = 0
    bias: np.ndarray | None = None

    def run(self, how: str = LIBRARY, threads: int = 2) -> np.ndarray:
        """The product that an operator gives."""
        feeds: Arrays = {"values": self.values, "indices": self.indices}
        if self.scales is None:
            feeds["W"] = self.weights
        else:
            feeds |= {"Wq": self.weights, "scales": self.scales}
        if self.bias is not None:
            feeds["bias"] = self.bias
        if self.scales is None:
            return run("SparseMatMul", feeds, how, threads)[0]
        return run("SparseMatMulNBits", feeds, how, threads, block_size=self.block)[0]

    @property
    def columns(self) -> int:
        return int(self.weights.shape[1])

    @property
    def rows(self) -> int:
        return int(np.prod(self.values.shape[:-1]))

    def _by_column(self, by_block: np.ndarray) -> np.ndarray:
        return np.asarray(by_block[..., np.arange(self.columns) // self.block])

    @functools.cached_property
    def active_rows(self) -> np.ndarray:
        """W[indices] in float64."""
        rows: np.ndarray = self.weights[self.indices].astype(np.float64)
        return rows if self.scales is None else rows * self._by_column(self.scales[self.indices].astype(np.float64))

    def exact(self) -> np.ndarray:
        """The product in float64."""
        return np.asarray(multiply(self.values.astype(np.float64), self.active_rows) + self._bias())

    def sum_of_absolute_terms(self) -> np.ndarray:
        """The natural scale of rounding errors, for each output."""
        terms = multiply(np.abs(self.values).astype(np.float64), np.abs(self.active_rows))
        return np.asarray(terms + np.abs(self._bias()))

    def _bias(self) -> np.ndarray:
        return np.zeros(self.columns) if self.bias is None else self.bias.astype(np.float64)

    def multiplier_rounding(self) -> np.ndarray:
        """The most that rounding the multipliers of few rows of values may change each output.

        For 32 active rows and a block of columns, value * scale is rounded to a multiple of
        unit = max of abs(value) * max of abs(scale) / largest multiplier, so a term is off by unit / 2 * abs(q).
        Of one row of values, those above 8 times the mean are in groups of their own.
        """
        units = LARGEST_MULTIPLIER[self.weight_type]
        return self._rounding(self._groups(np.abs(self.values).astype(np.float64)), 0.5 / units)

    def panel_rounding(self) -> np.ndarray:
        """The most that the integers of many rows of values may change each output.

        For a tile of active channels and a block of columns, values, scales and their products are each rounded to
        16 bits, so a term is off by 1.5 units of max of abs(value) * max of abs(scale) / 32767, times abs(q).
        """
        positions = np.arange(len(self.indices))
        tiles = np.split(positions, positions[CHANNELS_OF_A_TILE::CHANNELS_OF_A_TILE])
        return self._rounding((tile for tile in tiles if len(tile)), 1.5 / 32767)

    def _rounding(self, groups: Iterable[np.ndarray], share: float) -> np.ndarray:
        """``share`` of the largest term that the values and scales of each group of active channels could make."""
        assert self.scales is not None
        magnitudes, scales = np.abs(self.values).astype(np.float64), np.abs(self.scales).astype(np.float64)
        total = np.zeros((*self.values.shape[:-1], self.columns))
        for group in groups:
            largest_values = magnitudes[..., group].max(axis=-1, keepdims=True)
            largest_scales = self._by_column(scales[self.indices[group]].max(axis=0))
            weights = np.abs(self.weights[self.indices[group]].astype(np.float64)).sum(axis=0)
            total += largest_values * largest_scales * share * weights
        return total

    def _groups(self, magnitudes: np.ndarray) -> Iterator[np.ndarray]:
        """The positions of the active channels that share units, by group; outliers change places with the first."""
        order = np.arange(len(self.indices))
        outliers: list[int] = []
        if self.rows == 1:
            flat = magnitudes.reshape(-1)
            outliers = np.flatnonzero(flat > OUTLIER * flat.sum() / max(1, len(flat))).tolist()
        for place, position in enumerate(outliers):
            order[[place, position]] = order[[position, place]]
        for positions in np.split(order, [len(outliers)]):
            for first in range(0, len(positions), ROWS_OF_A_GROUP):
                yield positions[first : first + ROWS_OF_A_GROUP]

    def tolerance(self, kernels: str) -> np.ndarray:
        """How far each output of these kernels may be from the exact one."""
        with np.errstate(invalid="ignore"):
            terms = self.sum_of_absolute_terms()
            bound = 1e-5 * terms + (1 + len(self.indices)) * SMALLEST_NORMAL
            if self.scales is None or kernels != "fastest":
                return bound
            if self._has_few_rows():
                return bound + (self.multiplier_rounding() if self.block % ROWS_OF_A_GROUP == 0 else 0)
            are_integers = self.block % COLUMNS_OF_A_PANEL == 0 and len(self.indices) >= FEWEST_CHANNELS_IN_INTEGERS
            return bound + (self.panel_rounding() if are_integers else 0)

    def _has_few_rows(self) -> bool:
        """Whether rows of values are multiplied one by one: a few, where stripes begin with a byte and a block."""
        columns_of_a_stripe = {"int8": 1024, "int4": 2048}[self.weight_type]
        is_whole_bytes = self.weight_type == "int8" or (self.columns % 2 == 0 and self.block % 2 == 0)
        return self.rows <= MOST_FEW_ROWS and is_whole_bytes and columns_of_a_stripe % self.block == 0

    def check(self, product: np.ndarray, kernels: str) -> None:
        """Fails unless the product has the right shape and type, is right where finite, and IEEE's elsewhere."""
        with np.errstate(invalid="ignore"):
            expected = self.exact()
        assert product.shape == expected.shape
        assert product.dtype == np.float32
        is_finite = np.isfinite(expected)
        np.testing.assert_array_equal(product[~is_finite], expected[~is_finite].astype(np.float32))
        if is_finite.any():
            error = np.abs(product[is_finite].astype(np.float64) - expected[is_finite])
            worst = np.max(error / self.tolerance(kernels)[is_finite])
            assert worst <= 1, f"{worst} times what may be"


def multiply(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """values @ rows, with what IEEE says of each term where one is not finite, which a BLAS may not."""
    if np.isfinite(values).all() and np.isfinite(rows).all():
        return np.asarray(values @ rows)
    with np.errstate(invalid="ignore"):
        return np.asarray((values[..., None] * rows).sum(axis=-2))


def random_weights(
    rng: np.random.Generator, weight_type: str, channels: int, columns: int, block: int = 32
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights, and scales of both signs where the type has them."""
    if weight_type not in QUANTIZED:
        return rng.standard_normal((channels, columns)).astype(WEIGHT_TYPES[weight_type]), None
    low, high = QUANTIZED[weight_type]
    weights = rng.integers(low, high + 1, (channels, columns)).astype(WEIGHT_TYPES[weight_type])
    scales = rng.uniform(-0.1, 0.1, (channels, -(-columns // block))).astype(np.float16)
    return weights, scales


def random_product(
    rng: np.random.Generator,
    weight_type: str,
    *,
    leading: tuple[int, ...],
    channels: int,
    columns: int,
    active: int,
    block: int = 32,
    has_bias: bool = True,
) -> SparseProduct:
    """A product of random values and weights, with that many of the channels active."""
    weights, scales = random_weights(rng, weight_type, channels, columns, block)
    return SparseProduct(
        weight_type,
        rng.standard_normal((*leading, active)).astype(np.float32),
        np.sort(rng.permutation(channels)[:active]),
        weights,
        scales,
        block,
        rng.standard_normal(columns).astype(np.float32) if has_bias else None,
    )
