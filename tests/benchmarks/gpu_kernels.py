"""All projections of one token on a GPU: cuBLAS, TEAL's kernel and sparsecc's, as one recorded graph each.

    python tests/benchmarks/gpu_kernels.py [--layers 32] [--sparsity 0 0.4 0.5 0.6] [-o OUT.json]

The shape is Llama-3-8B's, the weights random float16, q, k and v fused on all sides, and gate and up. sparsecc's kernel
computes silu(gate) * up besides, which the others leave out. Every result is checked against float64. Times are medians
of replays; all weights are read in each, far more than the cache keeps. The bytes of active rows over the time stand
beside the measured bandwidth of reading.

TEAL's kernel is written anew after its description (arXiv 2408.14690, section 4.3, and what its authors published):
rows loaded under a mask, partial sums of a tile added to the output by float16 atomics, tile sizes tuned. Its output
has to be cleared first: by each launch, as published, or all outputs of a layer at once, which costs it less.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import triton
import triton.language as tl

from sparsecc.runtime_ops.triton import reference
from sparsecc.runtime_ops.triton.launch import one_row_launch
from sparsecc.runtime_ops.triton.projection import PlainWeight, Projection
from sparsecc.runtime_ops.triton.tuning import cut_for, graph_milliseconds

SHAPES = {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)}
TEAL_TILES = (
    *((64, 128, 2), (64, 64, 4), (8, 128, 2), (16, 256, 4), (32, 256, 4), (64, 256, 4), (128, 64, 4)),
    *((128, 128, 4), (128, 256, 4), (128, 512, 4), (64, 512, 4), (32, 512, 4), (16, 512, 4)),
)
"""Input channels, columns and warps of a program."""
TUNING_LAYERS = 4
FLOAT16_ROUNDING = 2e-3
ATOMIC_ROUNDING = 6e-2
"""Of TEAL's kernel: where its tiles are small, an output is rounded to float16 hundreds of times. At 60 % sparsity
tuning has picked tiles that err by 4e-2."""
READ_BYTES = 4 << 30


@triton.jit
def masked_rows_kernel(y_ptr, w_ptr, x_ptr, threshold, K, N, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: N803, PLR0917
    """y += kept(x) @ W for one tile, by atomics."""
    k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    x = tl.load(x_ptr + k, mask=k < K, other=0.0, eviction_policy="evict_last")
    large = tl.abs(x) > threshold
    w = tl.load(w_ptr + k[:, None] * N + n[None, :], mask=large[:, None], other=0.0, eviction_policy="evict_first")
    total = tl.sum(w.to(tl.float32) * x.to(tl.float32)[:, None], 0)
    tl.atomic_add(y_ptr + n, total.to(tl.float16), mask=n < N)


class Layers:
    """The weights of all layers, one hidden state for each projection, and outputs."""

    def __init__(self, layers):
        self.weights = {
            name: [torch.randn(shape, dtype=torch.float16, device="cuda").mul_(0.02) for _ in range(layers)]
            for name, shape in SHAPES.items()
        }
        self.x = {name: torch.randn(channels, device="cuda").half() for name, (channels, _) in SHAPES.items()}
        columns = [columns for _, columns in SHAPES.values()]
        self.outputs = torch.empty(sum(columns), dtype=torch.float16, device="cuda")
        self.y = dict(zip(SHAPES, self.outputs.split(columns), strict=True))
        self.count = layers

    def thresholds(self, sparsity):
        def threshold(x):
            return x.float().abs().quantile(sparsity).reshape(1) if sparsity else torch.zeros(1, device="cuda")

        return {name: threshold(x) for name, x in self.x.items()}

    def expected(self, name, thresholds):
        kept = torch.where(self.x[name].abs() >= thresholds[name], self.x[name], 0).double()
        return kept @ self.weights[name][-1].double()

    def active_bytes(self, thresholds):
        return sum(
            self.count * 2 * SHAPES[name][1] * int((self.x[name].abs() >= thresholds[name]).sum()) for name in SHAPES
        )


def read_bandwidth():
    """GB/s of adding up all of a large tensor."""
    data = torch.zeros(READ_BYTES // 8, dtype=torch.int64, device="cuda")
    return READ_BYTES / graph_milliseconds(data.sum) / 1e6


def dense_milliseconds(model):
    """cuBLAS, which is as fast with the transposed weights."""

    def as_stored():
        for layer in range(model.count):
            for name in SHAPES:
                torch.mm(model.x[name][None], model.weights[name][layer], out=model.y[name][None])

    return graph_milliseconds(as_stored)


def launch_teal(model, name, layer, threshold, tile):
    channels, columns = SHAPES[name]
    grid = (triton.cdiv(columns, tile[1]), triton.cdiv(channels, tile[0]))
    masked_rows_kernel[grid](
        model.y[name], model.weights[name][layer], model.x[name], threshold, channels, columns,
        CHANNELS=tile[0], COLUMNS=tile[1], num_warps=tile[2],
    )  # fmt: skip


def best_tiles(model, thresholds):
    """TEAL's tile sizes by projection, tuned at this sparsity."""

    def milliseconds(name, tile):
        def run():
            for layer in range(min(TUNING_LAYERS, model.count)):
                launch_teal(model, name, layer, thresholds[name], tile)

        return graph_milliseconds(run)

    return {name: min(TEAL_TILES, key=lambda tile, name=name: milliseconds(name, tile)) for name in SHAPES}


def teal_milliseconds(model, thresholds):
    """With each launch clearing its output, and with one clearing for a layer."""
    bounds = {name: float(threshold) for name, threshold in thresholds.items()}
    tiles = best_tiles(model, bounds)

    def run(at_once):
        for layer in range(model.count):
            if at_once:
                model.outputs.zero_()
            for name in SHAPES:
                if not at_once:
                    model.y[name].zero_()
                launch_teal(model, name, layer, bounds[name], tiles[name])

    run(True)
    for name in SHAPES:
        check(f"TEAL's {name}", model.y[name], model.expected(name, thresholds), ATOMIC_ROUNDING)
    return graph_milliseconds(lambda: run(False)), graph_milliseconds(lambda: run(True))


def sparse_milliseconds(model, thresholds):
    projections = {
        name: [Projection(PlainWeight(w), (thresholds[name],), (w.shape[1],)) for w in weights]
        for name, weights in model.weights.items()
    }
    gated = {name: name == "gate_up" for name in SHAPES}
    cuts = {name: cut_for(projections[name][0], model.x[name], gated=gated[name]) for name in SHAPES}
    outputs = {name: model.y[name][: SHAPES[name][1] // (2 if gated[name] else 1)] for name in SHAPES}

    def run():
        for layer in range(model.count):
            for name in SHAPES:
                one_row_launch(
                    model.x[name], projections[name][layer], cuts[name], gated=gated[name], out=outputs[name]
                ).run()

    model.outputs.fill_(float("nan"))
    run()
    for name in SHAPES:
        compute = reference.gated_project if gated[name] else reference.project
        expected = compute(model.x[name][None], projections[name][-1], torch.float64)[0]
        check(name, outputs[name], expected, FLOAT16_ROUNDING)
    return graph_milliseconds(run), cuts


def check(name, y, expected, bound):
    error = float((y.double() - expected).norm() / expected.norm())
    if not error < bound:
        raise SystemExit(f"{name}: wrong by {error:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.4, 0.5, 0.6])
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.json")
    arguments = parser.parse_args()
    model = Layers(arguments.layers)
    bandwidth = read_bandwidth()
    rows = []
    print(f"{torch.cuda.get_device_name()}, {arguments.layers} layers, reading {bandwidth:.0f} GB/s")
    print("sparsity  cuBLAS ms  TEAL ms (one clear)  sparsecc ms  x cuBLAS  x TEAL (one clear)  active GB/s")
    for sparsity in arguments.sparsity:
        thresholds = model.thresholds(sparsity)
        sparse, cuts = sparse_milliseconds(model, thresholds)
        teal, teal_at_once = teal_milliseconds(model, thresholds)
        dense = statistics.median([dense_milliseconds(model) for _ in range(3)])
        speed = model.active_bytes(thresholds) / sparse / 1e6
        ratios = f"{dense / sparse:8.2f}  {teal / sparse:6.2f} ({teal_at_once / sparse:.2f})"
        times = f"{dense:9.2f}  {teal:7.2f} ({teal_at_once:.2f})       {sparse:11.2f}"
        print(f"{sparsity:8.0%}  {times}  {ratios}       {speed:11.0f}", flush=True)
        rows.append(
            {"sparsity": sparsity, "dense_ms": dense, "teal_ms": teal, "teal_one_clear_ms": teal_at_once,
             "sparse_ms": sparse, "active_gb_s": speed, "cuts": {name: str(cut) for name, cut in cuts.items()}}
        )  # fmt: skip
    if arguments.output:
        arguments.output.write_text(json.dumps({"read_gb_s": bandwidth, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
