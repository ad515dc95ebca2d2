"""Quantized ONNX decoders as the model builder makes them: read exactly, and compiled as any other model."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from sparsecc.artifact import Artifact, open_artifact
from sparsecc.calibration_statistics import read_statistics
from sparsecc.command_line import app
from sparsecc.compilation import open_dense
from sparsecc.generation import generate
from sparsecc.inspection import inspect
from sparsecc.model_file import load_model, model_sha256
from sparsecc.quantized_decoder import dequantized
from sparsecc.session import run_prompt
from sparsecc.text import first_tokens, load_tokenizer

EXPORTS = {  # what the model builder is told; accuracy_level 1 leaves hidden states in float32
    "shared with the embedding": "accuracy_level=1",
    "8 bits in part, with zero points": (
        "accuracy_level=1 algo_config=k_quant_mixed block_size=64 is_symmetric=false "
        "fuse_qkv=false fuse_mlp_gate_up=true"
    ),
    "DequantizeLinear": "use_qdq=true is_symmetric=false shared_embeddings=false",
}
KINDS = {
    "shared with the embedding": ["qkv", "o", "gate", "up", "down"],
    "8 bits in part, with zero points": ["q", "k", "v", "o", "gate_up", "down"],
    "DequantizeLinear": ["qkv", "o", "gate", "up", "down"],
}
LAYERS = 8
BUILD = """
import sys
from onnxruntime_genai.models import builder
checkpoint, cache, *exports = sys.argv[1:]
for target, options in zip(exports[::2], exports[1::2], strict=True):
    places = ("", checkpoint, target, "int4", "cpu", cache)
    builder.create_model(*places, **builder.parse_extra_options(*places, options.split()))
"""


@pytest.fixture(scope="session")
def quantized(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """A function from a name of EXPORTS to what the model builder makes of books-16m in int4."""
    folder = tmp_path_factory.mktemp("quantized")
    exports = [word for name, options in EXPORTS.items() for word in (str(folder / name), options)]
    command = [sys.executable, "-c", BUILD, str(checkpoint), str(folder / "cache"), *exports]
    subprocess.run(command, check=True, capture_output=True)
    return lambda name: open_artifact(folder / name)


def logits(artifact: Artifact) -> np.ndarray:
    """The logits on some text, by onnxruntime with the kernels of a user's session, hidden states in float32."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(artifact.model_path, options, providers=["CPUExecutionProvider"])
    token_ids = first_tokens(load_tokenizer(artifact.directory), 100)
    return np.concatenate([piece for (piece,) in run_prompt(session, token_ids, ["logits"], **artifact.cache_shape)])


@pytest.mark.parametrize("name", EXPORTS)
def test_the_dense_model_computes_what_the_quantized_one_does(
    quantized: Callable[[str], Artifact], tmp_path: Path, name: str
):
    source = quantized(name)
    dense = open_dense(str(source.directory), tmp_path)
    expected = logits(source)
    assert np.abs(logits(dense) - expected).max() < 1e-3 * np.abs(expected).max()
    kinds = Counter(projection.kind for projection in inspect(dense))
    assert kinds == dict.fromkeys(KINDS[name], LAYERS)
    assert all(projection.name.startswith("/model/layers.") for projection in inspect(dense))
    assert not any("_Q" in projection.name for projection in inspect(dense))
    model = load_model(dense.model_path)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    assert not {tensor.dtype for tensor in weights} & {ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}


def test_a_quantized_model_compiles_and_its_statistics_serve_again(
    quantized: Callable[[str], Artifact], tmp_path: Path
):
    source = quantized("shared with the embedding").directory
    before = {file: file.read_bytes() for file in source.iterdir()}
    statistics, output = tmp_path / "statistics.h5", tmp_path / "sparse"
    for command in (
        ["calibrate", source, "-o", statistics, "--tokens", 2048],
        [
            "compile",
            source,
            "-o",
            output,
            "--calibration",
            statistics,
            "--method",
            "teal",
            "--no-measure",
            "--sparsity",
            0.4,
        ],
    ):
        result = CliRunner().invoke(app, [str(argument) for argument in command])
        assert result.exit_code == 0, result.output
    assert len(read_statistics(statistics).projections) == LAYERS * 5
    sparse = open_artifact(output)
    projections = inspect(sparse)
    assert Counter(projection.kind for projection in projections) == dict.fromkeys(
        KINDS["shared with the embedding"], LAYERS
    )
    assert all(abs(projection.calibrated_sparsity - 0.4) < 0.02 for projection in projections)
    assert "".join(generate(sparse, "It was a dark night", max_new_tokens=8)).strip()
    assert {file: file.read_bytes() for file in source.iterdir()} == before
    assert {file.name for file in tmp_path.iterdir()} == {"statistics.h5", "sparse"}


def test_the_same_dense_model_is_made_each_time(quantized: Callable[[str], Artifact], tmp_path: Path):
    hashes = set()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        dense = open_dense(str(quantized("DequantizeLinear").directory), tmp_path / name)
        hashes.add(model_sha256(dense.model_path))
    assert len(hashes) == 1


def test_a_dense_model_is_taken_as_it_is(dense: Artifact, tmp_path: Path):
    assert dequantized(dense, tmp_path) is dense
    assert not any(tmp_path.iterdir())


def damage_attribute(model: onnx.ModelProto, name: str, value: int) -> None:
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    next(attribute for attribute in node.attribute if attribute.name == name).i = value


def add_g_idx(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(384, np.int32), "g_idx"))
    node.input.extend(["", "g_idx"])


def inline_too_little(model: onnx.ModelProto) -> None:
    """A weight that lies in the graph file and has fewer bytes than its shape says."""
    weight = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.UINT8)
    del weight.external_data[:]
    weight.data_location = onnx.TensorProto.DEFAULT
    weight.raw_data = b"\x88" * 100


def drop_scales(model: onnx.ModelProto) -> None:
    """As the builder itself does with some options."""
    node = next(node for node in model.graph.node if node.op_type == "GatherBlockQuantized")
    del node.input[2:]


DAMAGE: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "K": (lambda model: damage_attribute(model, "K", 1 << 40), "a weight of shape"),
    "bits": (lambda model: damage_attribute(model, "bits", 5), "5 bits"),
    "block size": (lambda model: damage_attribute(model, "block_size", -32), "block_size -32"),
    "g_idx": (add_g_idx, "g_idx"),
    "too little data": (inline_too_little, "damaged"),
    "no scales": (drop_scales, "GatherBlockQuantized"),
}


@pytest.mark.parametrize("command", ["compile", "calibrate"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused_in_one_line(
    quantized: Callable[[str], Artifact], tmp_path: Path, damage: str, command: str
):
    copy = tmp_path / "copy"
    shutil.copytree(quantized("shared with the embedding").directory, copy)
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    change, complaint = DAMAGE[damage]
    change(model)
    onnx.save(model, copy / "model.onnx")
    output = tmp_path / ("out" if command == "compile" else "out.h5")
    result = CliRunner().invoke(app, [command, str(copy), "-o", str(output)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    complaints = [line for line in result.stderr.splitlines() if line.startswith("sparsecc: ")]
    assert len(complaints) == 1
    assert complaint in complaints[0]
    assert "Traceback" not in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]


def test_the_configuration_names_the_dense_file(quantized: Callable[[str], Artifact], tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(quantized("DequantizeLinear").directory, copy)
    (copy / "model.onnx").rename(copy / "decoder.onnx")
    config = json.loads((copy / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "decoder.onnx"
    (copy / "genai_config.json").write_text(json.dumps(config))
    (tmp_path / "dense").mkdir()
    dense = open_dense(str(copy), tmp_path / "dense")
    assert dense.model_path == tmp_path / "dense" / "model.onnx"
    assert (tmp_path / "dense" / "tokenizer.json").is_file()
