from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import is_selection


class LimitSparseRowsPass(ir.passes.InPlacePass):
    """Set how many rows a Threshold or KeepLargest still selects from: a hidden state with more, a prompt, runs dense.

    Thresholding a prompt would save nothing, because almost every channel is active in some row, and cost accuracy.
    0 thresholds every row, however many there are; perplexity is measured so.
    """

    def __init__(self, max_sparse_rows: int) -> None:
        super().__init__()
        self.max_sparse_rows = max_sparse_rows

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        others = self._with_another_limit(model)
        for threshold in others:
            threshold.attributes.add(ir.AttrInt64("max_sparse_rows", self.max_sparse_rows))
        return ir.passes.PassResult(model, bool(others))

    def ensures(self, model: ir.Model) -> None:
        for threshold in self._with_another_limit(model):
            raise ir.passes.PostconditionError(f"{threshold.name} is not limited to {self.max_sparse_rows} rows")

    def _with_another_limit(self, model: ir.Model) -> list[ir.Node]:
        selections = filter(is_selection, model.graph)
        return [node for node in selections if node.attributes.get_int("max_sparse_rows", 0) != self.max_sparse_rows]
