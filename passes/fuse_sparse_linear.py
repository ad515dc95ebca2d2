from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from sparsecc.operators import DOMAIN, is_gather_active, is_product, is_threshold

LINEAR_OF = {"SparseMatMul": "SparseLinear", "SparseMatMulNBits": "SparseLinearNBits"}


class FuseSparseLinearPass(ir.passes.InPlacePass):
    """Make Threshold -> GatherActive -> product one SparseLinear, where nothing else reads what is between them.

    Selecting channels takes about as long as starting an operator, so three nodes cost twice what one does.
    :class:`UnfuseSparseLinearPass` undoes this.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chains = list(_chains(model.graph))
        for threshold, gather, product in chains:
            linear = _sparse_linear(threshold, product)
            ir.convenience.replace_nodes_and_values(
                model.graph, product, [product, gather, threshold], [linear], product.outputs, linear.outputs
            )
        return ir.passes.PassResult(model, bool(chains))

    def ensures(self, model: ir.Model) -> None:
        for threshold, _, product in _chains(model.graph):
            raise ir.passes.PostconditionError(f"{threshold.name} and {product.name} could be one operator")


def _chains(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node, ir.Node]]:
    for gather in graph:
        threshold = gather.inputs[0].producer() if is_gather_active(gather) and gather.inputs[0] is not None else None
        if threshold is None or not is_threshold(threshold) or not _only_feeds(threshold.outputs[0], gather):
            continue
        consumers = gather.outputs[0].consumers()
        product = consumers[0] if consumers else None
        if product is None or not is_product(product) or tuple(product.inputs[:2]) != tuple(gather.outputs):
            continue
        if all(_only_feeds(output, product) for output in gather.outputs):
            yield threshold, gather, product


def _only_feeds(value: ir.Value, node: ir.Node) -> bool:
    return not value.is_graph_output() and tuple(value.consumers()) == (node,)


def _sparse_linear(threshold: ir.Node, product: ir.Node) -> ir.Node:
    op_type = LINEAR_OF[product.op_type]
    output = product.outputs[0]
    attributes = {**threshold.attributes, **product.attributes}
    return ir.node(
        op_type,
        [*threshold.inputs, *product.inputs[2:]],
        {name: attribute.value for name, attribute in attributes.items()},
        domain=DOMAIN,
        name=f"{(product.name or '').rpartition('/')[0]}/{op_type}",
        outputs=[ir.Value(name=output.name, shape=output.shape, type=output.type)],
        metadata_props=dict(product.metadata_props),
    )
