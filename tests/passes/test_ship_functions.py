import onnx
import onnx_ir as ir
import pytest

from sparsecc.passes import ShipFunctionsPass
from sparsecc.sparsify import sparsify

from ..graphs import FEED_FORWARD, FEED_FORWARD_SHAPES, model_of, random_arrays, recipe_for, run


def shipped(model: ir.Model) -> set[str]:
    return {function.name for function in model.functions.values()}


def test_only_the_operators_in_use_are_shipped():
    model = model_of("sparse (float[8] x, float[1] t) => (float[8] y) { y = ai.sparsecc.Threshold(x, t) }")
    del model.opset_imports["ai.sparsecc"]
    assert ShipFunctionsPass()(model).modified
    assert shipped(model) == {"Threshold"}
    assert model.opset_imports["ai.sparsecc"] == 1


def test_a_sparse_model_ships_its_three_operators(model: ir.Model):
    sparsify(model, recipe_for(model))
    assert shipped(model) == {"Threshold", "GatherActive", "SparseMatMul"}


def test_a_missing_import_alone_is_a_change(model: ir.Model):
    sparsify(model, recipe_for(model))
    del model.opset_imports["ai.sparsecc"]
    assert ShipFunctionsPass()(model).modified
    assert model.opset_imports["ai.sparsecc"] == 1


def test_a_sparse_operator_that_there_is_not_is_refused():
    model = model_of("unknown (float[8] x) => (float[8] y) { y = ai.sparsecc.Unheard(x) }")
    with pytest.raises(ir.passes.PreconditionError, match="Unheard"):
        ShipFunctionsPass()(model)


def test_functions_that_are_there_stay(model: ir.Model):
    sparsify(model, recipe_for(model))
    before = dict(model.functions)
    ShipFunctionsPass()(model)
    assert dict(model.functions) == before


@pytest.mark.parametrize("opset", range(18, 27))
def test_the_functions_agree_with_the_opset_of_the_model(opset: int):
    model = model_of(FEED_FORWARD, FEED_FORWARD_SHAPES, opset=opset)
    sparsify(model, recipe_for(model))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert run(model, **random_arrays({"x": (1, 2, 8)}))[0].shape == (1, 2, 8)
