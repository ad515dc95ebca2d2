from __future__ import annotations

import logging

import onnx_ir as ir

from sparsecc.operators import DOMAIN, VERSION
from sparsecc.projections import Projection, projections_and_head
from sparsecc.recipe import ProjectionRecipe, Recipe

logger = logging.getLogger(__name__)


class InsertThresholdPass(ir.passes.InPlacePass):
    """Put a Threshold on the hidden state before every projection that the recipe has a threshold for.

    The calibrated thresholds become initializers. Projections that read the same hidden state with equal thresholds
    share one Threshold. The products stay as they are, so the result is the method's numerical effect without any
    gain in speed.

    Raises:
        ir.passes.PreconditionError: the recipe names a projection that the model has not, or a threshold does not
            have one entry or one for each input channel.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        by_threshold = [entry for entry in recipe.projections if entry.kept is None and entry.selected_by == "input"]
        self.entries = {entry.name: entry for entry in by_threshold}

    def requires(self, model: ir.Model) -> None:
        channels = {projection.name: projection.channels for projection in projections_and_head(model.graph)}
        for entry in self.entries.values():
            if entry.name not in channels:
                raise ir.passes.PreconditionError(f"the recipe names {entry.name}, which the model does not have")
            if entry.threshold.shape not in ((1,), (channels[entry.name],)):
                raise ir.passes.PreconditionError(
                    f"the threshold of {entry.name} has shape {entry.threshold.shape}, "
                    f"the projection {channels[entry.name]} input channels"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        thresholded: dict[tuple[ir.Value, bytes], ir.Value] = {}
        modified = False
        for projection in projections_and_head(model.graph):
            entry = self.entries.get(projection.name)
            if entry is None:
                continue
            if projection.threshold is not None:
                logger.debug("%s has a threshold already", entry.name)
                continue
            key = (projection.input, entry.threshold.tobytes())
            if key not in thresholded:
                thresholded[key] = _insert_threshold(model, projection, entry)
            projection.node.replace_input_with(0, thresholded[key])
            modified = True
        if modified:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        thresholded = {projection.name for projection in projections_and_head(model.graph) if projection.threshold}
        for name in self.entries:
            if name not in thresholded:
                raise ir.passes.PostconditionError(f"{name} has no Threshold")


def _insert_threshold(model: ir.Model, projection: Projection, entry: ProjectionRecipe) -> ir.Value:
    initializer = f"{entry.name}/Threshold/T"
    threshold = ir.Value(
        name=initializer,
        const_value=ir.tensor(entry.threshold, name=initializer),
        shape=ir.Shape(entry.threshold.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    model.graph.register_initializer(threshold)
    hidden = projection.input
    node = ir.node(
        "Threshold",
        [hidden, threshold],
        {"max_sparse_rows": 0},
        domain=DOMAIN,
        name=f"{entry.name}/Threshold",
        outputs=[ir.Value(name=f"{entry.name}/Threshold/output_0", shape=hidden.shape, type=hidden.type)],
    )
    model.graph.insert_before(projection.node, node)
    return node.outputs[0]
