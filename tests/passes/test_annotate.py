import dataclasses

import onnx_ir as ir

from sparsecc.passes import AnnotatePass
from sparsecc.sparsify import sparsify

from ..graphs import named, recipe_for


def test_each_sparse_node_says_what_was_done_to_its_projection(model: ir.Model):
    sparsify(model, recipe_for(model, method="wina"))
    for operator in ("Threshold", "GatherActive", "SparseMatMul"):
        assert named(model, f"/layers.0/mlp/down_proj/{operator}").metadata_props == {
            "layer": "0",
            "projection": "down",
            "method": "wina",
            "target_sparsity": "0.5000",
            "calibrated_sparsity": "0.2500",
        }


def test_a_shared_node_names_all_its_projections_and_a_product_its_own(model: ir.Model):
    sparsify(model, recipe_for(model))
    for operator in ("Threshold", "GatherActive"):
        assert named(model, f"/layers.0/attn/q_proj/{operator}").metadata_props["projection"] == "q, k, v"
    assert named(model, "/layers.0/attn/k_proj/SparseMatMul").metadata_props["projection"] == "k"


def test_other_nodes_get_no_notes(dense_model: ir.Model):
    sparsify(dense_model, recipe_for(dense_model))
    assert all("method" not in node.metadata_props for node in dense_model.graph if node.domain != "ai.sparsecc")


def test_the_layer_is_the_one_of_the_projection(dense_model: ir.Model):
    sparsify(dense_model, recipe_for(dense_model))
    assert named(dense_model, "/model/layers.7/mlp/down_proj/SparseMatMul").metadata_props["layer"] == "7"


def test_projections_that_the_recipe_does_not_name_get_no_notes(model: ir.Model):
    recipe = recipe_for(model)
    sparsify(model, dataclasses.replace(recipe, projections=recipe.projections[:1]))
    noted = {node.name for node in model.graph if node.metadata_props.get("method")}
    assert noted == {f"/layers.0/attn/q_proj/{op}" for op in ("Threshold", "GatherActive", "SparseMatMul")}


def test_changed_values_are_written_anew(model: ir.Model):
    recipe = recipe_for(model)
    sparsify(model, recipe)
    entries = tuple(dataclasses.replace(entry, target_sparsity=0.75) for entry in recipe.projections)
    assert AnnotatePass(dataclasses.replace(recipe, projections=entries))(model).modified
    assert named(model, "/layers.0/mlp/up_proj/SparseMatMul").metadata_props["target_sparsity"] == "0.7500"
