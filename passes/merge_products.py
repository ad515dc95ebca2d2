from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsecc.initializers import register
from sparsecc.operators import block_size_of, columns_of, is_product, is_sparse_matmul_nbits

MERGED = "merged"
"""The note of a merged product: the names of the products it was made of, as a JSON list in the order of columns."""


class MergeProductsPass(ir.passes.InPlacePass):
    """Multiply once where several products read the same active channels, as those of q, k and v or of gate and up do.

    Their weights lie side by side in one wide matrix, so that what an active channel reads is one long run, which
    memory serves faster than several short ones. A Split gives each product its columns. Weights of different types,
    or that would share a block of scales, stay apart. :class:`SplitProductsPass` undoes this.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        groups = _mergeable(model.graph)
        for products in groups:
            _merge(model.graph, products)
        return ir.passes.PassResult(model, bool(groups))

    def ensures(self, model: ir.Model) -> None:
        for products in _mergeable(model.graph):
            raise ir.passes.PostconditionError(f"{products[0].name} and {products[1].name} could be one product")


def _mergeable(graph: ir.Graph) -> list[list[ir.Node]]:
    groups: defaultdict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for node in graph:
        if is_product(node) and all(value is None or value.const_value is not None for value in node.inputs[2:]):
            groups[_what_must_agree(node)].append(node)
    return [products for products in groups.values() if len(products) > 1 and _have_blocks_of_their_own(products)]


def _what_must_agree(product: ir.Node) -> tuple[object, ...]:
    """Two products with the same of this can be one: operator, block size, channels, types, and whether with a bias."""
    tensors = [value.const_value if value is not None else None for value in product.inputs[2:]]
    types = tuple(None if tensor is None else tensor.dtype for tensor in tensors)
    return (product.op_type, block_size_of(product), *product.inputs[:2], types)


def _have_blocks_of_their_own(products: Sequence[ir.Node]) -> bool:
    """Whether each product's columns, but the last one's, fill their blocks."""
    block = block_size_of(products[0])
    return block > 0 and all(columns_of(product) % block == 0 for product in products[:-1])


def _merge(graph: ir.Graph, products: Sequence[ir.Node]) -> None:
    first = products[0]
    name = _merged_name([product.name or "" for product in products])
    constants = [
        _side_by_side(graph, f"{name}/{label}", [product.inputs[2 + i] for product in products])
        for i, label in enumerate(constant_labels(first))
    ]
    outputs = [product.outputs[0] for product in products]
    merged = ir.node(
        first.op_type,
        [*first.inputs[:2], *constants],
        {key: attribute.value for key, attribute in first.attributes.items()},
        domain=first.domain,
        name=f"{name}/{first.op_type}",
        outputs=[ir.Value(name=f"{name}/product", type=outputs[0].type)],
        metadata_props=_merged_notes(products),
    )
    widths = ir.tensor(np.array([columns_of(product) for product in products], np.int64))
    split = ir.node(
        "Split",
        [merged.outputs[0], register(graph, f"{name}/widths", widths)],
        {"axis": -1},
        name=f"{name}/Split",
        outputs=[ir.Value(name=value.name, shape=value.shape, type=value.type) for value in outputs],
    )
    ir.convenience.replace_nodes_and_values(graph, first, products, [merged, split], outputs, split.outputs)


def _merged_name(names: Sequence[str]) -> str:
    """``/mlp/gate_proj+up_proj`` of ``/mlp/gate_proj/SparseMatMul`` and ``/mlp/up_proj/SparseMatMul``."""
    labels = [name.rpartition("/")[0] for name in names]
    parent = labels[0].rpartition("/")[0]
    return f"{parent}/" + "+".join(label.rpartition("/")[2] for label in labels)


def constant_labels(product: ir.Node) -> list[str]:
    """What the constant inputs of a product are called in the names of initializers."""
    labels = ["Wq", "scales", "bias"] if is_sparse_matmul_nbits(product) else ["W", "bias"]
    return labels[: len(product.inputs) - 2]


def _side_by_side(graph: ir.Graph, name: str, values: Sequence[ir.Value | None]) -> ir.Value | None:
    tensors = [value.const_value for value in values if value is not None and value.const_value is not None]
    if not tensors:
        return None
    axis = len(tensors[0].shape) - 1
    shape = [*tensors[0].shape.numpy()]
    shape[axis] = sum(int(tensor.shape.numpy()[axis]) for tensor in tensors)
    joined = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis)),
        dtype=tensors[0].dtype,
        shape=ir.Shape(shape),
    )
    return register(graph, name, joined)


def _merged_notes(products: Sequence[ir.Node]) -> dict[str, str]:
    notes = dict(products[0].metadata_props)
    if "projection" in notes:
        notes["projection"] = ", ".join(product.metadata_props.get("projection", "") for product in products)
    return {**notes, MERGED: json.dumps([product.name for product in products])}
