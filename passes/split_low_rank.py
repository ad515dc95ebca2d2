from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsecc.initializers import float32_copy, register
from sparsecc.operators import ADDED, is_added
from sparsecc.projections import Projection, find_projections
from sparsecc.recipe import Recipe

Array = NDArray[np.float32]


class SplitLowRankPass(ir.passes.InPlacePass):
    """Split the weight of every projection that the recipe gives a low-rank branch: W = (W - A B) + A B.

    The product of x with the first part can skip channels; (x A) B beside it is read whole. So with x_kept for what a
    threshold leaves of x, the sum is x_kept W + (x - x_kept) A B: the branch serves what is dropped (R-Sparse,
    arXiv 2504.19449, equation 5), and nothing but the projection itself reads the thresholded hidden state. Where the
    recipe stores weights in less than float32, A [K, r] and B [r, N] hold numbers of float16, whose errors W - A B
    makes up for.

    Raises:
        ir.passes.PreconditionError: the recipe names a projection that the model has not or that is sparse already,
            its branch has another width than the projection, or a factor is beyond the range of float16.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.branches = {entry.name: entry.branch for entry in recipe.projections if entry.branch is not None}
        self.branches = {name: branch for name, branch in self.branches.items() if len(branch)}
        self.dtype: type[np.floating] = np.float32 if recipe.weights == "fp32" else np.float16

    def requires(self, model: ir.Model) -> None:
        found = {projection.name: projection for projection in find_projections(model.graph)}
        for name, branch in self.branches.items():
            if name not in found:
                raise ir.passes.PreconditionError(f"the recipe names {name}, which the model does not have")
            projection = found[name]
            largest = min(projection.channels, projection.outputs)
            if branch.ndim != 2 or branch.shape[1] != projection.outputs or len(branch) > largest:
                raise ir.passes.PreconditionError(
                    f"the low-rank branch of {name} has shape {branch.shape}, "
                    f"the projection {projection.outputs} output channels and a rank of at most {largest}"
                )
            if projection.node.op_type != "MatMul":
                raise ir.passes.PreconditionError(f"{name} is sparse already")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        whole = _without_branch(model, self.branches)
        for projection in whole:
            self._split(model.graph, projection)
        return ir.passes.PassResult(model, bool(whole))

    def ensures(self, model: ir.Model) -> None:
        for projection in _without_branch(model, self.branches):
            raise ir.passes.PostconditionError(f"{projection.name} has no low-rank branch")

    def _split(self, graph: ir.Graph, projection: Projection) -> None:
        node, hidden, weight = projection.node, projection.input, projection.weight.const_value
        assert weight is not None
        outer = self._rounded(self.branches[projection.name], projection.name)
        inner = self._rounded(float32_copy(weight) @ outer.T, projection.name)

        def rest() -> ir.TensorProtocol:
            return ir.tensor(float32_copy(weight) - inner @ outer)

        name = f"{projection.name}/low_rank"
        shape = ir.Shape(weight.shape.numpy())
        node.replace_input_with(1, register(graph, f"{name}/rest", ir.LazyTensor(rest, ir.DataType.FLOAT, shape)))
        total = node.outputs[0]
        narrow = _product(graph, f"{name}/A", hidden, inner)
        wide = _product(graph, f"{name}/B", narrow.outputs[0], outer)
        product = ir.Value(name=f"{name}/rest/output_0", shape=total.shape, type=total.type)
        replacement = ir.node(
            "MatMul", node.inputs, name=node.name, outputs=[product], metadata_props=dict(node.metadata_props)
        )
        add = ir.node(
            "Add",
            [product, wide.outputs[0]],
            name=f"{name}/Add",
            outputs=[ir.Value(name=total.name, shape=total.shape, type=total.type)],
        )
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [replacement, narrow, wide, add], [total], add.outputs
        )

    def _rounded(self, factor: Array, name: str) -> Array:
        with np.errstate(over="ignore"):
            rounded = factor.astype(self.dtype).astype(np.float32)
        if not np.isfinite(rounded).all():
            raise ir.passes.PreconditionError(
                f"the low-rank branch of {name} is beyond the range of float16; store weights as fp32"
            )
        return rounded


def low_rank_branch(projection: Projection) -> tuple[ir.Node, ir.Node] | None:
    """The two products of the branch beside a projection, if it has one: by A, and by B."""
    for node in projection.node.outputs[0].consumers():
        for value in node.inputs:
            wide = value.producer() if value is not None and node.op_type == "Add" else None
            if wide is not None and is_added(wide):
                narrow = _product_behind(wide)
                return (narrow, wide) if narrow is not None else None
    return None


def _product_behind(wide: ir.Node) -> ir.Node | None:
    """The product by A, right before that by B or before the gathering of its result."""
    node = wide.inputs[0].producer() if wide.inputs[0] is not None else None
    if node is not None and not is_added(node) and node.inputs and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and is_added(node) else None


def _without_branch(model: ir.Model, branches: Mapping[str, Array]) -> list[Projection]:
    return [
        projection
        for projection in find_projections(model.graph)
        if projection.name in branches and low_rank_branch(projection) is None
    ]


def _product(graph: ir.Graph, name: str, hidden: ir.Value | None, factor: Array) -> ir.Node:
    assert hidden is not None
    matrix = register(graph, name, ir.tensor(factor))
    return ir.node(
        "MatMul",
        [hidden, matrix],
        name=f"{name}/MatMul",
        outputs=[ir.Value(name=f"{name}/output_0", type=hidden.type)],
        metadata_props={ADDED: "low-rank branch"},
    )
