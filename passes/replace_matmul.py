from __future__ import annotations

import logging

import onnx_ir as ir

from sparsecc.projections import SPARSE_DOMAIN, find_projections, is_linear

logger = logging.getLogger(__name__)


class ReplaceMatMulPass(ir.passes.InPlacePass):
    """Replace each MatMul behind a GatherActive by a SparseMatMul, which reads the weight rows of active channels only.

    The weight stays the initializer it was, W[K, N] with one contiguous row an input channel. The absent bias is
    written as an empty name, because onnx's reference evaluator wants every input of a function to be given.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = {projection.node: projection.name for projection in find_projections(model.graph)}
        modified = False
        for gather in [node for node in model.graph if node.op_type == "GatherActive" and node.domain == SPARSE_DOMAIN]:
            hidden = gather.inputs[0]
            assert hidden is not None
            for node in hidden.consumers():
                if not is_linear(node) or node.inputs[0] is not hidden:
                    logger.debug("%s is no product with a constant matrix, skipped", node.name)
                    continue
                replacement = _sparse_matmul(node, gather, names.get(node) or (node.name or "").removesuffix("/MatMul"))
                ir.convenience.replace_nodes_and_values(
                    model.graph, node, [node], [replacement], node.outputs, replacement.outputs
                )
                modified = True
        return ir.passes.PassResult(model, modified)


def _sparse_matmul(matmul: ir.Node, gather: ir.Node, name: str) -> ir.Node:
    values, indices = gather.outputs
    product = matmul.outputs[0]
    return ir.node(
        "SparseMatMul",
        [values, indices, matmul.inputs[1], None],
        domain=SPARSE_DOMAIN,
        name=f"{name}/SparseMatMul",
        outputs=[ir.Value(name=product.name, shape=product.shape, type=product.type)],
        metadata_props=dict(matmul.metadata_props),
    )
