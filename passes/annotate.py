from __future__ import annotations

import onnx_ir as ir

from sparsecc.operators import is_gather_active
from sparsecc.projections import projections_and_head
from sparsecc.recipe import ProjectionRecipe, Recipe


class AnnotatePass(ir.passes.InPlacePass):
    """Write into the sparse nodes what was done to each projection and why, for a person who opens the graph."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        unnoted = self._unnoted(model)
        for node, notes in unnoted.items():
            node.metadata_props.update(notes)
        return ir.passes.PassResult(model, bool(unnoted))

    def ensures(self, model: ir.Model) -> None:
        for node in self._unnoted(model):
            raise ir.passes.PostconditionError(f"{node.name} does not say which projection it serves")

    def _unnoted(self, model: ir.Model) -> dict[ir.Node, dict[str, str]]:
        """The nodes that lack some of their notes, and the notes."""
        served: dict[ir.Node, list[ProjectionRecipe]] = {}
        entries = {entry.name: entry for entry in self.recipe.projections}
        for projection in projections_and_head(model.graph):
            entry, selection = entries.get(projection.name), projection.selection
            if entry is None or selection is None:
                continue
            for node in (projection.node, selection, *filter(is_gather_active, selection.outputs[0].consumers())):
                served.setdefault(node, []).append(entry)
        notes = {node: _notes(node_entries) for node, node_entries in served.items()}
        return {node: notes[node] for node in notes if not notes[node].items() <= node.metadata_props.items()}


def _notes(entries: list[ProjectionRecipe]) -> dict[str, str]:
    """Nodes that several projections share name them all; what is the same for all of them is said once."""
    return {
        "layer": str(entries[0].layer),
        "projection": ", ".join(entry.kind for entry in entries),
        "method": entries[0].method,
        "target_sparsity": f"{entries[0].target_sparsity:.4f}",
        "calibrated_sparsity": f"{entries[0].calibrated_sparsity:.4f}",
    }
