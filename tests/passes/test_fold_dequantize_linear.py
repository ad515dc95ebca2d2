from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsecc.passes import FoldDequantizeLinearPass

from ..graphs import model_of, operators, run, serialized
from ..quantized import blockwise, weight_of

Constants = dict[str, NDArray[Any]]
TYPES = {ml_dtypes.int4: (-8, 8), ml_dtypes.uint4: (0, 16), np.int8: (-128, 128), np.uint8: (0, 256)}


def dequantization(constants: Constants, domain: str = "", **attributes: int) -> ir.Model:
    """A model that multiplies by what a DequantizeLinear gives, element by element."""
    written = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    zero_point = ", zero_point" if "zero_point" in constants else ""
    text = f"""
    weighed (float x) => (float y) {{
      w = {domain + "." if domain else ""}DequantizeLinear <{written}> (data, scale{zero_point})
      ["/up/Mul_matmul_Q4"] y = Mul(x, w)
    }}"""
    model = model_of(text, constants, opset=23)
    model.graph.inputs[0].shape = model.graph.outputs[0].shape = None
    return model


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(list(TYPES)),
    granularity=st.sampled_from(["tensor", "axis", "block"]),
    block_size=st.integers(1, 50),
    axis=st.integers(-3, 2),
    has_zero_point=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_constant_is_what_onnxruntime_computes(
    *, shape: list[int], dtype: type, granularity: str, block_size: int, axis: int, has_zero_point: bool, seed: int
):
    rng = np.random.default_rng(seed)
    axis = axis % len(shape) - (len(shape) if axis < 0 else 0)
    place = axis % len(shape)
    by_block = [*shape]
    by_block[place] = -(-shape[place] // block_size)
    scale_shape = {"tensor": [], "axis": [shape[place]], "block": by_block}[granularity]
    assume(scale_shape != [1] or granularity != "block")  # onnxruntime takes it for one scale for all
    data = rng.integers(*TYPES[dtype], shape)
    arrays: Constants = {"data": data.astype(dtype), "scale": np.array(rng.standard_normal(scale_shape), np.float32)}
    zero_point: NDArray[Any] = np.zeros(scale_shape)
    if has_zero_point:
        zero_point = np.array(rng.integers(*TYPES[dtype], scale_shape))
        arrays["zero_point"] = zero_point.astype(dtype)
    attributes = {"axis": axis} | ({"block_size": block_size} if granularity == "block" else {})
    if granularity == "block":
        expected = blockwise(data, arrays["scale"], zero_point, place, block_size)
    else:
        sizes = [-1 if other == place and granularity == "axis" else 1 for other in range(len(shape))]
        expected = (data - zero_point.reshape(sizes)) * arrays["scale"].astype(np.float64).reshape(sizes)
    model = dequantization(arrays, **attributes)
    ones = np.ones(shape, np.float32)
    (quantized,) = run(model, x=ones)
    assert FoldDequantizeLinearPass()(model).modified
    assert operators(model) == ["Mul"]
    np.testing.assert_allclose(weight_of(model, "Mul", 1), expected, rtol=3e-7, atol=1e-6)
    np.testing.assert_array_equal(run(model, x=ones)[0], quantized)


def constants(**replaced: NDArray[Any]) -> Constants:
    return {"data": zeros(6, 4, dtype=np.int8), "scale": zeros(2, 4, dtype=np.float32)} | replaced


def zeros(*shape: int, dtype: Any) -> NDArray[Any]:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changed", "replaced", "complaint"),
    [
        ({"block_size": -3}, {}, "block_size -3"),
        ({"block_size": 2}, {}, "scale of shape"),
        ({"block_size": 2**62}, {}, "scale of shape"),
        ({"axis": 2}, {}, "axis 2"),
        ({"axis": -3}, {}, "axis -3"),
        ({"axis": 1}, {}, "scale of shape"),
        ({"saturate": 1}, {}, "'saturate'"),
        ({"output_dtype": 10}, {}, "float32"),
        ({"block_size": 0}, {}, r"scales, not \[6\]"),
        ({"block_size": 0}, {"scale": zeros(4, dtype=np.float32)}, r"\[4\] scales, not \[6\]"),
        ({}, {"scale": zeros(dtype=np.float32)}, "scale of shape"),
        ({}, {"scale": zeros(2, 4, dtype=np.float16)}, "FLOAT16"),
        ({}, {"scale": zeros(0, 4, dtype=np.float32)}, r"shape \[0, 4\]"),
        ({}, {"data": zeros(0, 4, dtype=np.int8)}, r"shape \[0, 4\]"),
        ({}, {"data": zeros(dtype=np.int8)}, "rank 0"),
        ({}, {"zero_point": zeros(2, 4, dtype=np.uint8)}, "zero point"),
        ({}, {"zero_point": zeros(4, 2, dtype=np.int8)}, "zero point"),
        ({}, {"zero_point": zeros(dtype=np.int8)}, "zero point"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, int], replaced: Constants, complaint: str):
    model = dequantization(constants(**replaced), **({"axis": 0, "block_size": 3} | changed))
    before = serialized(model)
    with pytest.raises(ir.passes.PreconditionError, match=complaint):
        FoldDequantizeLinearPass()(model)
    assert serialized(model) == before


@pytest.mark.parametrize(
    "text",
    [
        "all (int8[6] q) => (float[6] y) { y = DequantizeLinear(q, one) }",
        "all (float one_more) => (float[6, 4] y) { w = DequantizeLinear(data, one_more)  y = Relu(w) }",
        "all () => (float[6, 4] y) { y = DequantizeLinear(data, one) }",
        "all () => (float[6, 4] y) { w = DequantizeLinear(wide, one)  y = Relu(w) }",
        "all () => (float[6, 4] y) { w = other.DequantizeLinear(data, one)  y = Relu(w) }",
        "all () => (float[6, 4] y) { w = DequantizeLinear()  y = Relu(w) }",
    ],
    ids=["data computed", "scale computed", "is an output", "other type", "other domain", "no input"],
)
def test_what_is_no_constant_of_small_integers_is_left_alone(text: str):
    arrays = {"data": zeros(6, 4, dtype=np.int8), "one": np.ones((), np.float32), "wide": zeros(6, 4, dtype=np.int32)}
    model = model_of(text, arrays)
    assert not FoldDequantizeLinearPass()(model).modified
    assert "DequantizeLinear" in operators(model)


def test_constant_nodes_and_onnxruntimes_own_operator_are_read():
    text = """
    all (float[2] x) => (float[2] y) {
      data = Constant <value = int8[2] {3, -4}> ()
      scale = Constant <value_float = 0.5> ()
      w = com.microsoft.DequantizeLinear(data, scale)
      y = Mul(x, w)
    }"""
    model = model_of(text)
    assert FoldDequantizeLinearPass()(model).modified
    assert weight_of(model, "Mul", 1).tolist() == [1.5, -2.0]


def test_a_second_call_does_nothing_and_the_product_has_its_old_name():
    model = dequantization(constants(), axis=0, block_size=3)
    with pytest.raises(ir.passes.PostconditionError):
        FoldDequantizeLinearPass().ensures(model)
    assert FoldDequantizeLinearPass()(model).modified
    assert not FoldDequantizeLinearPass()(model).modified
    assert model.graph[0].name == "/up/Mul"
