from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, is_sparse_linear
from sparsecc.passes.fuse_sparse_linear import LINEAR_OF

_PRODUCT_OF = {linear: product for product, linear in LINEAR_OF.items()}
_THRESHOLD_ATTRIBUTES = {"max_sparse_rows"}


class UnfuseSparseLinearPass(ir.passes.InPlacePass):
    """Undo :class:`FuseSparseLinearPass`, for who looks at what lies between: Threshold -> GatherActive -> product.

    Raises:
        ir.passes.PreconditionError: a SparseLinear has no hidden state or no threshold.
    """

    def requires(self, model: ir.Model) -> None:
        for linear in filter(is_sparse_linear, model.graph):
            if len(linear.inputs) < 3 or None in linear.inputs[:3] or len(linear.outputs) != 1:
                raise ir.passes.PreconditionError(f"{linear.name} has no hidden state, no threshold or no weight")
            if any(attribute.type != ir.AttributeType.INT for attribute in linear.attributes.values()):
                raise ir.passes.PreconditionError(f"{linear.name} has an attribute that is no integer")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        linears = list(filter(is_sparse_linear, model.graph))
        for linear in linears:
            nodes = _three_nodes(linear)
            ir.convenience.replace_nodes_and_values(
                model.graph, linear, [linear], nodes, linear.outputs, nodes[-1].outputs
            )
        return ir.passes.PassResult(model, bool(linears))


def _three_nodes(linear: ir.Node) -> list[ir.Node]:
    of_threshold = {name: a.as_int() for name, a in linear.attributes.items() if name in _THRESHOLD_ATTRIBUTES}
    of_product = {name: a.as_int() for name, a in linear.attributes.items() if name not in _THRESHOLD_ATTRIBUTES}
    hidden, thresholds, *weights = linear.inputs
    assert hidden is not None
    assert thresholds is not None
    notes = dict(linear.metadata_props)
    label, op_type = (linear.name or "").rpartition("/")[0], _PRODUCT_OF[linear.op_type]
    selection = (thresholds.name or f"{label}/Threshold/T").removesuffix("/T").removesuffix("/Threshold")
    kept = ir.Value(name=f"{selection}/Threshold/output_0", shape=hidden.shape, type=hidden.type)
    values = ir.Value(name=f"{selection}/GatherActive/values", type=hidden.type)
    indices = ir.Value(name=f"{selection}/GatherActive/indices", type=ir.TensorType(ir.DataType.INT64))
    output = linear.outputs[0]
    product = ir.Value(name=output.name, shape=output.shape, type=output.type)

    def node(name: str, inputs: list[ir.Value | None], outputs: list[ir.Value], attributes: dict[str, int]) -> ir.Node:
        return ir.node(
            name.rpartition("/")[2],
            inputs,
            attributes,
            domain=DOMAIN,
            name=name,
            outputs=outputs,
            metadata_props=dict(notes),
        )

    return [
        node(f"{selection}/Threshold", [hidden, thresholds], [kept], of_threshold),
        node(f"{selection}/GatherActive", [kept], [values, indices], {}),
        node(f"{label}/{op_type}", [values, indices, *weights], [product], of_product),
    ]
