import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.passes import InsertThresholdPass, LimitSparseRowsPass, ShipFunctionsPass

from ..graphs import model_of, operators, recipe_for, run

THRESHOLD = "sparse (float[b, s, 4] x, float[1] t) => (float[b, s, 4] y) { y = ai.sparsecc.Threshold(x, t) }"


def test_every_threshold_gets_the_limit(dense_model: ir.Model):
    InsertThresholdPass(recipe_for(dense_model))(dense_model)
    LimitSparseRowsPass(7)(dense_model)
    limits = {n.attributes.get_int("max_sparse_rows") for n in dense_model.graph if n.op_type == "Threshold"}
    assert limits == {7}


@pytest.mark.parametrize(("limit", "modified"), [(0, False), (1, True)])
def test_a_threshold_without_the_attribute_has_no_limit(limit: int, modified: bool):
    model = model_of(THRESHOLD)
    assert LimitSparseRowsPass(limit)(model).modified is modified


def test_the_limit_can_be_lifted_again():
    model = model_of(THRESHOLD)
    LimitSparseRowsPass(4)(model)
    assert LimitSparseRowsPass(0)(model).modified
    assert model.graph[0].attributes.get_int("max_sparse_rows") == 0
    assert operators(model) == ["Threshold"]


@pytest.mark.parametrize(
    ("limit", "batch", "rows", "is_dense"),
    [(0, 1, 9, False), (4, 1, 1, False), (4, 1, 4, False), (4, 2, 2, False), (4, 1, 5, True), (4, 3, 2, True)],
)
def test_a_hidden_state_with_more_rows_passes_untouched(limit: int, batch: int, rows: int, is_dense: bool):
    model = model_of(THRESHOLD)
    LimitSparseRowsPass(limit)(model)
    ShipFunctionsPass()(model)
    x = np.full((batch, rows, 4), 0.5, np.float32)
    (y,) = run(model, x=x, t=np.ones(1, np.float32))
    np.testing.assert_array_equal(y, x if is_dense else np.zeros_like(x))
