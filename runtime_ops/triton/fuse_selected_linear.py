"""Products of a selected hidden state as sparse projections that skip what the selection made zero."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsecc.initializers import register
from sparsecc.operators import DOMAIN, is_product, is_selection
from sparsecc.passes.fuse_sparse_linear import LINEAR_OF
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN
from sparsecc.runtime_ops.triton.read_every_channel import EVERY_CHANNEL


class FuseSelectedLinearPass(ir.passes.InPlacePass):
    """Make EveryChannel -> product behind a Threshold or KeepLargest a SparseLinear whose threshold is 0.

    It finds the channels that are not zero by itself, on the device, and reads their weights only. The selection has
    made NaN 0; with more rows than it selects from, the SparseLinear is as dense as that. Needs
    :class:`ReadEveryChannelPass`, and does nothing where several operators became one SparseLinear when compiling.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        selected = [(node, selection) for node in model.graph if (selection := _selection_of(node)) is not None]
        if not selected:
            return ir.passes.PassResult(model, False)
        zero = register(model.graph, "zero", ir.tensor(np.zeros(1, np.float32)))
        for product, selection in selected:
            linear = _sparse_linear(product, selection, zero)
            ir.convenience.replace_nodes_and_values(
                model.graph, product, [product], [linear], product.outputs, linear.outputs
            )
        return ir.passes.PassResult(model, True)


def _selection_of(product: ir.Node) -> ir.Node | None:
    """What has made entries zero in the hidden state that a node multiplies, if that is what it does."""
    every = product.inputs[1].producer() if is_product(product) and product.inputs[1] is not None else None
    if every is None or (every.domain, every.op_type) != (EXECUTOR_DOMAIN, EVERY_CHANNEL):
        return None
    selection = every.inputs[0].producer() if every.inputs[0] is not None else None
    return selection if selection is not None and is_selection(selection) else None


def _sparse_linear(product: ir.Node, selection: ir.Node, zero: ir.Value) -> ir.Node:
    limit = selection.attributes.get_int("max_sparse_rows", 0)
    attributes = {name: attribute.value for name, attribute in product.attributes.items()}
    return ir.node(
        LINEAR_OF[product.op_type],
        [product.inputs[0], zero, *product.inputs[2:]],
        {**attributes, "max_sparse_rows": limit},
        domain=DOMAIN,
        name=f"{product.name}/selected",
    )
