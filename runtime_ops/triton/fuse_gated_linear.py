"""Gate, up and SwiGLU as one operator, so that one kernel computes a feed-forward layer's first half."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from sparsecc.operators import is_read_once, is_sparse_linear, is_swiglu
from sparsecc.runtime_ops.triton.executor_domain import EXECUTOR_DOMAIN

GATED = "Gated"
"""Before the name of a sparse operator: SiLU of the first half of its columns times the second."""


class FuseGatedLinearPass(ir.passes.InPlacePass):
    """Replace SparseLinear and SwiGLU by one node of the executor's own, where nothing else reads the product."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        gated = list(_gated(model.graph))
        for product, swiglu in gated:
            _fuse(model.graph, product, swiglu)
        return ir.passes.PassResult(model, bool(gated))


def _gated(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    for swiglu in filter(is_swiglu, graph):
        value = swiglu.inputs[0] if swiglu.inputs else None
        product = value.producer() if value is not None else None
        if product is None or value is None or not is_sparse_linear(product):
            continue
        if is_read_once(value):
            yield product, swiglu


def _fuse(graph: ir.Graph, product: ir.Node, swiglu: ir.Node) -> None:
    fused = ir.node(
        GATED + product.op_type,
        product.inputs,
        {name: attribute.value for name, attribute in product.attributes.items()},
        domain=EXECUTOR_DOMAIN,
        name=f"{product.name}/gated",
    )
    ir.convenience.replace_nodes_and_values(graph, swiglu, [swiglu, product], [fused], swiglu.outputs, fused.outputs)
