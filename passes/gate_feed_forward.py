from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.gated_networks import GatedNetwork, find_gated_networks
from sparsecc.initializers import register
from sparsecc.operators import DOMAIN, VERSION
from sparsecc.projections import find_projections
from sparsecc.recipe import ProjectionRecipe, Recipe

_FLOAT, _INT64 = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT64)


class GateFeedForwardPass(ir.passes.InPlacePass):
    """Let the activated gate decide what ``up`` and ``down`` compute, in the networks where the recipe wants it.

    A Threshold zeroes the small entries of the activated gate a, a GatherActive lists the others, GatherMatMul computes
    these output channels of ``up``, and a SparseMatMul reads these rows of ``down``. The weight of ``up`` is stored
    transposed, so that an output channel is one contiguous row.

    Raises:
        ir.passes.PreconditionError: the recipe wants it of a projection that is in no gated network, or not the same
            of ``up`` and ``down``.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.entries = {entry.name: entry for entry in recipe.projections if entry.selected_by == "gate"}

    def requires(self, model: ir.Model) -> None:
        projections = {projection.name: projection for projection in find_projections(model.graph)}
        pending = set(self.entries) - {
            name for name, projection in projections.items() if projection.threshold is not None
        }
        for network in find_gated_networks(model.graph):
            up, down = self._entry(network), self.entries.get(network.down.name)
            if up is None and down is None:
                continue
            if up is None or down is None or up.threshold.tobytes() != down.threshold.tobytes():
                raise ir.passes.PreconditionError(f"{network.up.name} and {network.down.name} need the same threshold")
            if up.threshold.shape not in ((1,), (network.down.channels,)):
                raise ir.passes.PreconditionError(
                    f"the threshold of {up.name} has shape {up.threshold.shape}, the gate {network.down.channels} "
                    "channels"
                )
            pending -= {up.name, down.name}
        for name in sorted(pending):
            raise ir.passes.PreconditionError(f"the recipe wants {name} gated, which is in no gated network")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        networks = [network for network in find_gated_networks(model.graph) if self._entry(network) is not None]
        for network in networks:
            entry = self._entry(network)
            assert entry is not None
            _rewrite(model.graph, network, entry)
        if networks:
            model.opset_imports[DOMAIN] = VERSION
        return ir.passes.PassResult(model, bool(networks))

    def ensures(self, model: ir.Model) -> None:
        for network in find_gated_networks(model.graph):
            if self._entry(network) is not None:
                raise ir.passes.PostconditionError(f"{network.up.name} computes what its gate leaves out")

    def _entry(self, network: GatedNetwork) -> ProjectionRecipe | None:
        return self.entries.get(network.up.name)


def _rewrite(graph: ir.Graph, network: GatedNetwork, entry: ProjectionRecipe) -> None:
    up, down, name = network.up, network.down, network.up.name
    active = ir.SymbolicDim(f"{name}/GatherActive/active")
    leading = [*network.activated.shape][:-1] if network.activated.shape is not None else None
    chosen = ir.Shape([*leading, active]) if leading is not None else None
    thresholds = register(graph, f"{name}/Threshold/T", ir.tensor(entry.threshold))
    threshold = ir.node(
        "Threshold",
        [network.activated, thresholds],
        {"max_sparse_rows": 0},
        domain=DOMAIN,
        name=f"{name}/Threshold",
        outputs=[
            ir.Value(name=f"{name}/Threshold/output_0", type=network.activated.type, shape=network.activated.shape)
        ],
    )
    gather = ir.node(
        "GatherActive",
        threshold.outputs,
        domain=DOMAIN,
        name=f"{name}/GatherActive",
        outputs=[
            ir.Value(name=f"{name}/GatherActive/values", type=_FLOAT, shape=chosen),
            ir.Value(name=f"{name}/GatherActive/indices", type=_INT64, shape=ir.Shape([active])),
        ],
    )
    values, indices = gather.outputs
    by_output = ir.node(
        "GatherMatMul",
        [up.node.inputs[0], indices, register(graph, f"{name}/GatherMatMul/W", _transposed(up.weight))],
        domain=DOMAIN,
        name=f"{name}/GatherMatMul",
        outputs=[ir.Value(name=f"{name}/GatherMatMul/output_0", type=_FLOAT, shape=chosen)],
    )
    product = ir.node(
        "Mul",
        [values, by_output.outputs[0]],
        name=network.product.name,
        outputs=[ir.Value(name=network.product.outputs[0].name, type=_FLOAT, shape=chosen)],
    )
    result = down.node.outputs[0]
    by_input = ir.node(
        "SparseMatMul",
        [product.outputs[0], indices, down.node.inputs[1], None],
        domain=DOMAIN,
        name=f"{down.name}/SparseMatMul",
        outputs=[ir.Value(name=result.name, type=result.type, shape=result.shape)],
        metadata_props=dict(down.node.metadata_props),
    )
    ir.convenience.replace_nodes_and_values(
        graph,
        down.node,
        [down.node, network.product, up.node],
        [threshold, gather, by_output, product, by_input],
        down.node.outputs,
        by_input.outputs,
    )


def _transposed(weight: ir.Value) -> ir.TensorProtocol:
    """Transposed only when it is written, so that one weight at a time is in memory."""
    tensor = weight.const_value
    assert tensor is not None
    rows, columns = tensor.shape.numpy()

    def transpose() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().T))

    return ir.LazyTensor(transpose, dtype=tensor.dtype, shape=ir.Shape([columns, rows]))
