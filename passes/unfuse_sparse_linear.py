from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import DOMAIN, is_sparse_linear
from sparsecc.passes.fuse_sparse_linear import LINEAR_OF
from sparsecc.passes.merge_products import MERGED

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
        selections: set[str] = set()
        for linear in linears:
            nodes = _three_nodes(linear, _selection_name(linear, selections))
            ir.convenience.replace_nodes_and_values(
                model.graph, linear, [linear], nodes, linear.outputs, nodes[-1].outputs
            )
        return ir.passes.PassResult(model, bool(linears))


def _selection_name(linear: ir.Node, taken: set[str]) -> str:
    """What a Threshold and a GatherActive are named after: the thresholds, or the operator if another has these too."""
    name = str(linear.inputs[1].name if linear.inputs[1] is not None else "")
    name = name.removesuffix("/T").removesuffix("/Threshold")
    if not name or name in taken:
        name = (linear.name or "").rpartition("/")[0]
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _three_nodes(linear: ir.Node, selection: str) -> list[ir.Node]:
    of_threshold = {name: a.as_int() for name, a in linear.attributes.items() if name in _THRESHOLD_ATTRIBUTES}
    of_product = {name: a.as_int() for name, a in linear.attributes.items() if name not in _THRESHOLD_ATTRIBUTES}
    hidden, thresholds, *weights = linear.inputs
    assert hidden is not None
    assert thresholds is not None
    notes = dict(linear.metadata_props)
    of_selection = {key: note for key, note in notes.items() if key != MERGED}
    label, op_type = (linear.name or "").rpartition("/")[0], _PRODUCT_OF[linear.op_type]
    kept = ir.Value(name=f"{selection}/Threshold/output_0", shape=hidden.shape, type=hidden.type)
    values = ir.Value(name=f"{selection}/GatherActive/values", type=hidden.type)
    indices = ir.Value(name=f"{selection}/GatherActive/indices", type=ir.TensorType(ir.DataType.INT64))
    output = linear.outputs[0]
    product = ir.Value(name=output.name, shape=output.shape, type=output.type)

    def node(
        name: str,
        inputs: list[ir.Value | None],
        outputs: list[ir.Value],
        attributes: dict[str, int],
        notes: dict[str, str],
    ) -> ir.Node:
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
        node(f"{selection}/Threshold", [hidden, thresholds], [kept], of_threshold, of_selection),
        node(f"{selection}/GatherActive", [kept], [values, indices], {}, of_selection),
        node(f"{label}/{op_type}", [values, indices, *weights], [product], of_product, notes),
    ]
