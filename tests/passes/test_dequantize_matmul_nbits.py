from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsecc.passes import DequantizeMatMulNBitsPass

from ..graphs import model_of, operators, run, serialized
from ..quantized import bit_fields, blockwise, matmul_nbits, weight_of

Constants = dict[str, NDArray[Any]]


def random_constants(
    rng: np.random.Generator, rows: int, columns: int, bits: int, block_size: int, *, zero_points: str = "none"
) -> Constants:
    blocks = -(-rows // block_size)
    constants: Constants = {
        "packed": rng.integers(0, 256, (columns, blocks, block_size * bits // 8), dtype=np.uint8),
        "scales": rng.standard_normal((columns, blocks)).astype(np.float32),
    }
    if zero_points == "packed":
        constants["zero_points"] = rng.integers(0, 256, (columns, -(-blocks * bits // 8)), dtype=np.uint8)
    if zero_points == "float":
        constants["zero_points"] = (4 * rng.standard_normal((columns, blocks))).astype(np.float32)
    return constants


def weight(constants: Constants, rows: int, columns: int, bits: int, block_size: int) -> NDArray[np.float64]:
    """W[K, N] in float64."""
    blocks = -(-rows // block_size)
    integers = bit_fields(constants["packed"].reshape(columns, -1), bits)
    zero_points: Any = constants.get("zero_points", 2.0 ** (bits - 1))
    if isinstance(zero_points, np.ndarray):
        zero_points = zero_points.reshape(columns, -1)
        if zero_points.dtype == np.uint8:
            zero_points = bit_fields(zero_points, bits)[:, :blocks]
    return blockwise(integers, constants["scales"].reshape(columns, -1), zero_points, 1, block_size)[:, :rows].T


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 40),
    bits=st.sampled_from([2, 4, 8]),
    block_size=st.sampled_from([16, 32, 64, 128]),
    zero_points=st.sampled_from(["none", "packed", "float"]),
    has_one_axis=st.booleans(),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_product_stays_what_onnxruntime_computes(
    *,
    rows: int,
    columns: int,
    bits: int,
    block_size: int,
    zero_points: str,
    has_one_axis: bool,
    has_bias: bool,
    seed: int,
):
    rng = np.random.default_rng(seed)
    constants = random_constants(rng, rows, columns, bits, block_size, zero_points=zero_points)
    expected = weight(constants, rows, columns, bits, block_size)
    if has_one_axis:
        constants |= {name: constants[name].ravel() for name in ("scales", "zero_points") if name in constants}
    if has_bias:
        constants["bias"] = rng.standard_normal(columns).astype(np.float32)
    model = matmul_nbits(constants, {"K": rows, "N": columns, "bits": bits, "block_size": block_size})
    x = rng.standard_normal((3, rows)).astype(np.float32)
    is_run_by_onnxruntime = (bits, zero_points) != (8, "float")
    (quantized,) = run(model, x=x) if is_run_by_onnxruntime else [None]
    assert DequantizeMatMulNBitsPass()(model).modified
    actual = weight_of(model, "MatMul", 1)
    np.testing.assert_allclose(actual, expected, rtol=3e-7, atol=1e-6)
    exact = x.astype(np.float64) @ expected + constants.get("bias", 0)
    scale = np.abs(x.astype(np.float64)) @ np.abs(expected) + 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (product,) = run(model, x=x)
    assert np.all(np.abs(product - exact) <= 1e-5 * scale)
    if quantized is not None:
        assert np.all(np.abs(product - quantized) <= 1e-5 * scale)


SHAPE = {"K": 40, "N": 6, "bits": 4, "block_size": 16}


def constants(**replaced: NDArray[Any]) -> Constants:
    return random_constants(np.random.default_rng(0), 40, 6, 4, 16, zero_points="packed") | replaced


def zeros(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changed", "replaced", "complaint"),
    [
        ({"K": 64}, {}, "a weight of shape"),
        ({"K": 0}, {}, r"shape \[0, 6\]"),
        ({"K": -40}, {}, r"shape \[-40, 6\]"),
        ({"K": 2**62}, {}, "a weight of shape"),
        ({"N": 7}, {}, "a weight of shape"),
        ({"N": 0}, {}, r"shape \[40, 0\]"),
        ({"bits": 3}, {}, "3 bits"),
        ({"bits": 0}, {}, "0 bits"),
        ({"bits": -4}, {}, "-4 bits"),
        ({"bits": 8}, {}, "a weight of shape"),
        ({"block_size": 0}, {}, "block_size 0"),
        ({"block_size": -16}, {}, "block_size -16"),
        ({"block_size": 8}, {}, "block_size 8"),
        ({"block_size": 24}, {}, "block_size 24"),
        ({"block_size": 32}, {}, "a weight of shape"),
        ({"block_size": 2**40}, {}, "a weight of shape"),
        ({"weight_prepacked": 1}, {}, "prepacked"),
        ({"transposed": 1}, {}, "'transposed'"),
        ({}, {"g_idx": zeros(40, dtype=np.int32)}, "g_idx"),
        ({}, {"packed": zeros(6, 3, 8, dtype=np.int8)}, "INT8"),
        ({}, {"packed": zeros(6, 24)}, r"shape \[6, 24\]"),
        ({}, {"packed": zeros(3, 6, 8)}, r"shape \[3, 6, 8\]"),
        ({}, {"packed": zeros(0, 3, 8)}, r"shape \[0, 3, 8\]"),
        ({}, {"scales": zeros(6, 3, dtype=np.float16)}, "FLOAT16"),
        ({}, {"scales": zeros(3, 6, dtype=np.float32)}, r"scales of shape \[3, 6\]"),
        ({}, {"scales": zeros(17, dtype=np.float32)}, r"scales of shape \[17\]"),
        ({}, {"zero_points": zeros(6, 3)}, r"zero_points of shape \[6, 3\]"),
        ({}, {"zero_points": zeros(6, 2, dtype=np.float32)}, r"zero_points of shape \[6, 2\]"),
        ({}, {"zero_points": zeros(6, 3, dtype=np.int8)}, "zero_points of type INT8"),
        ({}, {"bias": zeros(1, dtype=np.float32)}, r"float32 \[6\]"),
        ({}, {"bias": zeros(6, dtype=np.float16)}, r"float32 \[6\]"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, int], replaced: Constants, complaint: str):
    model = matmul_nbits(constants(**replaced), SHAPE | changed)
    before = serialized(model)
    with pytest.raises(ir.passes.PreconditionError, match=complaint) as refusal:
        DequantizeMatMulNBitsPass()(model)
    assert "\n" not in str(refusal.value)
    assert serialized(model) == before


@pytest.mark.parametrize("name", ["K", "N", "block_size"])
def test_an_attribute_that_is_missing_or_no_integer_is_refused(name: str):
    model = matmul_nbits(constants(), SHAPE)
    for attribute in (
        ir.AttrString(name, "40"),
        ir.AttrFloat32(name, 40.0),
        ir.RefAttr(name, name, ir.AttributeType.INT),
    ):
        model.graph[0].attributes[name] = attribute
        with pytest.raises(ir.passes.PreconditionError, match=f"no integer {name}"):
            DequantizeMatMulNBitsPass()(model)
    del model.graph[0].attributes[name]
    with pytest.raises(ir.passes.PreconditionError, match=f"no integer {name}"):
        DequantizeMatMulNBitsPass()(model)


@pytest.mark.parametrize(("index", "name"), [(1, "weight"), (2, "scales"), (3, "zero_points")])
def test_a_weight_that_is_computed_is_refused(index: int, name: str):
    model = matmul_nbits(constants(), SHAPE)
    model.graph[0].replace_input_with(index, model.graph.inputs[0])
    with pytest.raises(ir.passes.PreconditionError, match=f"no constant {name}"):
        DequantizeMatMulNBitsPass()(model)


def test_a_name_cannot_break_the_line():
    model = matmul_nbits(constants(), SHAPE | {"bits": 3})
    model.graph[0].name = "first\nsecond\x1b[2J"
    with pytest.raises(ir.passes.PreconditionError, match=r"'first\\nsecond\\x1b\[2J'"):
        DequantizeMatMulNBitsPass()(model)


def test_the_product_takes_the_name_it_had_before_quantization():
    model = matmul_nbits(constants(bias=zeros(6, dtype=np.float32)), SHAPE)
    DequantizeMatMulNBitsPass()(model)
    assert [node.name for node in model.graph] == ["/up/MatMul", "/up/Add"]
    assert [value.name for value in model.graph.outputs] == ["y"]


SHARED = """
shared (float[s, 40] x) => (float[s, 6] y) {
  reshaped = Reshape(flat, shape)
  a = com.microsoft.MatMulNBits <K = 40, N = 6, block_size = 16> (x, packed, scales)
  b = com.microsoft.MatMulNBits <K = 40, N = 6, block_size = 16> (x, packed, scales)
  c = com.microsoft.MatMulNBits <K = 40, N = 6, block_size = 16> (x, reshaped, scales)
  d = Add(a, b)
  y = Add(d, c)
}"""


def shared(shape: list[int]) -> ir.Model:
    arrays = random_constants(np.random.default_rng(0), 40, 6, 4, 16)
    return model_of(SHARED, arrays | {"flat": arrays["packed"].reshape(6, 24), "shape": np.array(shape)})


@pytest.mark.parametrize("shape", [[6, 3, 8], [6, -1, 8], [-1, 3, 8]])
def test_a_weight_that_is_shared_or_reshaped_is_read(shape: list[int]):
    model = shared(shape)
    x = np.random.default_rng(1).standard_normal((2, 40)).astype(np.float32)
    (expected,) = run(model, x=x)
    DequantizeMatMulNBitsPass()(model)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert products[0].inputs[1] is products[1].inputs[1] is not products[2].inputs[1]
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [[6, 3, 9], [0, 3, 8], [-1, -1, 8], [-6, 3, -8], [2**62, 4, 8], [5, -1, 8], []])
def test_a_reshape_that_cannot_be_is_refused(shape: list[int]):
    with pytest.raises(ir.passes.PreconditionError, match="Reshape"):
        DequantizeMatMulNBitsPass()(shared(shape))


def test_a_model_with_an_operator_of_its_own_by_that_name_is_left_alone():
    model = matmul_nbits(constants(), SHAPE)
    body = ir.node("MatMul", [ir.val("a"), ir.val("b")])
    graph = ir.Graph(list(body.inputs), body.outputs, nodes=[body], opset_imports={"": 22})
    function = ir.Function("com.microsoft", "MatMulNBits", graph=graph, attributes=[])
    model.functions[function.identifier()] = function
    assert not DequantizeMatMulNBitsPass()(model).modified
    assert operators(model) == ["MatMulNBits"]


def test_another_domain_is_left_alone_and_a_second_call_does_nothing():
    assert not DequantizeMatMulNBitsPass()(matmul_nbits(constants(), SHAPE, "ai.sparsecc")).modified
    model = matmul_nbits(constants(), SHAPE)
    assert DequantizeMatMulNBitsPass()(model).modified
    assert not DequantizeMatMulNBitsPass()(model).modified
    with pytest.raises(ir.passes.PostconditionError):
        DequantizeMatMulNBitsPass().ensures(matmul_nbits(constants(), SHAPE))
