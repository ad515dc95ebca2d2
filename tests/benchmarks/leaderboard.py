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
import functools
import hashlib
import itertools
import json
import tempfile
import time
from pathlib import Path

import onnx_ir as ir
from leaderboard_page import COMPARED, DENSE, SPARSITIES, draw

from sparsecc.artifact import Artifact, copy_companions, open_artifact
from sparsecc.calibration import calibrate_once
from sparsecc.calibration_statistics import Statistics
from sparsecc.compilation import make_recipe, write_sparse_artifact
from sparsecc.dense_export import export
from sparsecc.errors import SparseccError
from sparsecc.evaluation import MeasuredModel, measure
from sparsecc.model_file import load_model, save_model
from sparsecc.projections import find_projections
from sparsecc.quantization.block_size import block_size
from sparsecc.quantization.finite_weight import weight_array
from sparsecc.quantization.gptq import ErrorFeedback, gptq
from sparsecc.quantization.input_covariance import input_covariances
from sparsecc.text import DEFAULT_TOKENS, TokenWindows, load_tokenizer, shipped_text, token_windows
from sparsecc.weight_storage import QUANTIZATION_TOKENS, storage_passes

MEASURED_FIRST = 0.5
FRONTIER_METHODS = ("teal", "rotated-fisher")
"""What is also stored in int8 and int4."""
COARSER = {"int3": 3, "int2": 2}
"""What dense models are also rounded to, to see whether fewer bits do what skipping does. No graph stores these."""


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


@dataclasses.dataclass(frozen=True, eq=False)
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

    @functools.cache  # noqa: B019, there is one for each model
    def recipe(self, method, sparsity):
        """Found once for all storages of weights."""
        return make_recipe(
            self.dense, self.statistics, method, sparsity, self.calibration, threads=self.threads, scratch=self.scratch
        )


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
        measured_on = {
            "checkpoint_sha256": setting.checkpoint_sha256,
            "text_sha256": setting.windows.text_sha256,
            "tokens": setting.windows.tokens,
        }
        if any(point["model"] == checkpoint.name and not point.items() >= measured_on.items() for point in points):
            raise SystemExit(f"{book} has {checkpoint.name} on another text, or another such model; give another OUT")
        for method, sparsity, weights in wanted_points(arguments.only):
            point = {"method": method, "target_sparsity": sparsity, "weights": weights}
            key = {"model": checkpoint.name, **measured_on, **point}
            if any(point.items() >= key.items() for point in points):
                continue
            started = time.monotonic()
            try:
                if weights in COARSER:
                    seen = coarser_point(setting, COARSER[weights])
                else:
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
        *((DENSE, 0.0, weights) for weights in COARSER),
        *itertools.product(FRONTIER_METHODS, SPARSITIES, ("int8", "int4")),
    ]
    return [point for point in (*board, *frontier) if only is None or point[0] in only or point == board[0]]


def one_point(setting, method, sparsity, weights):
    dense, calibration, threads = setting.dense, setting.calibration, setting.threads
    with tempfile.TemporaryDirectory(dir=setting.scratch, prefix="compiled-") as folder:
        recipe = dataclasses.replace(setting.recipe("teal" if method == DENSE else method, sparsity), weights=weights)
        artifact = write_sparse_artifact(dense, recipe, Path(folder), calibration, threads=threads)
        return dataclasses.asdict(measure(MeasuredModel(artifact, threads), setting.windows, setting.reference))


def coarser_point(setting, bits):
    """The dense model with projections rounded to few bits by GPTQ, and head and embedding to 4 bits as in int4.

    Rounded weights are stored as float32 to be measured; bytes are counted as if they were stored in their bits, with
    a float16 scale a block.
    """
    dense = setting.dense
    model = load_model(dense.model_path)
    projections = find_projections(model.graph)
    windows = token_windows(
        setting.calibration, load_tokenizer(dense.directory), tokens=QUANTIZATION_TOKENS, window=dense.window
    )
    channels = {str(projection.input.name): projection.channels for projection in projections}
    weights = sum(projection.weight_count for projection in projections)
    block = block_size(bits, weights)
    for hidden_state, covariance in input_covariances(dense, channels, windows, threads=setting.threads):
        feedback = ErrorFeedback(covariance)
        for projection in projections:
            if projection.input.name == hidden_state:
                weight = gptq(weight_array(projection), feedback, bits, block)
                projection.weight.const_value = ir.tensor(weight.dequantized(), name=projection.weight.name)
    with tempfile.TemporaryDirectory(dir=setting.scratch, prefix="coarser-") as folder:
        scratch, directory = Path(folder) / "scratch", Path(folder) / "model"
        scratch.mkdir()
        directory.mkdir()
        for graph_pass in storage_passes(dense, [], "int4", setting.calibration, scratch):
            graph_pass(model)
        save_model(model, directory)
        copy_companions(dense, directory)
        measured = MeasuredModel(open_artifact(directory), setting.threads)
        seen = dataclasses.asdict(measure(measured, setting.windows, setting.reference))
    bytes_saved = weights * (4 - (bits + 16 / block) / 8)
    return seen | {"bytes_per_token": seen["bytes_per_token"] - bytes_saved}


if __name__ == "__main__":
    main()
