"""Decode speed against sparsity, model size and threads, each beside the limit that memory sets.

    python tests/benchmarks/scaling.py DENSE... --peers PEER... --weights int4 -o OUT

DENSE are fp32 models from `sparsecc export`, the smallest first, as of checkpoints from `sparsecc synthesize`.
PEER is for each of them the dense model to measure beside it, as from `sparsecc export --weights int4`. Sparsity and
threads are varied on the last. Writes OUT.json and OUT.svg. A model of a billion parameters in int4 takes about ten
minutes and 10 GB of disk on two cores, which should have nothing else to do.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from sparsecc.artifact import open_artifact
from sparsecc.benchmark import benchmark, bytes_per_token
from sparsecc.calibration import calibrate_once
from sparsecc.compilation import make_recipe, write_sparse_artifact
from sparsecc.recipe import WEIGHTS
from sparsecc.speed_plot import save_figure
from sparsecc.text import load_tokenizer, shipped_text, token_windows

CALIBRATION_TOKENS = 2048
"""Few, since only speed is measured: enough to hit a sparsity within a percent."""
SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
HALF = 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", nargs="+", type=Path, metavar="DENSE")
    parser.add_argument("--peers", nargs="+", type=Path, required=True, metavar="PEER")
    parser.add_argument("--weights", choices=WEIGHTS, default="int4")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    arguments = parser.parse_args()
    if len(arguments.dense) != len(arguments.peers):
        parser.error("give one peer for each dense model")
    models = [open_artifact(directory) for directory in arguments.dense]
    peers = [open_artifact(directory) for directory in arguments.peers]
    with tempfile.TemporaryDirectory(dir=arguments.output.parent) as folder:
        experiments = measure(models, peers, arguments.weights, Path(folder), arguments.threads)
    facts = {"weights": arguments.weights, "threads": arguments.threads, "experiments": experiments}
    arguments.output.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    plot(experiments, arguments.output.with_suffix(".svg"))


def measure(models, peers, weights, folder, threads):
    """Three experiments: what is varied, its values, and for each the speeds of the peer and of the sparse model."""
    halves = [compile_at(HALF, model, weights, folder, threads) for model in models]
    others = {s: compile_at(s, models[-1], weights, folder, threads) for s in SPARSITIES if s != HALF}
    by_sparsity = [others.get(sparsity, halves[-1]) for sparsity in SPARSITIES]
    dense, *sparse = speeds([peers[-1], *by_sparsity], threads)
    by_size = speeds([*peers, *halves], threads)
    thread_counts = range(1, threads + 1)
    by_threads = [speeds([peers[-1], halves[-1]], count) for count in thread_counts]
    return [
        experiment("sparsity", SPARSITIES, [dense] * len(sparse), sparse),
        experiment(
            "weights of the dense model, GB",
            [bytes_per_token(peer) / 1e9 for peer in peers],
            by_size[: len(peers)],
            by_size[len(peers) :],
        ),
        experiment("threads", thread_counts, *zip(*by_threads, strict=True)),
    ]


def compile_at(sparsity, dense, weights, folder, threads):
    """The dense model at one sparsity; its statistics are gathered once and kept."""
    windows = token_windows(
        shipped_text("calibration"), load_tokenizer(dense.directory), tokens=CALIBRATION_TOKENS, window=dense.window
    )
    recipe = make_recipe(dense, calibrate_once(dense, windows, threads=threads), "teal", sparsity)
    directory = folder / f"{dense.directory.name}-{sparsity}"
    directory.mkdir()
    return write_sparse_artifact(dense, dataclasses.replace(recipe, weights=weights), directory)


def speeds(artifacts, threads):
    """The speeds of some artifacts in one run, and the read bandwidth of that run."""
    measured, bandwidth = benchmark(artifacts, threads=threads)
    return [
        {**dataclasses.asdict(speed), "artifact": speed.artifact.name, "read_bandwidth_gb_s": bandwidth}
        for speed in measured
    ]


def experiment(varied, values, dense, sparse):
    return {"varied": varied, "values": list(values), "dense": list(dense), "sparse": list(sparse)}


def plot(experiments, path):
    figure = Figure(figsize=(4.2 * len(experiments), 3.6), layout="constrained")
    for axes, facts in zip(figure.subplots(1, len(experiments)), experiments, strict=True):
        for name, color in (("dense", "#777777"), ("sparse", "#4c78a8")):
            rates, slowest, fastest, limits = (
                [speed[key] for speed in facts[name]]
                for key in (
                    "decode_tokens_per_s",
                    "decode_tokens_per_s_p10",
                    "decode_tokens_per_s_p90",
                    "floor_tokens_per_s",
                )
            )
            axes.plot(facts["values"], rates, "o-", color=color, label=name)
            axes.fill_between(facts["values"], slowest, fastest, color=color, alpha=0.2, linewidth=0)
            axes.plot(facts["values"], limits, "--", color=color, label=f"{name}, limit set by memory")
        axes.set_xlabel(facts["varied"])
        axes.set_ylim(bottom=0)
    first = figure.axes[0]
    first.set_ylabel("decode, tokens/s (median, 10 to 90 %)")
    first.legend(fontsize="small")
    save_figure(figure, path)


if __name__ == "__main__":
    main()
