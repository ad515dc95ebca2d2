from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import onnx_ir as ir

from sparsecc.initializers import register
from sparsecc.operators import DOMAIN, is_sparse_matmul
from sparsecc.projections import Projection, projections_and_head

_OLDEST_OPSET = 21
"""The first whose DequantizeLinear has blocks and int4."""


class QuantizedTensors(NamedTuple):
    """A weight W[K, N] in blocks of ``block_size`` along N: int4 or int8 [K, N], float16 [K, ceil(N / block_size)].

    Of a GatherMatMul it is W[N, K], in blocks along K.
    """

    integers: ir.TensorProtocol
    scales: ir.TensorProtocol
    block_size: int


class QuantizeWeightsPass(ir.passes.InPlacePass):
    """Replace the SparseMatMul or GatherMatMul of each named projection by its NBits twin with the weight given for it.

    A projection that does not run sparsely is left alone. The weight that was there stays an initializer.

    Raises:
        ir.passes.PreconditionError: the model's opset cannot dequantize blocks, or a given weight has another shape
            than the projection's.
    """

    def __init__(self, weights: Mapping[str, QuantizedTensors]) -> None:
        super().__init__()
        self.weights = weights

    def requires(self, model: ir.Model) -> None:
        for projection, weight in self._replaceable(model):
            opset = model.opset_imports.get("", _OLDEST_OPSET)
            if opset < _OLDEST_OPSET:
                raise ir.passes.PreconditionError(
                    f"the model has opset {opset}, in which no weights can be quantized; "
                    f"export it with opset {_OLDEST_OPSET} or newer"
                )
            rows, columns = projection.rows, projection.channels + projection.outputs - projection.rows
            shapes = (weight.integers.shape.numpy(), weight.scales.shape.numpy())
            if shapes != ((rows, columns), (rows, -(-columns // weight.block_size))):
                raise ir.passes.PreconditionError(f"the quantized weight of {projection.name} has another shape")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        replaceable = list(self._replaceable(model))
        for projection, weight in replaceable:
            node, replacement = projection.node, _quantized_product(model.graph, projection, weight)
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], [replacement], node.outputs, replacement.outputs
            )
        return ir.passes.PassResult(model, bool(replaceable))

    def ensures(self, model: ir.Model) -> None:
        for projection, _ in self._replaceable(model):
            raise ir.passes.PostconditionError(f"{projection.name} reads a weight that is not quantized")

    def _replaceable(self, model: ir.Model) -> Iterator[tuple[Projection, QuantizedTensors]]:
        for projection in projections_and_head(model.graph):
            is_whole = is_sparse_matmul(projection.node) or projection.node.op_type == "GatherMatMul"
            if is_whole and projection.name in self.weights:
                yield projection, self.weights[projection.name]


def _quantized_product(graph: ir.Graph, projection: Projection, weight: QuantizedTensors) -> ir.Node:
    op_type = f"{projection.node.op_type}NBits"
    name = f"{projection.name}/{op_type}"
    values, indices, _, *bias = projection.node.inputs
    product = projection.node.outputs[0]
    integers = register(graph, f"{name}/Wq", weight.integers)
    scales = register(graph, f"{name}/scales", weight.scales)
    return ir.node(
        op_type,
        [values, indices, integers, scales, *(bias or ([None] if is_sparse_matmul(projection.node) else []))],
        {"block_size": weight.block_size},
        domain=DOMAIN,
        name=name,
        outputs=[ir.Value(name=product.name, shape=product.shape, type=product.type)],
        metadata_props=dict(projection.node.metadata_props),
    )
