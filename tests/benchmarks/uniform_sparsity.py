"""Compile a model with one sparsity for all that a token reads: TEAL's for the projections, and the head's beside it.

For speed at a given sparsity of the whole model, of synthetic checkpoints above all: what `fisher` shares out among
layers whose weights are random says nothing.

    python tests/benchmarks/uniform_sparsity.py CHECKPOINT -o DIR --sparsity 0.5 --weights int4
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from sparsecc import histogram
from sparsecc.artifact import staged_directory
from sparsecc.compilation import load_statistics, make_recipe, open_dense, write_sparse_artifact
from sparsecc.hidden_states import weighted_magnitudes
from sparsecc.methods.projection_entry import projection_entry
from sparsecc.model_file import load_model
from sparsecc.projections import find_head
from sparsecc.recipe import WEIGHTS
from sparsecc.text import load_tokenizer, shipped_text, token_windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--weights", choices=WEIGHTS, default="fp32")
    parser.add_argument("--tokens", type=int, default=2048, help="how much text is calibrated on")
    arguments = parser.parse_args()
    text, sparsity = shipped_text("calibration"), arguments.sparsity
    with staged_directory(arguments.output, overwrite=False) as staging, tempfile.TemporaryDirectory() as scratch:
        dense = open_dense(str(arguments.checkpoint), Path(scratch))
        statistics = load_statistics(dense, text, tokens=arguments.tokens, threads=0)
        recipe = make_recipe(dense, statistics, "teal", sparsity)
        head = find_head(load_model(dense.model_path).graph)
        if head is None:
            parser.error(f"{arguments.checkpoint} has no head that could be thresholded")
        name = str(head.input.name)
        windows = token_windows(text, load_tokenizer(dense.directory), tokens=arguments.tokens, window=dense.window)
        counts = weighted_magnitudes(dense, {name: np.float32(1)}, windows, "calibrating the head")[name]
        threshold = np.array([histogram.quantile(counts, sparsity)], np.float32)
        entry = projection_entry(head, "teal", sparsity, histogram.share_below(counts, float(threshold[0])), threshold)
        recipe = dataclasses.replace(recipe, projections=(*recipe.projections, entry), weights=arguments.weights)
        write_sparse_artifact(dense, recipe, staging, text)


if __name__ == "__main__":
    main()
