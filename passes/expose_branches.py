from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.initializers import float32_copy, register
from sparsecc.operators import ADDED
from sparsecc.passes.split_low_rank import low_rank_branch
from sparsecc.projections import Projection, find_projections


def direction_mask_name(projection: str) -> str:
    """The graph input that says which directions the branch of a projection of that name has, float32 [r], 0 or 1."""
    return f"{projection}/low_rank/mask"


class ExposeBranchesPass(ir.passes.InPlacePass):
    """Put beside named projections a low-rank branch whose directions can be switched off by an input of the graph.

    So that ranks can be tried without building a session for each. For the projection's W and B [r, N] the sum is
    x_kept W + ((x - x_kept) W B^T * mask) B. :class:`SplitLowRankPass` computes the same for a mask of ones with fewer
    products.

    Raises:
        ir.passes.PreconditionError: a branch is for a projection that the model has not, or that has no threshold.
    """

    def __init__(self, branches: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self.branches = branches

    def requires(self, model: ir.Model) -> None:
        thresholded = {projection.name for projection in find_projections(model.graph) if projection.threshold}
        for name in self.branches.keys() - thresholded:
            raise ir.passes.PreconditionError(f"{name} has no threshold that a branch could be beside")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        bare = self._without_branch(model)
        for projection in bare:
            _insert(model.graph, projection, self.branches[projection.name])
        return ir.passes.PassResult(model, bool(bare))

    def ensures(self, model: ir.Model) -> None:
        for projection in self._without_branch(model):
            raise ir.passes.PostconditionError(f"{projection.name} has no low-rank branch")

    def _without_branch(self, model: ir.Model) -> list[Projection]:
        return [
            projection
            for projection in find_projections(model.graph)
            if projection.name in self.branches and low_rank_branch(projection) is None
        ]


def _insert(graph: ir.Graph, projection: Projection, outer: NDArray[np.float32]) -> None:
    node, name, weight = projection.node, f"{projection.name}/low_rank", projection.weight.const_value
    assert weight is not None
    mask = ir.Value(
        name=direction_mask_name(projection.name),
        shape=ir.Shape([len(outer)]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    graph.inputs.append(mask)
    inner_value = register(graph, f"{name}/A", ir.tensor(float32_copy(weight) @ outer.T))
    outer_value = register(graph, f"{name}/B", ir.tensor(outer))
    notes = {ADDED: "low-rank branch"}
    dropped = ir.node("Sub", [projection.input, node.inputs[0]], name=f"{name}/Sub")
    narrow = ir.node("MatMul", [dropped.outputs[0], inner_value], name=f"{name}/A/MatMul", metadata_props=notes)
    masked = ir.node("Mul", [narrow.outputs[0], mask], name=f"{name}/Mul")
    wide = ir.node("MatMul", [masked.outputs[0], outer_value], name=f"{name}/B/MatMul", metadata_props=notes)
    product = node.outputs[0]
    total = ir.Value(name=product.name, shape=product.shape, type=product.type)
    add = ir.node("Add", [wide.outputs[0], None], name=f"{name}/Add", outputs=[total])
    graph.insert_after(node, [dropped, narrow, masked, wide, add])
    ir.convenience.replace_all_uses_with(product, total, replace_graph_outputs=True)
    product.name = f"{name}/product"
    add.replace_input_with(1, product)
