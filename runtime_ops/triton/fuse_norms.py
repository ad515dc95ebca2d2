"""The residual sum and the norm between two sparse projections as parts of these."""

from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, is_read, is_read_once
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN
from sparsecc.runtime_ops.triton.fuse_gated_linear import GATED

ADDED = "Added"
"""Before the name of a sparse operator: its product is added to a residual, and the sum's squares are added up."""
NORMED = "Normed"
"""Before the name of a sparse operator: its hidden state is put through an RMS norm first."""
INPUTS = {"SparseLinear": 4, "SparseLinearNBits": 5}
"""Of the operators that the others are made from, the bias included."""
_GAIN, _WEIGHT = 2, 2
"""Among the inputs of a norm, and of those operators."""


class FuseNormsPass(ir.passes.InPlacePass):
    """Replace SparseLinear, SkipSimplifiedLayerNormalization, SparseLinear by two nodes of the executor's own.

    The first gives the sum, and its squares added up by tiles of columns, which is all that a norm needs to know of the
    whole row; the second norms the entries that it reads. The norm's own launch, and one wait for all of the row, are
    saved. Nothing but sparse projections may read the norm, whose gain must be known to have one entry for each column.
    Gated projections have to be fused before. A sum of a fused graph can be read, but neither given nor edited: its
    squares would still be the old ones.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for norm in tuple(model.graph):
            product, readers = _added_product(norm), _readers(norm)
            if product is not None and readers:
                _fuse(model.graph, product, norm, readers)
                modified = True
        return ir.passes.PassResult(model, modified)


def _added_product(norm: ir.Node) -> ir.Node | None:
    """The projection whose product alone is added by a norm, if that is what the node is."""
    if (norm.domain, norm.op_type) != ("com.microsoft", "SkipSimplifiedLayerNormalization"):
        return None
    if len(norm.inputs) <= _GAIN or any(value is not None for value in norm.inputs[_GAIN + 1 :]):
        return None
    if any(map(is_read, norm.outputs[1:3])):
        return None
    for value in reversed(norm.inputs[:2]):
        product = value.producer() if value is not None else None
        if product is None or _base(product) is None or GATED in product.op_type:
            continue
        if is_read_once(product.outputs[0]) and _has_gain_by_column(norm, product):
            return product
    return None


def _has_gain_by_column(norm: ir.Node, product: ir.Node) -> bool:
    weight = _shape(product.inputs[_WEIGHT]) if len(product.inputs) > _WEIGHT else None
    return weight is not None and _shape(norm.inputs[_GAIN]) == weight[-1:]


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """What is known to be the shape of a constant."""
    return None if value is None or value.const_value is None else tuple(value.const_value.shape.numpy())


def _readers(norm: ir.Node) -> list[ir.Node]:
    """The projections that read a node's first output, or none if anything else does."""
    uses = norm.outputs[0].uses()
    if norm.outputs[0].is_graph_output() or not all(_base(node) and index == 0 for node, index in uses):
        return []
    return [node for node, _ in uses]


def _base(node: ir.Node) -> str | None:
    """The operator that a sparse projection is made from."""
    if node.domain == DOMAIN:
        return node.op_type if node.op_type in INPUTS else None
    is_own = node.domain == EXECUTOR_DOMAIN
    return next((name for name in INPUTS if is_own and node.op_type.endswith(name)), None)


def _fuse(graph: ir.Graph, product: ir.Node, norm: ir.Node, readers: list[ir.Node]) -> None:
    residual = norm.inputs[0] if norm.inputs[1] is product.outputs[0] else norm.inputs[1]
    added = _extended(product, ADDED, _inputs(product), [residual], outputs=2)
    total, squares = added.outputs
    for reader in readers:
        inputs = [total, *_inputs(reader)[1:]]
        normed = _extended(reader, NORMED, inputs, [norm.inputs[2], squares], outputs=1)
        normed.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-12))
        ir.convenience.replace_nodes_and_values(graph, reader, [reader], [normed], reader.outputs, normed.outputs)
    sums = [value for value in norm.outputs[3:] if value.name]
    ir.convenience.replace_nodes_and_values(graph, norm, [norm, product], [added], sums, [total][: len(sums)])


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    """All inputs of a projection, and None for those that are left out at the end."""
    base = _base(node)
    assert base is not None
    return [*node.inputs, *[None] * (INPUTS[base] - len(node.inputs))]


def _extended(
    node: ir.Node, prefix: str, inputs: list[ir.Value | None], more: list[ir.Value | None], *, outputs: int
) -> ir.Node:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    name = f"{node.name}/{prefix.lower()}"
    op_type, inputs = prefix + node.op_type, [*inputs, *more]
    return ir.node(op_type, inputs, attributes, domain=EXECUTOR_DOMAIN, name=name, num_outputs=outputs)
