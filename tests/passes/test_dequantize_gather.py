from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsecc.passes import DequantizeGatherPass

from ..graphs import model_of, operators, run, serialized
from ..quantized import bit_fields, blockwise, weight_of

Constants = dict[str, NDArray[Any]]


def gather(constants: Constants, **attributes: int) -> ir.Model:
    """A model of one GatherBlockQuantized of ``data``, or of ``flat`` in the shape ``shape``."""
    written = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    reshape = "data = Reshape(flat, shape)" if "flat" in constants else ""
    zero_points = ", zero_points" if "zero_points" in constants else ""
    text = f"""
    lookup (int64[n, m] indices) => (float y) {{
      {reshape}
      ["/embed/GatherBlockQuantized"]
      y = com.microsoft.GatherBlockQuantized <{written}> (data, indices, scales{zero_points})
    }}"""
    model = model_of(text, constants)
    model.graph.outputs[0].shape = None
    return model


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    blocks=st.integers(1, 4),
    bits=st.sampled_from([2, 4, 8]),
    block_size=st.sampled_from([16, 32]),
    has_zero_points=st.booleans(),
    is_reshaped=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_bytes_of_packed_numbers_stay_what_onnxruntime_gathers(
    *, rows: int, blocks: int, bits: int, block_size: int, has_zero_points: bool, is_reshaped: bool, seed: int
):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows, blocks * block_size * bits // 8), dtype=np.uint8)
    arrays: Constants = {"scales": rng.standard_normal((rows, blocks)).astype(np.float32)}
    zero_points: Any = 2.0 ** (bits - 1)
    if has_zero_points:
        arrays["zero_points"] = rng.integers(0, 256, (rows, -(-blocks * bits // 8)), dtype=np.uint8)
        zero_points = bit_fields(arrays["zero_points"], bits)[:, :blocks]
    arrays |= {"flat": data.reshape(-1, 4), "shape": np.array(data.shape)} if is_reshaped else {"data": data}
    model = gather(arrays, bits=bits, block_size=block_size, gather_axis=0, quantize_axis=1)
    indices = rng.integers(-rows, rows, (2, 3))
    (expected,) = run(model, indices=indices)
    assert DequantizeGatherPass()(model).modified
    table = blockwise(bit_fields(data, bits), arrays["scales"], zero_points, 1, block_size)
    np.testing.assert_allclose(weight_of(model, "Gather", 0), table, rtol=3e-7, atol=1e-6)
    np.testing.assert_array_equal(run(model, indices=indices)[0], expected)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    is_signed=st.booleans(),
    block_size=st.sampled_from([16, 32]),
    has_zero_points=st.booleans(),
    axes=st.tuples(st.integers(-2, 1), st.integers(-2, 1)),
    seed=st.integers(0, 2**32),
)
def test_four_bit_types_stay_what_onnxruntime_gathers(
    *, shape: list[int], is_signed: bool, block_size: int, has_zero_points: bool, axes: tuple[int, int], seed: int
):
    rng = np.random.default_rng(seed)
    dtype, smallest = (ml_dtypes.int4, -8) if is_signed else (ml_dtypes.uint4, 0)
    quantize_axis, gather_axis = axes
    if quantize_axis % len(shape) == gather_axis % len(shape):
        gather_axis = quantize_axis + 1 if quantize_axis % len(shape) + 1 < len(shape) else quantize_axis - 1
    data = rng.integers(smallest, smallest + 16, shape)
    by_block = [*shape]
    by_block[quantize_axis] = -(-shape[quantize_axis] // block_size)
    arrays: Constants = {"data": data.astype(dtype), "scales": rng.standard_normal(by_block).astype(np.float32)}
    zero_points: Any = 0
    if has_zero_points:
        zero_points = rng.integers(smallest, smallest + 16, by_block)
        arrays["zero_points"] = zero_points.astype(dtype)
    model = gather(arrays, block_size=block_size, gather_axis=gather_axis, quantize_axis=quantize_axis)
    indices = rng.integers(0, shape[gather_axis], (2, 3))
    (expected,) = run(model, indices=indices)
    assert DequantizeGatherPass()(model).modified
    table = blockwise(data, arrays["scales"], zero_points, quantize_axis % len(shape), block_size)
    np.testing.assert_allclose(weight_of(model, "Gather", 0), table, rtol=3e-7, atol=1e-6)
    np.testing.assert_array_equal(run(model, indices=indices)[0], expected)


ATTRIBUTES = {"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}


def constants(**replaced: NDArray[Any]) -> Constants:
    arrays = {"data": zeros(5, 16), "scales": zeros(5, 2, dtype=np.float32), "zero_points": zeros(5, 1)}
    return arrays | replaced


def zeros(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changed", "replaced", "complaint"),
    [
        ({"bits": 3}, {}, "3 bits"),
        ({"bits": -8}, {}, "-8 bits"),
        ({"bits": 8}, {}, "scales of shape"),
        ({"block_size": 0}, {}, "block_size 0"),
        ({"block_size": -16}, {}, "block_size -16"),
        ({"block_size": 2**62}, {}, "scales of shape"),
        ({"gather_axis": 2}, {}, "gather_axis 2"),
        ({"gather_axis": 1}, {}, "last axis"),
        ({"quantize_axis": -3}, {}, "quantize_axis -3"),
        ({"quantize_axis": 0}, {}, "last axis"),
        ({"batch_dims": 1}, {}, "'batch_dims'"),
        ({}, {"data": zeros(5, 16, dtype=np.int8)}, "INT8"),
        ({"bits": 8}, {"data": zeros(5, 32, dtype=ml_dtypes.int4)}, "8 bits"),
        ({}, {"data": zeros(5, 16, dtype=ml_dtypes.float8_e4m3fn)}, "FLOAT8E4M3FN"),
        ({}, {"data": zeros(16)}, "quantize_axis 1"),
        ({}, {"data": zeros(0, 16)}, r"shape \[0, 16\]"),
        ({}, {"scales": zeros(5, 2, dtype=np.float16)}, "FLOAT16"),
        ({}, {"scales": zeros(2, 5, dtype=np.float32)}, "scales of shape"),
        ({}, {"scales": zeros(1, 2, dtype=np.float32)}, "scales of shape"),
        ({}, {"zero_points": zeros(5, 2)}, "zero_points of shape"),
        ({}, {"zero_points": zeros(5, 2, dtype=ml_dtypes.uint4)}, "zero_points of type UINT4"),
        ({}, {"flat": zeros(80), "shape": np.array([4, 16])}, "Reshape"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, int], replaced: Constants, complaint: str):
    arrays = constants(**replaced)
    if "flat" in arrays:
        del arrays["data"]
    model = gather(arrays, **(ATTRIBUTES | changed))
    before = serialized(model)
    with pytest.raises(ir.passes.PreconditionError, match=complaint):
        DequantizeGatherPass()(model)
    assert serialized(model) == before


@pytest.mark.parametrize("inputs", ["data, indices", "indices, indices, scales", "data, indices, data2"])
def test_data_that_is_missing_or_computed_is_refused(inputs: str):
    text = f"""lookup (int64[n] indices, float[5, 2] data2) => (float[n, 32] y) {{
      y = com.microsoft.GatherBlockQuantized <block_size = 16> ({inputs})
    }}"""
    with pytest.raises(ir.passes.PreconditionError, match="GatherBlockQuantized"):
        DequantizeGatherPass()(model_of(text, constants()))


def test_a_second_call_does_nothing():
    model = gather(constants(), **ATTRIBUTES)
    with pytest.raises(ir.passes.PostconditionError):
        DequantizeGatherPass().ensures(model)
    assert DequantizeGatherPass()(model).modified
    assert not DequantizeGatherPass()(model).modified
    assert operators(model) == ["Gather"]
    assert model.graph[0].name == "/embed/Gather"
