"""The ``sparsecc`` command: each subcommand reads its options, calls one function and prints what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsecc.analysis.facts import EVALUATION_TOKENS, SAMPLED_TOKENS, STUDY_TOKENS
from sparsecc.device import Device
from sparsecc.errors import SparseccError
from sparsecc.methods import DEFAULT_METHOD, DEFAULT_SPARSITY, METHODS, SEARCHABLE
from sparsecc.recipe import WEIGHTS
from sparsecc.session import MOST_THREADS
from sparsecc.text import DEFAULT_TOKENS, DEFAULT_WINDOW

if TYPE_CHECKING:
    from sparsecc.benchmark import Speed

app = typer.Typer(
    help="Compile a language model so that decoding never reads the weight rows it does not need.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
output = Console(markup=False, highlight=False)


ModelArgument = Annotated[str, typer.Argument(help="A Hugging Face directory or hub id.", metavar="MODEL")]
ArtifactArgument = Annotated[Path, typer.Argument(help="A directory that sparsecc made.", metavar="DIR")]
ArtifactsArgument = Annotated[list[Path], typer.Argument(help="Directories that sparsecc made.", metavar="DIR...")]
OutputOption = Annotated[Path, typer.Option("-o", "--output", help="The directory to make.", metavar="DIR")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output if sparsecc made it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads to compute with.", min=1, max=MOST_THREADS)]
DeviceOption = Annotated[Device, typer.Option(help="A CPU, or a CUDA GPU, which needs Triton.")]
TokensOption = Annotated[int, typer.Option(help="How many tokens of the text to read.", min=1)]


@app.command(epilog="Example: `sparsecc export models/books-16m -o books-16m-dense`")
def export(
    model: ModelArgument,
    output_directory: OutputOption,
    weights: Annotated[str, typer.Option(help="What to store weights as: fp32, int8, int4.")] = "fp32",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a checkpoint to a dense ONNX decoder, checked against transformers."""
    from sparsecc.dense_export import export as export_model

    with _one_line_errors():
        artifact = export_model(model, output_directory, weights=weights, overwrite=overwrite)
    _print({"artifact": str(artifact.directory)}, as_json, f"dense model in {artifact.directory}")


@app.command(
    epilog="Example: `sparsecc calibrate models/books-16m --text models/texts/calibration.txt -o books-16m.h5`"
)
def calibrate(
    model: Annotated[
        str, typer.Argument(help="A checkpoint, or a dense model from `sparsecc export`.", metavar="MODEL")
    ],
    output_file: Annotated[Path, typer.Option("-o", "--output", help="The HDF5 file to write.", metavar="STATS.h5")],
    text: Annotated[
        Path | None, typer.Option(help="The text to calibrate on; sparsecc's own by default.", metavar="FILE.txt")
    ] = None,
    tokens: TokensOption = DEFAULT_TOKENS,
    threads: ThreadsOption = 2,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Gather the statistics of a model's hidden states on a text, for `sparsecc compile --calibration`."""
    from sparsecc.compilation import calibrate_to_file

    with _one_line_errors():
        statistics = calibrate_to_file(
            model, output_file, text=text, tokens=tokens, threads=threads, overwrite=overwrite
        )
    facts = {"statistics": str(output_file), **dataclasses.asdict(statistics.calibration)}
    _print(facts, as_json, f"statistics of {statistics.calibration.tokens:,} tokens in {output_file}")


@app.command("compile", epilog="Example: `sparsecc compile models/books-16m -o books-16m-sparse --sparsity 0.5`")
def compile_command(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face directory or hub id, or a dense ONNX decoder's directory.", metavar="MODEL"
        ),
    ],
    output_directory: OutputOption,
    method: Annotated[
        str | None, typer.Option(help=f"How thresholds are chosen: {', '.join(METHODS)}.", show_default=DEFAULT_METHOD)
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="The share of the projections' weights to skip, in [0, 1); the head is one of them for the methods "
            "that threshold it: best, fisher and rotated-fisher.",
            show_default=str(DEFAULT_SPARSITY),
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="What `sparsecc search` found, in place of method and sparsity.", metavar="FILE.json"),
    ] = None,
    weights: Annotated[str, typer.Option(help=f"What to store weights as: {', '.join(WEIGHTS)}.")] = "fp32",
    rank: Annotated[
        int | None, typer.Option(help="Of the low-rank branches of r-sparse, in place of a search for the best ranks.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="A text or statistics to calibrate on.", metavar="FILE.txt|STATS.h5")
    ] = None,
    evaluation: Annotated[Path | None, typer.Option(help="The text to measure quality on.", metavar="FILE.txt")] = None,
    tokens: TokensOption = DEFAULT_TOKENS,
    threads: ThreadsOption = 2,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure quality and speed of both models.")
    ] = True,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compile a model: the main job. Makes a directory that runs wherever onnxruntime does."""
    from sparsecc.compilation import compile_model

    with _one_line_errors():
        compilation = compile_model(
            model,
            output_directory,
            method=method,
            sparsity=sparsity,
            recipe=recipe,
            weights=weights,
            rank=rank,
            calibration=calibration,
            evaluation=evaluation,
            tokens=tokens,
            threads=threads,
            measure=measure,
            overwrite=overwrite,
        )
    summary = compilation.summary()
    _print(summary, as_json, *_compilation_table(summary))


@app.command(epilog="Example: `sparsecc analyze models/books-16m -o books-16m-study`")
def analyze(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face directory or hub id, or a dense ONNX decoder's directory.", metavar="MODEL"
        ),
    ],
    output_directory: OutputOption,
    text: Annotated[
        Path | None,
        typer.Option(help="The text to collect activations on; sparsecc's own by default.", metavar="FILE.txt"),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="The text to measure perplexity on and take prompts from.", metavar="FILE.txt")
    ] = None,
    tokens: TokensOption = STUDY_TOKENS,
    sampled_tokens: Annotated[
        int, typer.Option(help="Of how many of them to keep the activations.", min=1)
    ] = SAMPLED_TOKENS,
    evaluation_tokens: Annotated[
        int, typer.Option(help="How many tokens of the other text to read.", min=1)
    ] = EVALUATION_TOKENS,
    sparsity: Annotated[
        float, typer.Option(help="The share of activations that do not count as important, in (0, 1).")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the sample and of the changed prompts.", min=0)] = 0,
    threads: ThreadsOption = 2,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Study a model's activations before compressing it, after arXiv 2412.12178. An interrupted study goes on."""
    from sparsecc.analysis.study import analyze as analyze_model

    with _one_line_errors():
        study = analyze_model(
            model,
            output_directory,
            text=text,
            evaluation=evaluation,
            tokens=tokens,
            sampled_tokens=sampled_tokens,
            evaluation_tokens=evaluation_tokens,
            sparsity=sparsity,
            seed=seed,
            threads=threads,
            overwrite=overwrite,
        )
    _print(study.summary(), as_json, f"study in {study.directory}")


@app.command(
    epilog="Example: `sparsecc search models/books-16m -o recipe.json && "
    "sparsecc compile models/books-16m --recipe recipe.json -o books-16m-sparse`"
)
def search(
    model: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face directory or hub id, or a dense ONNX decoder's directory.", metavar="MODEL"
        ),
    ],
    output_file: Annotated[Path, typer.Option("-o", "--output", help="The recipe to write.", metavar="FILE.json")],
    method: Annotated[str, typer.Option(help=f"Whose thresholds to scale: {', '.join(SEARCHABLE)}.")] = "teal",
    sparsity: Annotated[float, typer.Option(help="The share of the model's weights to skip, in [0, 1).")] = 0.5,
    trials: Annotated[int, typer.Option(help="How many candidates all workers try together.", min=0)] = 100,
    text: Annotated[
        Path | None, typer.Option(help="The text to search on; sparsecc's own by default.", metavar="FILE.txt")
    ] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens of it to try a candidate on.", min=2)] = 4096,
    storage: Annotated[
        str | None,
        typer.Option(
            help="A database to share with other workers; SQLite beside the output by default.", metavar="URL"
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="The search's name in the database; by default method and sparsity.")
    ] = None,
    threads: ThreadsOption = 2,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for how to share a model's sparsity among layers and kinds of projections. Started again, it goes on."""
    from sparsecc.search import search as search_recipe

    with _one_line_errors():
        result = search_recipe(
            model,
            output_file,
            method=method,
            sparsity=sparsity,
            trials=trials,
            text=text,
            tokens=tokens,
            storage=storage,
            study=study,
            threads=threads,
            overwrite=overwrite,
        )
    facts = {
        "recipe": str(output_file),
        "trials": result.trials,
        "start": dataclasses.asdict(result.start),
        "found": dataclasses.asdict(result.found),
    }
    rows = [
        (name, f"{seen.kl_divergence or 0:.4f}", f"{seen.perplexity:.3f}", f"{seen.sparsity:.1%}")
        for name, seen in ((f"{method}, as it is", result.start), ("found", result.found))
    ]
    table = _table(("", "KL, nats", "perplexity", "sparsity"), rows)
    where = f"on the text that was searched on; candidates tried: {result.trials}\nrecipe in {output_file}"
    _print(facts, as_json, table, where)


@app.command(epilog="Example: `sparsecc synthesize llama-3.2-1b -o llama-1b --vocabulary 32000`")
def synthesize(
    shape: Annotated[str, typer.Argument(help="smollm2-135m, qwen2.5-0.5b, llama-3.2-1b or llama-3-8b.")],
    output_directory: OutputOption,
    vocabulary: Annotated[
        int | None, typer.Option(help="How many tokens, if not as many as the model has; fewer save memory.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="How many of the layers, if not all; `sparsecc stack` repeats the last.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint of a real model's shape with random weights, to measure speed on."""
    from sparsecc.synthetic import synthesize as write_checkpoint

    with _one_line_errors():
        checkpoint = write_checkpoint(shape, output_directory, vocabulary=vocabulary, layers=layers)
    _print({"checkpoint": str(checkpoint)}, as_json, f"checkpoint in {checkpoint}")


@app.command(epilog="Example: `sparsecc stack llama-8b-4-layers --layers 32 -o llama-8b`")
def stack(
    artifact: ArtifactArgument,
    output_directory: OutputOption,
    layers: Annotated[int, typer.Option(help="How many layers the model is to have.", min=3)],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Repeat the last layer of a synthetic model, compiled or not, to measure the speed of one too large to compile."""
    from sparsecc.artifact import open_artifact
    from sparsecc.synthetic import stack_layers

    with _one_line_errors():
        stacked = stack_layers(open_artifact(artifact), output_directory, layers, overwrite=overwrite)
    _print({"artifact": str(stacked.directory)}, as_json, f"model of {layers} layers in {stacked.directory}")


@app.command(epilog='Example: `sparsecc generate books-16m-sparse --prompt "It was a dark night"`')
def generate(
    artifact: ArtifactArgument,
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to generate at most.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; more is bolder.", min=0)] = 0.0,
    device: DeviceOption = Device.CPU,
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt, streaming the text as it is decoded."""
    from sparsecc.artifact import open_artifact
    from sparsecc.generation import generate as generate_text

    with _one_line_errors():
        pieces = generate_text(
            open_artifact(artifact),
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            threads=threads,
            device=device,
        )
        if as_json:
            _print({"prompt": prompt, "text": "".join(pieces)}, as_json, "")
            return
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


@app.command("eval", epilog="Example: `sparsecc eval books-16m-sparse --reference books-16m-dense --tokens 8192`")
def eval_command(
    artifacts: ArtifactsArgument,
    reference: Annotated[
        Path | None, typer.Option(help="The dense model, to measure how far predictions are from its.", metavar="DIR")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="The text to evaluate on; sparsecc's own by default.", metavar="FILE.txt")
    ] = None,
    tokens: TokensOption = DEFAULT_TOKENS,
    window: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a window.", min=2, show_default=f"{DEFAULT_WINDOW}, or the shortest context if that is less"
        ),
    ] = None,
    device: DeviceOption = Device.CPU,
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Measure perplexity, divergence from the dense model and achieved sparsity, every token thresholded."""
    from sparsecc.artifact import open_artifact
    from sparsecc.evaluation import evaluate
    from sparsecc.text import load_tokenizer, shipped_text, token_windows

    results = []
    with _one_line_errors():
        opened = [open_artifact(directory) for directory in artifacts]
        compared = open_artifact(reference) if reference else None
        # one for all: perplexities in windows of different lengths do not compare
        window = window or min(model.window for model in (*opened, compared) if model)
        for artifact in opened:
            tokenizer = load_tokenizer(artifact.directory)
            windows = token_windows(text or shipped_text("evaluation"), tokenizer, tokens=tokens, window=window)
            evaluation = evaluate(artifact, windows, reference=compared, threads=threads, device=device)
            results.append({"artifact": str(artifact.directory), **dataclasses.asdict(evaluation)})
    _print({"results": results}, as_json, *_evaluation_table(results, has_reference=reference is not None))


@app.command(epilog="Example: `sparsecc bench books-16m-dense books-16m-sparse --plot speeds.svg`")
def bench(
    artifacts: ArtifactsArgument,
    device: DeviceOption = Device.CPU,
    threads: ThreadsOption = 2,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode in each round.", min=2)] = 32,
    gguf: Annotated[
        list[Path] | None, typer.Option(help="A model to run with llama.cpp beside them; repeatable.", metavar="FILE")
    ] = None,
    llama_bench: Annotated[
        str | None, typer.Option(help="llama.cpp's llama-bench, if it is not on the path.", metavar="PATH")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the speeds: .svg, .png or .pdf.", metavar="FILE")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure decode and prompt speed of several models in turn, beside the limit that memory sets."""
    from sparsecc.artifact import open_artifact
    from sparsecc.benchmark import benchmark
    from sparsecc.speed_plot import check_plot_path, plot_speeds

    with _one_line_errors():
        if plot:
            check_plot_path(plot)
        opened = [open_artifact(directory) for directory in artifacts]
        speeds, bandwidth = benchmark(
            opened,
            device=device,
            threads=threads,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            ggufs=gguf or (),
            llama_bench=llama_bench,
        )
        if plot:
            plot_speeds(speeds, plot)
    results = [{**dataclasses.asdict(speed), "artifact": str(speed.artifact)} for speed in speeds]
    table = _table(
        ("model", "tokens/s", "10-90 %", "ratio", "GB/s", "limit", "of it", "prompt", "memory"),
        [_speed_row(speed) for speed in speeds],
    )
    readers = "the GPU" if device is not Device.CPU else f"{threads} threads" if threads > 1 else "one thread"
    explanation = (
        f"limit: tokens/s if only reading the weights took time, at {bandwidth:.1f} GB/s on {readers}\n"
        "prompt: tokens/s; memory: resident after decoding, in sizes of the model's files"
    )
    _print({"results": results, "read_bandwidth_gb_s": bandwidth}, as_json, table, explanation)


@app.command(epilog="Example: `sparsecc inspect books-16m-sparse`")
def inspect(artifact: ArtifactArgument, as_json: JsonOption = False) -> None:
    """Show what was done to each projection of a compiled model. int4/64 is int4 in blocks of 64 that share a scale."""
    from sparsecc.artifact import open_artifact
    from sparsecc.inspection import inspect as inspect_artifact
    from sparsecc.projections import HEAD

    with _one_line_errors():
        projections = inspect_artifact(open_artifact(artifact))
    rows = [
        (
            "" if entry.kind == HEAD else str(entry.layer),
            entry.kind,
            f"{entry.input_channels} x {entry.output_channels}",
            entry.weights if entry.block_size == 1 else f"{entry.weights}/{entry.block_size}",
            entry.method or "dense",
            f"{entry.target_sparsity:.1%}" if entry.target_sparsity is not None else "",
            f"{entry.calibrated_sparsity:.1%}" if entry.calibrated_sparsity is not None else "",
            " to ".join(f"{value:.4g}" for value in sorted(set(entry.threshold or ()))),
        )
        for entry in projections
    ]
    table = _table(("layer", "projection", "weights", "stored", "method", "target", "calibrated", "threshold"), rows)
    _print({"projections": [dataclasses.asdict(entry) for entry in projections]}, as_json, table)


@app.command(epilog="Example: `sparsecc view books-16m-sparse`")
def view(
    artifact: ArtifactArgument,
    port: Annotated[int, typer.Option(help="Where to listen; 0 takes a free port.", min=0, max=65535)] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page, or only print its address.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Show a model's graph in Netron, with what was done to each projection in the nodes' metadata, until Ctrl+C.

    Needs the extra `sparsecc[view]`. Netron's page reports its use to its author where it reaches the internet.
    """
    from sparsecc.artifact import open_artifact
    from sparsecc.graph_view import serve_graph, wait

    with _one_line_errors():
        address = serve_graph(open_artifact(artifact), port=port, open_browser=browser)
    _print({"artifact": str(artifact), "address": address}, as_json, f"{address} shows {artifact}; Ctrl+C ends it")
    sys.stdout.flush()
    wait()


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn a user's mistake into one line on standard error and exit code 2."""
    try:
        yield
    except SparseccError as error:
        _fail(str(error))
    except BrokenPipeError:
        raise  # the reader has seen enough
    except OSError as error:
        _fail(f"{error.filename or 'the file system'}: {error.strerror or error}")


def _fail(message: str) -> None:
    print(f"sparsecc: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(2)


def _print(facts: dict[str, Any], as_json: bool, *shown: str | Table) -> None:
    """Text is not wrapped, so that a path in it can be copied."""
    if as_json:
        print(json.dumps(facts, allow_nan=False))
        return
    for part in shown:
        output.print(part, soft_wrap=isinstance(part, str))


def _compilation_table(summary: dict[str, Any]) -> tuple[str | Table, ...]:
    """What was measured, if it was, and what was made."""
    done = f"{summary['method']} for a target of {summary['target_sparsity']:.0%}"
    where = f"{done}\nmodel in {summary['artifact']}\nreport in {summary['report']}"
    measured = summary["measured"]
    if not measured:
        return (where,)
    perplexity, speed = measured["perplexity"], measured["decode_tokens_per_s"]
    rows = [
        ("perplexity", f"{perplexity['dense']:.2f}", f"{perplexity['sparse']:.2f}"),
        ("decode, tokens/s", f"{speed['dense']:.1f}", f"{speed['sparse']:.1f}"),
        ("speed-up", "", f"{speed['sparse'] / speed['dense']:.2f}"),
        ("projection weights not read", "0.0%", f"{measured['sparsity']:.1%}"),
    ]
    rows += [(f"  {kind}", "0.0%", f"{sparsity:.1%}") for kind, sparsity in measured["sparsity_by_kind"].items()]
    return _table(("", "dense", "sparse"), rows), where


def _evaluation_table(results: Sequence[dict[str, Any]], *, has_reference: bool) -> tuple[Table, str]:
    columns = ["artifact", "perplexity", "sparsity", "MB/token", "tokens"]
    rows = [
        [
            r["artifact"],
            f"{r['perplexity']:.3f}",
            f"{r['sparsity']:.1%}",
            f"{r['bytes_per_token'] / 1e6:,.1f}",
            f"{r['tokens']:,}",
        ]
        for r in results
    ]
    if has_reference:
        columns[2:2] = ["KL, nats", "top-1"]
        for row, r in zip(rows, results, strict=True):
            row[2:2] = [f"{r['kl_divergence']:.4f}", f"{r['top1_agreement']:.1%}"]
    explanation = (
        "sparsity: projection weights not read, the head's among them where it is thresholded; "
        "MB/token: weights that decoding a token reads"
    )
    if has_reference:
        explanation += "\nKL, top-1: divergence from the reference, and how often both find one token likeliest"
    return _table(tuple(columns), [tuple(row) for row in rows]), explanation


def _speed_row(speed: Speed) -> tuple[str, ...]:
    return (
        str(speed.artifact),
        f"{speed.decode_tokens_per_s:.1f}",
        f"{speed.decode_tokens_per_s_p10:.0f}-{speed.decode_tokens_per_s_p90:.0f}",
        f"{speed.ratio:.2f}",
        f"{speed.active_gb_s:.1f}",
        f"{speed.floor_tokens_per_s:.1f}",
        f"{speed.decode_tokens_per_s / speed.floor_tokens_per_s:.0%}",
        f"{speed.prefill_tokens_per_s:.0f}",
        f"{speed.resident_bytes / speed.model_bytes:.2f}" if speed.resident_bytes is not None else "",
    )


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
