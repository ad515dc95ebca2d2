"""Find the feed-forward networks in which a gate decides what the other projections have to compute."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from sparsecc.operators import is_read_once
from sparsecc.projections import Projection, find_projections, is_linear


@dataclasses.dataclass(frozen=True)
class GatedNetwork:
    """down(activation(gate(x)) * up(x)), with matrix products that are dense still.

    Attributes:
        gate, up, down: its projections.
        activated: the activated gate [..., I], whose zeros ``up`` and ``down`` need not compute with.
        product: the Mul that ``down`` reads.
    """

    gate: Projection
    up: Projection
    down: Projection
    activated: ir.Value
    product: ir.Node


def find_gated_networks(graph: ir.Graph) -> list[GatedNetwork]:
    """The gated networks of a dense graph, one a layer.

    Those whose gate and up are one matrix, or whose product has another reader or whose up has a bias, are left out.
    """
    by_layer: dict[int, dict[str, Projection]] = {}
    for projection in find_projections(graph):
        by_layer.setdefault(projection.layer, {})[projection.kind] = projection
    networks = [_network(projections) for projections in by_layer.values()]
    return [network for network in networks if network is not None]


def _network(projections: dict[str, Projection]) -> GatedNetwork | None:
    if not {"gate", "up", "down"} <= projections.keys():
        return None
    gate, up, down = (projections[kind] for kind in ("gate", "up", "down"))
    product = down.node.inputs[0].producer() if down.node.inputs[0] is not None else None
    if product is None or product.op_type != "Mul" or len(product.inputs) != 2:
        return None
    if any(projection.node.op_type != "MatMul" for projection in (up, down)):
        return None
    if up.node.outputs[0] not in product.inputs or not all(
        is_read_once(node.outputs[0]) for node in (up.node, product)
    ):
        return None
    activated = next((value for value in product.inputs if value is not up.node.outputs[0]), None)
    if activated is None or not _computes(activated, gate.node):
        return None
    return GatedNetwork(gate, up, down, activated, product)


def _computes(value: ir.Value, linear: ir.Node) -> bool:
    """Whether ``value`` comes from a matrix product, with no other in between."""
    reached, seen = [value], {value}
    while reached:
        node = reached.pop().producer()
        if node is linear:
            return True
        if node is None or is_linear(node):
            continue
        new = [source for source in node.inputs if source is not None and source not in seen]
        seen.update(new)
        reached += new
    return False
