"""Perplexity of every reference configuration, beside what an independent PyTorch implementation gives.

    python tests/benchmarks/reference_perplexity.py MODEL tests/data/reference-books-16m.json

Takes about five minutes for books-16m and half an hour for books-82m on two cores. Exits with 1 if any perplexity
differs by more than 0.5 %.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from sparsecc.calibration import calibrate_once
from sparsecc.compilation import make_recipe, write_sparse_artifact
from sparsecc.dense_export import export
from sparsecc.evaluation import evaluate
from sparsecc.text import load_tokenizer, shipped_text, token_windows

TOLERANCE = 0.005
THREADS = 2


def perplexities(model, configurations, folder):
    dense = export(model, folder / "dense")
    tokenizer = load_tokenizer(dense.directory)
    statistics = calibrate_once(dense, token_windows(shipped_text("calibration"), tokenizer), threads=THREADS)
    windows = token_windows(shipped_text("evaluation"), tokenizer)
    for configuration in configurations:
        artifact = dense
        if configuration != "dense":
            method, sparsity = configuration.split("-")
            directory = folder / configuration
            directory.mkdir()
            artifact = write_sparse_artifact(dense, make_recipe(dense, statistics, method, float(sparsity)), directory)
        yield configuration, evaluate(artifact, windows, threads=THREADS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("reference", type=Path)
    arguments = parser.parse_args()
    reference = json.loads(arguments.reference.read_text())["perplexity"]
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':10} {'pytorch':>9} {'sparsecc':>9} {'differs':>8} {'sparsity':>8}")
        for name, evaluation in perplexities(arguments.model, reference, Path(folder)):
            difference = evaluation.perplexity / reference[name] - 1
            worst = max(worst, abs(difference))
            row = f"{reference[name]:9.3f} {evaluation.perplexity:9.3f} {difference:8.2%} {evaluation.sparsity:8.1%}"
            print(f"{name:10} {row}", flush=True)
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
