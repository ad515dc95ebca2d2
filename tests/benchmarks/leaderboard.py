"""Every method at several sparsities, and quantization beside them: perplexity against bytes read per token.

    python tests/benchmarks/leaderboard.py MODEL... -o docs/leaderboard [--corpus FOLDER] [--only METHOD...]

MODEL are checkpoints. Thresholds are calibrated on calibration.txt of FOLDER and quality is measured on test.txt, by
the protocol of docs/architecture.md; without FOLDER on the texts that sparsecc ships. Each point is a compiled model,
measured through onnxruntime beside the dense one. OUT.json gets a point as soon as it is measured, and points that it
has are not measured again, so that an interrupted run continues; OUT.md and OUT-MODEL.svg are drawn from it. The whole
takes hours on two cores.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import tempfile
import time
from pathlib import Path

from matplotlib.figure import Figure

from sparsecc.artifact import Artifact
from sparsecc.calibration import calibrate_once
from sparsecc.calibration_statistics import Statistics
from sparsecc.compilation import make_recipe, write_sparse_artifact
from sparsecc.dense_export import export
from sparsecc.errors import SparseccError
from sparsecc.evaluation import MeasuredModel, measure
from sparsecc.methods import METHODS
from sparsecc.speed_plot import save_figure
from sparsecc.text import DEFAULT_TOKENS, TokenWindows, load_tokenizer, shipped_text, token_windows

SPARSITIES = (0.25, 0.4, 0.5, 0.6, 0.7)
MEASURED_FIRST = 0.5
FRONTIER_METHODS = ("teal", "rotated-fisher")
"""What is also stored in int8 and int4."""
DENSE = "dense"
COMPARED = tuple(method for method in METHODS if method != "best")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--corpus", type=Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=(DENSE, *COMPARED), metavar="METHOD")
    parser.add_argument("--tokens", type=int, default=DEFAULT_TOKENS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draw", action="store_true", help="only draw what OUT.json holds")
    arguments = parser.parse_args()
    book = arguments.output.with_suffix(".json")
    points = json.loads(book.read_text()) if book.exists() else []
    if not arguments.draw:
        for model in arguments.models:
            measure_model(model, points, book, arguments)
    draw(points, arguments.output)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all points of a model share."""

    checkpoint_sha256: str
    dense: Artifact
    statistics: Statistics
    calibration: Path
    windows: TokenWindows
    reference: "RememberedLogits"
    scratch: Path
    threads: int


class RememberedLogits:
    """What the dense model predicts, computed once for all points: tokens x vocabulary x 4 bytes of memory."""

    def __init__(self, model):
        self._model = model
        self._seen = {}

    def logits(self, window):
        key = window.tobytes()
        if key not in self._seen:
            self._seen[key] = list(self._model.logits(window))
        return iter(self._seen[key])


def measure_model(checkpoint, points, book, arguments):
    with tempfile.TemporaryDirectory(dir=arguments.output.parent, prefix=".leaderboard-") as folder:
        setting = setting_of(checkpoint, Path(folder), arguments)
        for method, sparsity, weights in wanted_points(arguments.only):
            key = {
                "model": checkpoint.name,
                "checkpoint_sha256": setting.checkpoint_sha256,
                "text_sha256": setting.windows.text_sha256,
                "tokens": setting.windows.tokens,
                "method": method,
                "target_sparsity": sparsity,
                "weights": weights,
            }
            if any(point.items() >= key.items() for point in points):
                continue
            started = time.monotonic()
            try:
                seen = one_point(setting, method, sparsity, weights)
            except SparseccError as error:
                seen = {"refused": str(error)}
            points.append(key | seen | {"seconds": round(time.monotonic() - started)})
            staged = book.with_suffix(".partial")
            staged.write_text(json.dumps(points, indent=1) + "\n")
            staged.replace(book)


def setting_of(checkpoint, folder, arguments):
    corpus = arguments.corpus
    calibration = corpus / "calibration.txt" if corpus else shipped_text("calibration")
    test = corpus / "test.txt" if corpus else shipped_text("evaluation")
    dense = export(str(checkpoint), folder / DENSE)
    tokenizer = load_tokenizer(dense.directory)
    calibrated, tested = (
        token_windows(text, tokenizer, tokens=arguments.tokens, window=dense.window) for text in (calibration, test)
    )
    statistics = calibrate_once(dense, calibrated, threads=arguments.threads)
    reference = RememberedLogits(MeasuredModel(dense, arguments.threads))
    weights_sha256 = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(checkpoint.glob("*.safetensors"))))
    return Setting(
        weights_sha256.hexdigest(), dense, statistics, calibration, tested, reference, folder, arguments.threads
    )


def wanted_points(only):
    """Method, sparsity and storage: the whole board in fp32 first, then the frontier with integers."""
    sparsities = sorted(SPARSITIES, key=lambda sparsity: sparsity != MEASURED_FIRST)
    board = [(DENSE, 0.0, "fp32"), *((m, s, "fp32") for s, m in itertools.product(sparsities, COMPARED))]
    frontier = [
        (DENSE, 0.0, "int8"),
        (DENSE, 0.0, "int4"),
        *itertools.product(FRONTIER_METHODS, SPARSITIES, ("int8", "int4")),
    ]
    return [point for point in (*board, *frontier) if only is None or point[0] in only]


def one_point(setting, method, sparsity, weights):
    dense, calibration, threads = setting.dense, setting.calibration, setting.threads
    with tempfile.TemporaryDirectory(dir=setting.scratch, prefix="compiled-") as folder:
        chosen = "teal" if method == DENSE else method
        recipe = make_recipe(
            dense, setting.statistics, chosen, sparsity, calibration, threads=threads, scratch=setting.scratch
        )
        recipe = dataclasses.replace(recipe, weights=weights)
        artifact = write_sparse_artifact(dense, recipe, Path(folder), calibration, threads=threads)
        return dataclasses.asdict(measure(MeasuredModel(artifact, threads), setting.windows, setting.reference))


def draw(points, output):
    models = list(dict.fromkeys(point["model"] for point in points))
    output.with_suffix(".md").write_text("\n".join(page(points, models, output.name)), "utf-8")
    for model in models:
        save_figure(frontier(points, model), output.with_name(f"{output.name}-{model}.svg"))


def page(points, models, name):
    yield "# Methods compared\n"
    for model in models:
        seen = {
            (point["method"], point["target_sparsity"], point["weights"]): point
            for point in points
            if point["model"] == model
        }
        dense = seen[DENSE, 0.0, "fp32"]
        yield f"## {model}\n\nDense: perplexity {dense['perplexity']:.3f} over {dense['tokens']:,} tokens.\n"
        yield "Perplexity, and in brackets the share of projection bytes that was not read, in %.\n"
        yield "| method | " + " | ".join(f"{sparsity:.0%}" for sparsity in SPARSITIES) + " |"
        yield "|---|" + "---|" * len(SPARSITIES)
        for method in COMPARED:
            if any(key[0] == method for key in seen):
                yield f"| `{method}` | " + " | ".join(cell(seen.get((method, s, "fp32"))) for s in SPARSITIES) + " |"
        yield f"\n![Perplexity against bytes read per token]({name}-{model}.svg)\n"
        yield "| weights | method | target | MB per token | perplexity | KL to dense, nats | same top token |"
        yield "|---|---|---|---|---|---|---|"
        for (method, sparsity, weights), point in sorted(
            seen.items(), key=lambda item: -item[1].get("bytes_per_token", 0)
        ):
            if "perplexity" in point:
                yield (
                    f"| {weights} | `{method}` | {sparsity:.0%} | {point['bytes_per_token'] / 1e6:.2f} | "
                    f"{point['perplexity']:.3f} | {point['kl_divergence']:.4f} | {point['top1_agreement']:.1%} |"
                )
        yield ""


def cell(point):
    if point is None:
        return "not measured"
    if "refused" in point:
        return "not possible"
    return f"{point['perplexity']:.2f} ({100 * point['sparsity']:.1f})"


def frontier(points, model):
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    lines = {}
    for point in points:
        if point["model"] == model and "perplexity" in point:
            lines.setdefault((point["method"], point["weights"]), []).append(point)
    dense = [point for (method, _), line in lines.items() if method == DENSE for point in line]
    for (method, weights), line in lines.items():
        if method == DENSE:
            continue
        shown = sorted([*line, *(point for point in dense if point["weights"] == weights)], key=bytes_of)
        style = {"fp32": "-", "int8": "--", "int4": ":"}[weights]
        axes.plot(
            [bytes_of(p) for p in shown],
            [p["perplexity"] for p in shown],
            style,
            marker=".",
            label=f"{method}, {weights}",
        )
    axes.plot([bytes_of(p) for p in dense], [p["perplexity"] for p in dense], "k*", markersize=12, label="dense")
    low = min(point["perplexity"] for point in dense)
    axes.set(xscale="log", xlabel="MB of weights read per token", ylabel="perplexity", ylim=(0.98 * low, 1.6 * low))
    axes.set_title(f"{model}: what reading fewer bytes costs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    return figure


def bytes_of(point):
    return point["bytes_per_token"] / 1e6


if __name__ == "__main__":
    main()
