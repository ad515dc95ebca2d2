"""GatherMatMul and GatherMatMulNBits with each type of weights and each set of kernels against float64 NumPy.

Sizes lie around those at which the kernels change how they go about it: vectors of 8 and 16 values, chunks of 32 that
share a unit, strips of 256; 4 weight rows at once.
"""

import dataclasses

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .one_op import LIBRARY, REFERENCE, STOCK, run
from .sparse_product import QUANTIZED, WEIGHT_TYPES, random_weights

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
InvalidArgument = ort.capi.onnxruntime_pybind11_state.InvalidArgument
LARGEST_INTEGER = 127


@dataclasses.dataclass(frozen=True)
class GatheredProduct:
    """x[..., K] @ transpose(W[indices]), with W[N, K] = weights, or weights * scales in blocks along a row."""

    x: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    scales: np.ndarray | None = None
    block: int = 32

    def run(self, how: str = LIBRARY, threads: int = 2) -> np.ndarray:
        feeds = {"X": self.x, "indices": self.indices}
        if self.scales is None:
            return run("GatherMatMul", {**feeds, "W": self.weights}, how, threads)[0]
        feeds |= {"Wq": self.weights, "scales": self.scales}
        return run("GatherMatMulNBits", feeds, how, threads, block_size=self.block)[0]

    def rows(self) -> np.ndarray:
        rows = self.weights[self.indices].astype(np.float64)
        if self.scales is None:
            return rows
        return rows * self.scales[self.indices].astype(np.float64)[:, np.arange(rows.shape[1]) // self.block]

    def rounding(self) -> np.ndarray:
        """The most that rounding x to 8 bits, relative to the largest of 32, may change each output."""
        units = np.zeros(self.x.shape)
        for first in range(0, self.x.shape[-1], 32):
            chunk = np.abs(self.x[..., first : first + 32])
            units[..., first : first + 32] = chunk.max(axis=-1, keepdims=True) / LARGEST_INTEGER
        return 0.502 * units @ np.abs(self.rows()).T

    def check(self, product: np.ndarray, *, may_round: bool) -> None:
        x, rows = self.x.astype(np.float64), self.rows()
        expected = x @ rows.T
        assert (product.shape, product.dtype) == (expected.shape, np.float32)
        bound = 1e-5 * (np.abs(x) @ np.abs(rows).T) + 1e-37
        if may_round and self.scales is not None and self.block % 32 == 0:
            bound += self.rounding()
        assert (np.abs(product - expected) <= bound).all()


@st.composite
def products(draw: st.DrawFn) -> GatheredProduct:
    """Any sizes and blocks, output channels in any order, some twice."""
    channels = draw(st.integers(1, 300) | st.sampled_from([31, 32, 64, 255, 256, 257, 512, 1056]))
    columns = draw(st.integers(1, 70))
    block = draw(st.sampled_from([32, 64, 96, 256]) | st.integers(1, 100))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights, scales = random_weights(rng, draw(st.sampled_from(list(WEIGHT_TYPES))), columns, channels, block)
    leading = draw(st.sampled_from([(), (1,), (1, 1), (2, 3), (17,), (0,), (2, 0)]))
    x = rng.standard_normal((*leading, channels)).astype(np.float32)
    x[rng.random(x.shape) < draw(st.sampled_from([0.0, 0.9, 1.0]))] = 0
    return GatheredProduct(x, rng.integers(0, columns, draw(st.integers(0, 80))), weights, scales, block)


@PROPERTY
@given(product=products())
def test_any_size(product: GatheredProduct, kernels: str) -> None:
    one, two = product.run(threads=1), product.run(threads=2)
    np.testing.assert_array_equal(one, two)
    product.check(one, may_round=kernels == "fastest")


@PROPERTY
@given(product=products())
def test_is_its_function(product: GatheredProduct) -> None:
    product.check(product.run(STOCK), may_round=False)
    if product.x.size > 0:  # the reference evaluator cannot flatten an empty tensor
        product.check(product.run(REFERENCE), may_round=False)


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_on_several_threads(weight_type: str, kernels: str) -> None:
    rng = np.random.default_rng(0)
    weights, scales = random_weights(rng, weight_type, 1500, 576)
    x = rng.standard_normal((3, 576)).astype(np.float32)
    product = GatheredProduct(x, np.flatnonzero(rng.random(1500) < 0.5), weights, scales)
    one, two = product.run(threads=1), product.run(threads=2)
    np.testing.assert_array_equal(one, two)
    product.check(two, may_round=kernels == "fastest")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("weight_type", QUANTIZED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e-45, 1e-38, 1e-30, 3e38])
def test_values_out_of_the_ordinary(weight_type: str, value: float) -> None:
    """They are not rounded: what IEEE says of the sum of products holds."""
    weights, scales = random_weights(np.random.default_rng(0), weight_type, 9, 96)
    x = np.ones((2, 96), np.float32)
    x[0, 40] = value
    product = GatheredProduct(x, np.arange(9), weights, scales).run()
    terms = weights[:, 40].astype(np.float32) * scales[:, 1].astype(np.float32)
    with np.errstate(all="ignore"):
        if not np.isfinite(value):
            np.testing.assert_array_equal(product[0], terms * np.float32(value))
        elif value > 1:
            np.testing.assert_allclose(product[0], terms * np.float32(value), rtol=1e-4, atol=100)
    assert np.isfinite(product[1]).all()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("weight_type", QUANTIZED)
def test_the_ends_of_the_types(weight_type: str) -> None:
    """Sums of the largest weights and values stay within the integers that they are taken in."""
    low, high = QUANTIZED[weight_type]
    weights = np.full((4, 4096), low, WEIGHT_TYPES[weight_type])
    weights[1], weights[2, ::2] = high, high
    scales = np.full((4, 128), 65504, np.float16)
    x = np.full((1, 4096), 3.0, np.float32)
    x[0, 1::4] = -3
    product = GatheredProduct(x, np.arange(4), weights, scales)
    product.check(product.run(), may_round=True)


def test_only_chosen_rows_count() -> None:
    weights = np.full((5, 64), np.nan, np.float32)
    weights[3] = 1
    x = np.ones((1, 64), np.float32)
    np.testing.assert_array_equal(GatheredProduct(x, np.array([3]), weights).run(), [[64]])


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"X": zeros()}, r"X must have rank 1 or more, but its shape is \[\]"),
        ({"X": zeros(2, 6)}, r"X is \[2, 6\], but W has 7 columns"),
        ({"X": zeros(2, 0)}, r"X is \[2, 0\], but W has 7 columns"),
        ({"indices": np.array([0, 5])}, "indices has 5 at position 1, but W has 5 rows"),
        ({"indices": np.array([-1, 0])}, "indices has -1 at position 0, but W has 5 rows"),
        ({"indices": np.zeros((1, 2), np.int64)}, r"indices must have rank 1, but its shape is \[1, 2\]"),
        ({"W": zeros(7)}, r"W must have rank 2, but its shape is \[7\]"),
        ({"W": zeros(0, 7)}, "indices has 0 at position 0, but W has 0 rows"),
    ],
)
def test_rejects(replaced: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"GatherMatMul: {message}"):
        run("GatherMatMul", {"X": zeros(3, 7), "indices": np.array([0, 4]), "W": zeros(5, 7)} | replaced)


@pytest.mark.parametrize("weight_type", QUANTIZED)
@pytest.mark.parametrize("shape", [(5, 1), (4, 2), (5, 3), (0, 2)])
def test_rejects_scales_of_another_shape(weight_type: str, shape: tuple[int, int]) -> None:
    feeds = {"X": zeros(3, 40), "indices": np.array([0]), "Wq": np.zeros((5, 40), WEIGHT_TYPES[weight_type])}
    with pytest.raises(InvalidArgument, match="GatherMatMulNBits: scales is"):
        run("GatherMatMulNBits", {**feeds, "scales": np.zeros(shape, np.float16)}, block_size=32)


@pytest.mark.parametrize("block", [0, -1, -(2**63)])
def test_rejects_a_block_of_no_size(block: int) -> None:
    feeds = {"X": zeros(3, 40), "indices": np.array([0]), "Wq": np.zeros((5, 40), ml_dtypes.int4)}
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.RuntimeException, match="block_size must be positive"):
        run("GatherMatMulNBits", {**feeds, "scales": np.zeros((5, 2), np.float16)}, block_size=block)
