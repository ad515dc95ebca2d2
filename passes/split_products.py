from __future__ import annotations

import json
from collections.abc import Iterator

import onnx_ir as ir

from sparsecc.operators import is_product
from sparsecc.passes.merge_products import MERGED


class SplitProductsPass(ir.passes.InPlacePass):
    """Undo :class:`MergeProductsPass`: give each projection its own product again, with its columns of the weights.

    The columns are cut out of the wide matrix when their values are asked for, and not before.

    Raises:
        ir.passes.PreconditionError: a merged product does not say what it was made of.
    """

    def requires(self, model: ir.Model) -> None:
        for product, split in _merged(model.graph):
            names = _names(product)
            if len(names) != len(split.outputs) or len(_widths(split)) != len(names):
                raise ir.passes.PreconditionError(f"{product.name} does not say what it was made of")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        merged = list(_merged(model.graph))
        for product, split in merged:
            parts = list(_parts(model.graph, product, split))
            ir.convenience.replace_nodes_and_values(
                model.graph, product, [split, product], parts, split.outputs, [part.outputs[0] for part in parts]
            )
        return ir.passes.PassResult(model, bool(merged))


def _merged(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Each merged product and the Split behind it."""
    for node in graph:
        if is_product(node) and MERGED in node.metadata_props:
            splits = [consumer for consumer in node.outputs[0].consumers() if consumer.op_type == "Split"]
            if len(splits) == 1:
                yield node, splits[0]


def _names(product: ir.Node) -> list[str]:
    try:
        names = json.loads(product.metadata_props[MERGED])
    except json.JSONDecodeError:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _widths(split: ir.Node) -> list[int]:
    sizes = split.inputs[1] if len(split.inputs) > 1 else None
    if sizes is None or sizes.const_value is None:
        return []
    widths: list[int] = sizes.const_value.numpy().tolist()
    return widths


def _parts(graph: ir.Graph, product: ir.Node, split: ir.Node) -> Iterator[ir.Node]:
    kinds = product.metadata_props.get("projection", "").split(", ")
    notes = {key: note for key, note in product.metadata_props.items() if key != MERGED}
    begin = 0
    for i, (name, width) in enumerate(zip(_names(product), _widths(split), strict=True)):
        if "projection" in notes and i < len(kinds):
            notes["projection"] = kinds[i]
        columns = slice(begin, begin + width)
        constants = [_columns(graph, value, product, columns, name) for value in product.inputs[2:]]
        output = split.outputs[i]
        yield ir.node(
            product.op_type,
            [*product.inputs[:2], *constants],
            {key: attribute.value for key, attribute in product.attributes.items()},
            domain=product.domain,
            name=name,
            outputs=[ir.Value(name=output.name, shape=output.shape, type=output.type)],
            metadata_props=dict(notes),
        )
        begin += width


def _columns(graph: ir.Graph, value: ir.Value | None, product: ir.Node, columns: slice, name: str) -> ir.Value | None:
    """Some columns of a weight or a bias, or the scales of these columns."""
    if value is None or value.const_value is None:
        return value
    tensor = value.const_value
    is_scales = product.op_type.endswith("NBits") and value is product.inputs[3]
    block = product.attributes.get_int("block_size", 1) if is_scales else 1
    part = slice(columns.start // block, -(-columns.stop // block))
    shape = [*tensor.shape.numpy()[:-1], part.stop - part.start]
    cut = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy()[..., part]),
        dtype=tensor.dtype,
        shape=ir.Shape(shape),
        name=f"{name}/{(value.name or '').rpartition('/')[2]}",
    )
    part_value = ir.Value(name=cut.name, const_value=cut, shape=cut.shape, type=ir.TensorType(cut.dtype))
    graph.register_initializer(part_value)
    return part_value
