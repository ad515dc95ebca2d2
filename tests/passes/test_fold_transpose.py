import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.passes import FoldTransposePass

from ..graphs import model_of, operators, random_arrays, run
from ..quantized import weight_of

SHAPES = {"w": (4, 8), "cube": (4, 8, 2)}


def product(transpose: str, rest: str = "y = MatMul(x, t)", y: str = "float[s, 4] y") -> ir.Model:
    return model_of(f"product (float[s, 8] x, float[4, 8] given) => ({y}) {{ t = {transpose}  {rest} }}", SHAPES)


@pytest.mark.parametrize("transpose", ["Transpose(w)", "Transpose <perm = [1, 0]> (w)"])
def test_a_weight_is_transposed_when_it_is_written(transpose: str):
    model = product(transpose)
    x = random_arrays({"x": (3, 8)}, seed=1)["x"]
    given = np.zeros((4, 8), np.float32)
    expected = run(model, x=x, given=given)
    with pytest.raises(ir.passes.PostconditionError):
        FoldTransposePass().ensures(model)
    assert FoldTransposePass()(model).modified
    assert operators(model) == ["MatMul"]
    np.testing.assert_array_equal(weight_of(model, "MatMul", 1), random_arrays(SHAPES)["w"].T)
    np.testing.assert_array_equal(run(model, x=x, given=given), expected)
    assert not FoldTransposePass()(model).modified


@pytest.mark.parametrize(
    ("transpose", "rest", "y"),
    [
        ("Transpose(given)", "y = MatMul(x, t)", "float[s, 4] y"),
        ("Transpose <perm = [0, 1]> (w)", "y = MatMul(t, t)", "float[s, 4] y"),
        ("Transpose(cube)", "y = MatMul(x, t)", "float y"),
        ("Transpose(w)", "y = Gather(t, x)", "float y"),
        ("Transpose(w)", "y = MatMul(x, t)  z = Relu(t)", "float y, float z"),
        ("Transpose(w)", "y = MatMul(x, t)", "float y, float t"),
        ("Transpose(w)", "y = MatMul(t, w)", "float y"),
    ],
    ids=["computed", "no transposition", "three axes", "gathered", "read elsewhere", "an output", "on the left"],
)
def test_any_other_transpose_is_left_alone(transpose: str, rest: str, y: str):
    model = product(transpose, rest, y)
    before = operators(model)
    assert not FoldTransposePass()(model).modified
    assert operators(model) == before
