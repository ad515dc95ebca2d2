from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from sparsecc.initializers import register
from sparsecc.operators import block_size_of, columns_of, is_product, is_sparse_matmul_nbits
from sparsecc.passes.merge_products import MERGED, constant_labels


class SplitProductsPass(ir.passes.InPlacePass):
    """Undo :class:`MergeProductsPass`: give each projection its own product again, with its columns of the weights.

    The columns are cut out of the wide matrix when their values are asked for, and not before.

    Raises:
        ir.passes.PreconditionError: a merged product does not say what it was made of, or what it says does not fit.
    """

    def requires(self, model: ir.Model) -> None:
        for product, split in _merged(model.graph):
            if split is None or not _fits(product, split):
                raise ir.passes.PreconditionError(f"{product.name} does not say what it was made of")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        merged = [(product, split) for product, split in _merged(model.graph) if split is not None]
        for product, split in merged:
            parts = list(_parts(model.graph, product, split))
            ir.convenience.replace_nodes_and_values(
                model.graph, product, [split, product], parts, split.outputs, [part.outputs[0] for part in parts]
            )
        return ir.passes.PassResult(model, bool(merged))


def _merged(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node | None]]:
    """Each product that says to be merged, and the Split that is all that reads it."""
    for node in graph:
        if is_product(node) and MERGED in node.metadata_props:
            output = node.outputs[0]
            consumers = output.consumers()
            is_split = len(consumers) == 1 and (consumers[0].domain, consumers[0].op_type) == ("", "Split")
            yield node, consumers[0] if is_split and not output.is_graph_output() else None


def _fits(product: ir.Node, split: ir.Node) -> bool:
    """Whether names, widths, constants and blocks of a merged product agree with each other."""
    names, block = _names(product), block_size_of(product)
    given = [value for value in product.inputs[2:] if value is not None]
    constants = [value.const_value for value in given if value.const_value is not None]
    is_whole = len(constants) == len(given) >= (2 if is_sparse_matmul_nbits(product) else 1)
    if not is_whole or len(constants[0].shape) != 2 or split.attributes.get_int("axis", 0) != -1 or block < 1:
        return False
    columns = int(constants[0].shape.numpy()[1])
    widths = _widths(split, columns)
    is_named = len(names) == len(set(names)) == len(widths) == len(split.outputs) and all(names)
    is_covered = sum(widths) == columns and all(width > 0 for width in widths)
    return is_named and is_covered and all(width % block == 0 for width in widths[:-1])


def _names(product: ir.Node) -> list[str]:
    try:
        names = json.loads(product.metadata_props[MERGED])
    except (json.JSONDecodeError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _widths(split: ir.Node, columns: int) -> list[int]:
    """How many columns each output of a Split gets; nothing where it does not say or asks for uneven parts."""
    sizes = split.inputs[1] if len(split.inputs) > 1 else None
    parts = len(split.outputs)
    if sizes is None and split.attributes.get_int("num_outputs", 0) == parts:
        return [columns // parts] * parts if columns % parts == 0 else []
    if sizes is None or sizes.const_value is None or "num_outputs" in split.attributes:
        return []
    widths = sizes.const_value.numpy()
    return [int(width) for width in widths] if widths.ndim == 1 and widths.dtype == np.int64 else []


def _parts(graph: ir.Graph, product: ir.Node, split: ir.Node) -> Iterator[ir.Node]:
    kinds = product.metadata_props.get("projection", "").split(", ")
    notes = {key: note for key, note in product.metadata_props.items() if key != MERGED}
    begin = 0
    for i, (name, width) in enumerate(zip(_names(product), _widths(split, columns_of(product)), strict=True)):
        if "projection" in notes and i < len(kinds):
            notes["projection"] = kinds[i]
        columns = slice(begin, begin + width)
        constants = [
            _columns(graph, value, columns, block_size_of(product) if label == "scales" else 1, f"{name}/{label}")
            for value, label in zip(product.inputs[2:], constant_labels(product), strict=False)
        ]
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


def _columns(graph: ir.Graph, value: ir.Value | None, columns: slice, block: int, name: str) -> ir.Value | None:
    """Some columns of a weight or a bias, or the scales of these columns."""
    if value is None or value.const_value is None:
        return value
    tensor = value.const_value
    part = slice(columns.start // block, -(-columns.stop // block))
    cut = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy()[..., part]),
        dtype=tensor.dtype,
        shape=ir.Shape([*tensor.shape.numpy()[:-1], part.stop - part.start]),
    )
    return register(graph, name, cut)
