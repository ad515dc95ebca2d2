from __future__ import annotations

import onnx_ir as ir

from sparsecc.projections import find_projections
from sparsecc.recipe import ProjectionRecipe, Recipe


class AnnotatePass(ir.passes.InPlacePass):
    """Write into the sparse nodes what was done to each projection and why, for a person who opens the graph."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        served: dict[ir.Node, list[ProjectionRecipe]] = {}
        entries = {entry.name: entry for entry in self.recipe.projections}
        for projection in find_projections(model.graph):
            entry, threshold = entries.get(projection.name), projection.threshold
            if entry is None or threshold is None:
                continue
            nodes = [projection.node, threshold]
            nodes += [node for node in threshold.outputs[0].consumers() if node.op_type == "GatherActive"]
            for node in nodes:
                served.setdefault(node, []).append(entry)
        modified = False
        for node, node_entries in served.items():
            notes = _notes(node_entries)
            modified |= any(node.metadata_props.get(key) != value for key, value in notes.items())
            node.metadata_props.update(notes)
        return ir.passes.PassResult(model, modified)


def _notes(entries: list[ProjectionRecipe]) -> dict[str, str]:
    """Nodes that several projections share name them all; what is the same for all of them is said once."""
    return {
        "layer": str(entries[0].layer),
        "projection": ", ".join(entry.kind for entry in entries),
        "method": entries[0].method,
        "target_sparsity": f"{entries[0].target_sparsity:.4f}",
        "calibrated_sparsity": f"{entries[0].calibrated_sparsity:.4f}",
    }
