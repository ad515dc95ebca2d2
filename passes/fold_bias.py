from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from sparsecc.operators import is_sparse_matmul


class FoldBiasPass(ir.passes.InPlacePass):
    """Make the constant bias [N] that is added to a SparseMatMul its fourth input, which saves a node and a buffer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        biased = list(_biased_products(model.graph))
        for node, add, bias in biased:
            node.resize_inputs(4)
            node.replace_input_with(3, bias)
            total, product = add.outputs[0], node.outputs[0]
            ir.convenience.replace_all_uses_with(total, product, replace_graph_outputs=True)
            model.graph.remove(add, safe=True)
            product.name, product.type, product.shape = total.name, total.type, total.shape
        return ir.passes.PassResult(model, bool(biased))

    def ensures(self, model: ir.Model) -> None:
        for _, add, _ in _biased_products(model.graph):
            raise ir.passes.PostconditionError(f"{add.name} adds a bias that its product could add")


def _biased_products(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node, ir.Value]]:
    """Each SparseMatMul without a bias, the Add that gives it one, and the bias."""
    for node in graph:
        if not is_sparse_matmul(node) or any(bias is not None for bias in node.inputs[3:]):
            continue
        add = _only_consumer(node)
        bias = _constant_bias(add, node) if add is not None else None
        if add is not None and bias is not None:
            yield node, add, bias


def _only_consumer(node: ir.Node) -> ir.Node | None:
    product = node.outputs[0]
    consumers = product.consumers()
    return consumers[0] if len(consumers) == 1 and not product.is_graph_output() else None


def _constant_bias(add: ir.Node, product: ir.Node) -> ir.Value | None:
    """The bias that ``add`` adds to the product, where it is a float32 vector with one entry an output channel."""
    if add.op_type != "Add" or add.domain != "":
        return None
    weight = product.inputs[2]
    for value in add.inputs:
        tensor = value.const_value if value is not None else None
        if tensor is None or weight is None or weight.const_value is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if tensor.shape.numpy() == weight.const_value.shape.numpy()[1:]:
            return value
    return None
