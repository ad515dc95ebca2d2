"""The page and the plots of the leaderboard, drawn from its points."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sparsecc.methods import METHODS
from sparsecc.speed_plot import save_figure

SPARSITIES = (0.25, 0.4, 0.5, 0.6, 0.7)
DENSE = "dense"
COMPARED = tuple(method for method in METHODS if method != "best")
COLORS = matplotlib.color_sequences["tab20"]
SMALLEST_RISE = 0.005
"""Of TEAL's, relative to the dense perplexity, that others are compared with: less is noise."""
INTRODUCTION = """\
Made by

```console
$ python tests/benchmarks/leaderboard.py MODEL... -o docs/leaderboard --corpus FOLDER
```

by the [protocol](architecture.md#how-quality-and-speed-are-measured): thresholds are calibrated on one text and quality
is measured on as many tokens of another, every token thresholded, through onnxruntime on the compiled model. What a
method skips on another text differs from its target, so compare at the bytes that were read: those of all matrix
products, the head included. `fisher` and `rotated-fisher` skip rows of the head as well, and the head counts among the
projections then; `fisher, head whole` and `rotated-fisher, head whole` are what they did before, and more points of
those were measured. int3 and int2 are dense models rounded by GPTQ as int4 is, for comparison; their bytes are
counted as if there were such storage. `wisparse` follows what the abstract of its paper says, and `larosa` also rotates
what o reads. Some methods give a little more or less with another number of threads; this is `--threads 1`. Some rows
are older, in blocks of 32 where models have 64 now: of books-82m all of `rotated-fisher, head whole` in int8 and int4,
`teal` in int4 at 60 and 70 % and in int8 at 70 %; of books-16m `rotated-fisher, head whole` in int8 from 50 % on.

To skip many weights, take `rotated-fisher`, which is what `--method best` takes for models of Llama's kind, but for
int4 weights below 30 %, which lose more by a rotation than it spares; to read fewer bytes than a dense int4 model,
store its weights in int4 besides. For models that cannot be rotated, as books-relu-18m, `best` takes `fisher`.
"""


def draw(points, output):
    """The page of all models and a plot for each, by the points that were measured of them on one text."""
    models = list(dict.fromkeys(point["model"] for point in points))
    output.with_suffix(".md").write_text("\n".join(page(points, models, output.name)), "utf-8")
    for model in models:
        save_figure(frontier(points, model), output.with_name(f"{output.name}-{model}.svg"))


def page(points, models, name):
    yield "# Methods compared\n"
    yield INTRODUCTION
    for model in models:
        yield from Board([point for point in points if point["model"] == model]).section(model, name)


class Board:
    """The points of one model."""

    def __init__(self, points):
        self._seen = {(point["method"], point["target_sparsity"], point["weights"]): point for point in points}
        self._dense = self._seen[DENSE, 0.0, "fp32"]
        curve = [self._dense, *(self._seen.get(("teal", sparsity, "fp32")) for sparsity in SPARSITIES)]
        self._teal = np.array(sorted((bytes_of(point), np.log(point["perplexity"])) for point in curve if point)).T

    def section(self, model, name):
        dense = self._dense
        yield f"## {model}\n\nDense: perplexity {dense['perplexity']:.3f} over {dense['tokens']:,} tokens."
        yield f"SHA-256 of the text: {dense['text_sha256'][:16]}, of the weights: {dense['checkpoint_sha256'][:16]}.\n"
        yield "Perplexity, and in brackets the share of projection bytes that was not read, in %.\n"
        yield from self._table(cell)
        yield from self._refusals()
        yield "\nThe rise in perplexity over dense as a share of what `teal` would lose for as many bytes.\n"
        yield from self._table(self._relative_rise)
        yield f"\n![Perplexity against bytes read per token]({name}-{model}.svg)\n"
        yield from self._frontier()
        yield ""

    def _table(self, text_of):
        yield "| method | " + " | ".join(f"{sparsity:.0%}" for sparsity in SPARSITIES) + " |"
        yield "|---|" + "---|" * len(SPARSITIES)
        for method in methods_of(self._seen):
            cells = [text_of(self._seen.get((method, sparsity, "fp32"))) for sparsity in SPARSITIES]
            yield f"| `{method}` | " + " | ".join(cells) + " |"

    def _refusals(self):
        reasons = {}
        for (method, sparsity, _), point in sorted(self._seen.items()):
            if "refused" in point:
                reasons.setdefault(method, f"`{method}` at {sparsity:.0%}: {point['refused']}")
        if reasons:
            yield "\nWhat was not possible:\n"
            yield from (f"- {reason}" for reason in reasons.values())

    def _relative_rise(self, point):
        if point is None or "refused" in point or bytes_of(point) < self._teal[0, 0]:
            return ""
        dense = self._dense["perplexity"]
        teal_rise = np.exp(np.interp(bytes_of(point), *self._teal)) - dense
        return f"{(point['perplexity'] - dense) / teal_rise:.0%}" if teal_rise > SMALLEST_RISE * dense else ""

    def _frontier(self):
        yield "| weights | method | target | MB per token | perplexity | KL to dense, nats | same top token |"
        yield "|---|---|---|---|---|---|---|"
        measured = [item for item in self._seen.items() if "perplexity" in item[1]]
        for (method, sparsity, weights), point in sorted(measured, key=lambda item: -bytes_of(item[1])):
            yield (
                f"| {weights} | `{method}` | {sparsity:.0%} | {bytes_of(point):.2f} | {point['perplexity']:.3f} | "
                f"{point['kl_divergence']:.4f} | {point['top1_agreement']:.1%} |"
            )


def methods_of(keys):
    """The methods that there are, and after them what else was measured under a name of its own."""
    return [*COMPARED, *dict.fromkeys(method for method, *_ in keys if method not in (DENSE, *COMPARED))]


def cell(point):
    if point is None:
        return "not measured"
    if "refused" in point:
        return "not possible"
    return f"{point['perplexity']:.2f} ({100 * point['sparsity']:.1f})"


def frontier(points, model):
    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axes = figure.add_subplot()
    lines = {}
    for point in points:
        if point["model"] == model and "perplexity" in point:
            lines.setdefault((point["method"], point["weights"]), []).append(point)
    dense = sorted((point for (method, _), line in lines.items() if method == DENSE for point in line), key=bytes_of)
    methods = methods_of(lines)
    for (method, weights), line in lines.items():
        if method == DENSE:
            continue
        shown = sorted([*line, *(point for point in dense if point["weights"] == weights)], key=bytes_of)
        axes.plot(
            [bytes_of(p) for p in shown],
            [p["perplexity"] for p in shown],
            {"fp32": "-", "int8": "--", "int4": ":"}[weights],
            color=COLORS[methods.index(method)],
            marker=".",
            label=f"{method}, {weights}",
        )
    axes.plot([bytes_of(p) for p in dense], [p["perplexity"] for p in dense], "k*", markersize=12, label="dense")
    low = min(point["perplexity"] for point in dense)
    highest = 1.6 * low
    for point in dense:
        if point["perplexity"] < highest:
            axes.annotate(
                point["weights"], (bytes_of(point), point["perplexity"]), (4, -12), textcoords="offset points"
            )
    axes.set(xscale="log", xlabel="MB of weights read per token", ylabel="perplexity", ylim=(0.97 * low, highest))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{model}: what reading fewer bytes costs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    return figure


def bytes_of(point):
    return point["bytes_per_token"] / 1e6
