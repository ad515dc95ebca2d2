"""SparseMatMul and SparseMatMulNBits with each type of weights and each set of kernels against float64 NumPy.

Sizes lie around those at which the kernels change how they go about it: 4 or 8 weight rows added at once, groups of 32,
tiles of 128 to 256; vectors of 16 to 64 columns, stripes of 64, 128, 1024 or 4096; 2 or 6 rows of values, tiles of 192
or 384.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .one_op import REFERENCE, STOCK
from .sparse_product import QUANTIZED, WEIGHT_TYPES, SparseProduct, random_product, random_weights

PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CHANNELS = 301
ACTIVE = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 31, 32, 33, 36, 40, 63, 64, 65, 97, 129, 300]

any_weight_type = pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
quantized_weight_type = pytest.mark.parametrize("weight_type", QUANTIZED)


def check(product: SparseProduct, kernels: str) -> None:
    """The same on one thread and on two, bit by bit, and right."""
    one, two = product.run(threads=1), product.run(threads=2)
    np.testing.assert_array_equal(one.view(np.uint32), two.view(np.uint32))
    product.check(one, kernels)


def products_of(weight_type: str, columns: int, sizes: list[tuple[int, int]], block: int = 32) -> list[SparseProduct]:
    """Products with the same weights, of these numbers of rows of values and of active channels."""
    rng = np.random.default_rng(columns)
    weights, scales = random_weights(rng, weight_type, CHANNELS, columns, block)
    return [
        SparseProduct(
            weight_type,
            rng.standard_normal((rows, active)).astype(np.float32),
            np.sort(rng.permutation(CHANNELS)[:active]),
            weights,
            scales,
            block,
            rng.standard_normal(columns).astype(np.float32) if active % 2 else None,
        )
        for rows, active in sizes
    ]


@any_weight_type
@pytest.mark.parametrize("columns", [1, 33, 64, 160, 576, 1088])
def test_active_channels(weight_type: str, columns: int, kernels: str) -> None:
    for product in products_of(weight_type, columns, [(1, active) for active in ACTIVE]):
        check(product, kernels)


@any_weight_type
@pytest.mark.parametrize("columns", [1025, 2048, 4097, 4160, 9280])
def test_wide(weight_type: str, columns: int, kernels: str) -> None:
    for product in products_of(weight_type, columns, [(1, 1), (1, 33), (1, 168), (2, 65), (6, 35), (7, 33), (7, 300)]):
        check(product, kernels)


@any_weight_type
@pytest.mark.parametrize("columns", [1, 31, 64, 130, 576, 1103])
def test_rows_of_values(weight_type: str, columns: int, kernels: str) -> None:
    sizes = [(2, 257), (3, 33), (6, 97), (7, 257), (17, 35), (64, 0), (64, 65), (200, 1)]
    sizes += [(200, 257), (385, 129)] if columns < 1000 else [(200, 17)]
    for product in products_of(weight_type, columns, sizes):
        check(product, kernels)


@quantized_weight_type
@pytest.mark.parametrize("block", [1, 2, 7, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 10**4, 2**63 - 1])
def test_block_sizes(weight_type: str, block: int, kernels: str) -> None:
    for columns in (33, 190, 1088, 2304):
        sizes = [(1, 70), (6, 33), (7, 5), (13, 70)] + ([(200, 257)] if columns == 190 else [])
        for product in products_of(weight_type, columns, sizes, block):
            check(product, kernels)


@st.composite
def products(draw: st.DrawFn, largest: int = 330) -> SparseProduct:
    """Any sizes, any block, a random selection of channels in any order, with or without a bias."""
    channels = draw(st.integers(1, largest) | st.sampled_from([32, 64, 256]))
    columns = draw(st.integers(1, largest) | st.sampled_from([32, 64, 96, 128, 192, 256, 320, 1088]))
    leading = draw(st.sampled_from([(), (1,), (1, 1), (2,), (6,), (7,), (5, 19), (2, 1, 3), (200,), (0,), (2, 0)]))
    fraction = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    product = random_product(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        draw(st.sampled_from(list(WEIGHT_TYPES))),
        leading=leading,
        channels=channels,
        columns=columns,
        active=int(channels * fraction),
        block=draw(st.integers(1, largest) | st.sampled_from([16, 32, 48, 64, 128])),
        has_bias=draw(st.booleans()),
    )
    if draw(st.booleans()):
        np.random.default_rng(0).shuffle(product.indices)
    return product


@PROPERTY
@given(product=products())
def test_any_size(product: SparseProduct, kernels: str) -> None:
    check(product, kernels)


@PROPERTY
@given(product=products(largest=150))
def test_is_its_function(product: SparseProduct) -> None:
    """The body of the function, in stock onnxruntime and in the reference evaluator, is the product as well."""
    product.check(product.run(STOCK), "function body")
    if product.values.size > 0:  # the reference evaluator cannot flatten an empty tensor
        product.check(product.run(REFERENCE), "function body")


@any_weight_type
@pytest.mark.parametrize("rows", [1, 2, 17, 200])
def test_indices_in_any_order_and_twice(weight_type: str, rows: int, kernels: str) -> None:
    rng = np.random.default_rng(0)
    weights, scales = random_weights(rng, weight_type, 5, 96)
    for indices in ([3, 0, 3, 2, 1], [4, 3, 2, 1, 0], [2] * 5, [2] * 70, [0, 4] * 33):
        values = rng.standard_normal((rows, len(indices))).astype(np.float32)
        check(SparseProduct(weight_type, values, np.array(indices), weights, scales, 32), kernels)


@any_weight_type
@pytest.mark.parametrize("rows", [1, 6, 100])
def test_sizes_of_zero(weight_type: str, rows: int, kernels: str) -> None:
    rng = np.random.default_rng(0)
    for channels, columns in ((5, 0), (0, 70), (0, 0)):
        product = random_product(rng, weight_type, leading=(rows,), channels=channels, columns=columns, active=channels)
        check(product, kernels)
        product.check(product.run(STOCK), "function body")
    check(random_product(rng, weight_type, leading=(0, rows), channels=5, columns=70, active=0), kernels)
