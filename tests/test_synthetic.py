"""Random checkpoints of real shapes: small ones of the same architectures go all the way through."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sparsecc.checkpoint import parameter_count
from sparsecc.command_line import app
from sparsecc.compilation import compile_model
from sparsecc.errors import SparseccError
from sparsecc.inspection import inspect
from sparsecc.synthetic import SHAPES, Shape, synthesize
from sparsecc.synthetic.checkpoint import _parameter_shapes
from sparsecc.text import first_tokens, load_tokenizer

PARAMETERS = {"smollm2-135m": 135e6, "qwen2.5-0.5b": 494e6, "llama-3.2-1b": 1.24e9, "llama-3-8b": 8.03e9}
SMALL = Shape("llama", 128, 320, 3, 4, 2, 9000, ties_embedding=False)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_parameters_of_the_model_it_is_named_after(name):
    shape = SHAPES[name]
    config = AutoConfig.for_model(shape.model_type, **shape.configuration())
    count = sum(torch.Size(size).numel() for size in _parameter_shapes(config).values())
    assert count == pytest.approx(PARAMETERS[name], rel=0.01)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return synthesize(SMALL, tmp_path_factory.mktemp("synthetic") / "small")


def test_transformers_reads_it_and_hidden_states_are_roughly_normal(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokens = torch.tensor([first_tokens(load_tokenizer(checkpoint), 256)])
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True).hidden_states
    for state in (states[0], states[-1]):
        normal = state / state.std()
        assert (normal.abs() < 0.6745).float().mean() == pytest.approx(0.5, abs=0.05)
        assert torch.corrcoef(normal[0]).fill_diagonal_(0).abs().mean() < 0.3, "tokens differ"
    assert parameter_count(checkpoint) == sum(parameter.numel() for parameter in model.parameters())


def test_weights_depend_on_the_seed_alone(checkpoint, tmp_path):
    def weights(directory):
        return b"".join(file.read_bytes() for file in sorted(directory.glob("*.safetensors")))

    assert weights(synthesize(SMALL, tmp_path / "same")) == weights(checkpoint)
    assert weights(synthesize(SMALL, tmp_path / "other", seed=1)) != weights(checkpoint)


def test_the_tokenizer_has_the_whole_vocabulary(checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.get_vocab_size() == 9000
    text = "It was a dark night; naïve façades — 夜."
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(AutoTokenizer.from_pretrained(checkpoint)) == 9000


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.slow
def test_it_compiles_to_the_wanted_sparsity(tmp_path, model_type):
    shape = Shape(model_type, 128, 320, 2, 4, 2, 8192, ties_embedding=True)
    source = synthesize(shape, tmp_path / "checkpoint")
    artifact = compile_model(source, tmp_path / "sparse", method="teal", tokens=1024, measure=False).artifact
    projections = inspect(artifact)
    assert len(projections) == 14
    assert all(entry.calibrated_sparsity == pytest.approx(0.5, abs=0.02) for entry in projections)


def test_the_command_takes_a_smaller_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsecc.synthetic.checkpoint.SHAPES", {"small": SMALL})
    command = ["synthesize", "small", "-o", str(tmp_path / "out"), "--vocabulary", "300", "--json"]
    result = CliRunner().invoke(app, command)
    assert json.loads(result.stdout) == {"checkpoint": str(tmp_path / "out")}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["architectures"]) == (300, ["LlamaForCausalLM"])
    assert load_tokenizer(tmp_path / "out").get_vocab_size() == 300


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(SparseccError, match=r"there is no shape 'gpt-9'; choose one of smollm2-135m, .*llama-3-8b"):
        synthesize("gpt-9", tmp_path / "out")
    with pytest.raises(SparseccError, match="a vocabulary needs 257 tokens"):
        synthesize(SMALL, tmp_path / "out", vocabulary=100)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(SparseccError, match="choose another output directory"):
        synthesize(SMALL, tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
