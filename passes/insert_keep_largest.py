from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, VERSION
from sparsecc.projections import Projection, projections_and_head
from sparsecc.recipe import Recipe


class InsertKeepLargestPass(ir.passes.InPlacePass):
    """Put a KeepLargest on the hidden state before every projection of which the recipe counts the channels to keep.

    Projections that read the same hidden state and keep as many share one. The products stay as they are.

    Raises:
        ir.passes.PreconditionError: the recipe names a projection that the model has not, or keeps more channels than
            it has.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.kept = {entry.name: entry.kept for entry in recipe.projections if entry.kept is not None}

    def requires(self, model: ir.Model) -> None:
        channels = {projection.name: projection.channels for projection in projections_and_head(model.graph)}
        for name, kept in self.kept.items():
            if name not in channels:
                raise ir.passes.PreconditionError(f"the recipe names {name}, which the model does not have")
            if not 0 <= kept <= channels[name]:
                raise ir.passes.PreconditionError(
                    f"the recipe keeps {kept} of the {channels[name]} input channels of {name}"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        selected: dict[tuple[ir.Value, int], ir.Value] = {}
        bare = self._without_selection(model)
        for projection in bare:
            key = (projection.input, self.kept[projection.name])
            if key not in selected:
                selected[key] = _insert(model.graph, projection, self.kept[projection.name])
            projection.node.replace_input_with(0, selected[key])
        if bare:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(bare))

    def ensures(self, model: ir.Model) -> None:
        for projection in self._without_selection(model):
            raise ir.passes.PostconditionError(f"{projection.name} has no KeepLargest")

    def _without_selection(self, model: ir.Model) -> list[Projection]:
        return [
            projection
            for projection in projections_and_head(model.graph)
            if projection.name in self.kept and projection.selection is None
        ]


def _insert(graph: ir.Graph, projection: Projection, kept: int) -> ir.Value:
    hidden = projection.input
    name = f"{projection.name}/KeepLargest"
    node = ir.node(
        "KeepLargest",
        [hidden],
        {"k": kept, "max_sparse_rows": 0},
        domain=DOMAIN,
        name=name,
        outputs=[ir.Value(name=f"{name}/output_0", shape=hidden.shape, type=hidden.type)],
    )
    graph.insert_before(projection.node, node)
    return node.outputs[0]
