from __future__ import annotations

import onnx_ir as ir

from sparsecc.projections import SPARSE_DOMAIN


class LimitSparseRowsPass(ir.passes.InPlacePass):
    """Set how many rows a Threshold still thresholds: a hidden state with more of them, a prompt, runs dense.

    Thresholding a prompt would save nothing, because almost every channel is active in some row, and cost accuracy.
    0 thresholds every row, however many there are; perplexity is measured so.
    """

    def __init__(self, max_sparse_rows: int) -> None:
        super().__init__()
        self.max_sparse_rows = max_sparse_rows

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if node.op_type != "Threshold" or node.domain != SPARSE_DOMAIN:
                continue
            if node.attributes.get_int("max_sparse_rows", 0) != self.max_sparse_rows:
                node.attributes.add(ir.AttrInt64("max_sparse_rows", self.max_sparse_rows))
                modified = True
        return ir.passes.PassResult(model, modified)
