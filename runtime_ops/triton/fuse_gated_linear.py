"""Gate, up, silu and their product as one operator, so that one kernel computes a feed-forward layer's first half."""

from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import is_sparse_linear
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN

GATED = "Gated"
"""Before the name of a sparse operator: silu of the first half of its columns times the second."""


class FuseGatedLinearPass(ir.passes.InPlacePass):
    """Replace SparseLinear, Split, Sigmoid, Mul and Mul by one node of the executor's own.

    The gate must be the first and up the second half of the columns, as :class:`sparsecc.passes.MergeProductsPass` puts
    them, and nothing else may read what lies between.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gated = [(node, product) for node in model.graph if (product := _gated_halves(node)) is not None]
        for node, split in gated:
            _fuse(model.graph, node, split)
        return ir.passes.PassResult(model, bool(gated))


def _gated_halves(node: ir.Node) -> ir.Node | None:
    """The Split whose outputs a Mul gates: silu(first) * second."""
    if not _is(node, "Mul"):
        return None
    for silu, up in (node.inputs, reversed(node.inputs)):
        gate = _silu_of(silu)
        split = gate.producer() if gate is not None else None
        if split is None or not _is(split, "Split") or [gate, up] != list(split.outputs):
            continue
        if _halves_sparse_linear(split) and _is_read_only_here(split, silu, up):
            return split
    return None


def _silu_of(value: ir.Value | None) -> ir.Value | None:
    """x where the value is x * sigmoid(x)."""
    node = value.producer() if value is not None else None
    if node is None or not _is(node, "Mul") or len(node.inputs) != 2:
        return None
    for gate, sigmoid in (node.inputs, reversed(node.inputs)):
        activation = sigmoid.producer() if sigmoid is not None else None
        if activation is not None and _is(activation, "Sigmoid") and activation.inputs[0] is gate:
            return gate
    return None


def _halves_sparse_linear(split: ir.Node) -> bool:
    product = split.inputs[0].producer() if split.inputs[0] is not None else None
    widths = split.inputs[1].const_value if len(split.inputs) > 1 and split.inputs[1] is not None else None
    if product is None or not is_sparse_linear(product) or split.attributes.get_int("axis", 0) != -1:
        return False
    sizes = [] if widths is None else widths.numpy().tolist()
    return len(sizes) == 2 and sizes[0] == sizes[1] and len(product.outputs[0].uses()) == 1


def _is_read_only_here(split: ir.Node, silu: ir.Value | None, up: ir.Value | None) -> bool:
    gate = split.outputs[0]
    assert silu is not None
    assert up is not None
    between = (*split.outputs, silu)
    sigmoid_reads = sum(node.op_type == "Sigmoid" for node, _ in gate.uses())
    is_alone = len(gate.uses()) == 2 and sigmoid_reads == 1 and len(up.uses()) == 1 and len(silu.uses()) == 1
    return is_alone and not any(value.is_graph_output() for value in between)


def _is(node: ir.Node, op_type: str) -> bool:
    return (node.domain, node.op_type) == ("", op_type)


def _fuse(graph: ir.Graph, gating: ir.Node, split: ir.Node) -> None:
    product = split.inputs[0].producer() if split.inputs[0] is not None else None
    silu = next(
        node
        for value in gating.inputs
        if value is not None and (node := value.producer()) is not None and _is(node, "Mul")
    )
    sigmoid = next(node for node, _ in split.outputs[0].uses() if node.op_type == "Sigmoid")
    assert product is not None
    fused = ir.node(
        GATED + product.op_type,
        product.inputs,
        {name: attribute.value for name, attribute in product.attributes.items()},
        domain=EXECUTOR_DOMAIN,
        name=f"{product.name}/gated",
    )
    ir.convenience.replace_nodes_and_values(
        graph, gating, [gating, silu, sigmoid, split, product], [fused], gating.outputs, fused.outputs
    )
