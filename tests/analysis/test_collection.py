import json
import os
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsecc.analysis import collection
from sparsecc.analysis.collection import collect, open_activations, sample_positions
from sparsecc.artifact import Artifact
from sparsecc.errors import SparseccError
from sparsecc.text import TokenWindows, load_tokenizer, shipped_text, token_windows

from .decoders import GATED, NEURONS, RELU, WIDTH, random_weights, write_decoder

COLLECT = """
import sys
from pathlib import Path
from sparsecc.analysis.collection import collect
from sparsecc.artifact import open_artifact
from sparsecc.text import load_tokenizer, shipped_text, token_windows
dense = open_artifact(sys.argv[1])
windows = token_windows(shipped_text("calibration"), load_tokenizer(dense.directory), tokens=2048, window=64)
collect(dense, windows, Path(sys.argv[2]), sampled_tokens=256, threads=1)
"""


@pytest.fixture
def decoder(tmp_path: Path) -> Artifact:
    return write_decoder(tmp_path / "decoder", GATED, random_weights())


@pytest.fixture
def windows() -> TokenWindows:
    return TokenWindows(np.random.default_rng(0).integers(0, 8192, (6, 50)), "0" * 64)


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        found: dict[str, np.ndarray] = {}
        file.visititems(lambda name, item: found.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None)
        return found


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_trained_model_has_the_activations_that_transformers_computes(
    checkpoint: Path, dense: Artifact, tmp_path: Path
):
    windows = token_windows(shipped_text("calibration"), load_tokenizer(dense.directory), tokens=800, window=400)
    collected = contents(collect(dense, windows, tmp_path, sampled_tokens=90, seed=3))
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    seen: dict[tuple[int, str], list[np.ndarray]] = {}

    def record(layer: int, component: str, which: int):
        def hook(_module, inputs, output):
            value = (inputs[0], output)[which]
            seen.setdefault((layer, component), []).append(value.detach()[0].numpy())

        return hook

    for layer, block in enumerate(model.model.layers):
        for module, component, which in (
            (block.self_attn.q_proj, "attention_input", 0),
            (block.self_attn.o_proj, "o_input", 0),
            (block.mlp.gate_proj, "ffn_input", 0),
            (block.mlp.gate_proj, "pre_activation", 1),
            (block.mlp.act_fn, "gate_activation", 1),
            (block.mlp.up_proj, "up", 1),
            (block.mlp.down_proj, "down_input", 0),
        ):
            module.register_forward_hook(record(layer, component, which))
    with torch.inference_mode():
        for window in windows.ids:
            model(torch.tensor(window)[None])
    positions = collected["tokens/position"]
    assert len(positions) == 90
    np.testing.assert_array_equal(collected["tokens/id"], windows.ids.ravel()[positions])
    assert len(seen) == len(collected) - 2 == 56
    for (layer, component), pieces in seen.items():
        expected = np.concatenate(pieces)[positions]
        np.testing.assert_allclose(
            collected[f"layers/{layer}/{component}"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
        )


def test_what_is_collected_is_what_the_graph_computes(decoder: Artifact, windows: TokenWindows, tmp_path: Path):
    collected = contents(collect(decoder, windows, tmp_path, sampled_tokens=1000))
    weights = random_weights()
    x = weights["embedding"][windows.ids.ravel()].astype(np.float64)
    gate, up = x @ weights["w_gate"], x @ weights["w_up"]
    expected = {"ffn_input": x, "pre_activation": gate, "gate_activation": gate * sigmoid(gate), "up": up}
    expected["down_input"] = expected["gate_activation"] * up
    for component, values in expected.items():
        assert collected[f"layers/0/{component}"].dtype == np.float32
        np.testing.assert_allclose(collected[f"layers/0/{component}"], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(collected["tokens/position"], np.arange(300))


def test_a_sample_is_part_of_the_whole(decoder: Artifact, windows: TokenWindows, tmp_path: Path):
    whole = contents(collect(decoder, windows, tmp_path / "whole", sampled_tokens=300))
    sample = contents(collect(decoder, windows, tmp_path / "sample", sampled_tokens=37, seed=1))
    positions = sample["tokens/position"]
    np.testing.assert_array_equal(positions, sample_positions(300, 37, 1))
    for name, values in sample.items():
        np.testing.assert_allclose(values, whole[name][positions], rtol=1e-6)


def test_samples_take_each_token_once_and_every_part_of_the_text():
    positions = sample_positions(10_000, 2_000, seed=5)
    assert len(np.unique(positions)) == 2_000
    np.testing.assert_array_equal(positions, np.sort(positions))
    assert np.histogram(positions, 10)[0].min() > 150
    assert not np.array_equal(positions, sample_positions(10_000, 2_000, seed=6))
    np.testing.assert_array_equal(sample_positions(5, 9, seed=0), np.arange(5))


def test_the_file_says_where_it_comes_from_and_how_it_is_laid_out(
    decoder: Artifact, windows: TokenWindows, tmp_path: Path
):
    path = collect(decoder, windows, tmp_path, sampled_tokens=20, seed=4)
    with h5py.File(path, "r") as file:
        attributes = dict(file.attrs)
    assert attributes["format"] == "sparsecc-activations"
    assert [attributes[name] for name in ("tokens", "window", "sampled_tokens", "seed")] == [300, 50, 20, 4]
    assert attributes["text_sha256"] == "0" * 64
    assert len(attributes["model_sha256"]) == 64
    assert json.loads(attributes["versions"])["onnxruntime"]
    with open_activations(path) as activations:
        names = ["ffn_input", "pre_activation", "gate_activation", "up", "down_input"]
        assert list(activations.components) == [(0, name) for name in names]
        assert activations.of(0, "ffn_input").shape == (20, WIDTH)
        assert activations.of(0, "down_input").shape == (20, NEURONS)


def test_it_can_be_moved_with_its_parts_and_read_from_anywhere(
    decoder: Artifact, windows: TokenWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = contents(collect(decoder, windows, tmp_path / "here", sampled_tokens=20))
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir("/")
    for name, values in contents(tmp_path / "there" / "activations.h5").items():
        np.testing.assert_array_equal(values, expected[name])


def test_a_network_without_a_gate(tmp_path: Path, windows: TokenWindows):
    relu = write_decoder(tmp_path / "relu", RELU, random_weights())
    collected = contents(collect(relu, windows, tmp_path, sampled_tokens=300))
    assert {name for name in collected if "layers" in name} == {
        "layers/0/ffn_input",
        "layers/0/pre_activation",
        "layers/0/down_input",
    }
    np.testing.assert_array_equal(collected["layers/0/down_input"], np.maximum(collected["layers/0/pre_activation"], 0))


def cut_short(part: Path) -> None:
    os.truncate(part, part.stat().st_size // 2)


def garbled(part: Path) -> None:
    """Other bytes in the middle of a compressed component; all else is as it was."""
    with h5py.File(part) as file:
        chunk = file["layers/0/down_input"].id.get_chunk_info(0)
    with part.open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        file.write(b"garbled!")


class TestAnInterruption:
    def test_a_killed_collection_goes_on_where_it_was(self, dense: Artifact, tmp_path: Path):
        parts = tmp_path / "collected" / "activations"
        process = subprocess.Popen([sys.executable, "-c", COLLECT, dense.directory, tmp_path / "collected"])
        while process.poll() is None and len(list(parts.glob("*.h5"))) < 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        written = {path: path.stat().st_mtime_ns for path in parts.glob("*.h5")}
        assert 5 <= len(written) < 32
        windows = token_windows(shipped_text("calibration"), load_tokenizer(dense.directory), tokens=2048, window=64)
        resumed = contents(collect(dense, windows, tmp_path / "collected", sampled_tokens=256, threads=1))
        assert {path: path.stat().st_mtime_ns for path in written} == written
        assert len(list(parts.iterdir())) == 32
        whole = contents(collect(dense, windows, tmp_path / "whole", sampled_tokens=256, threads=1))
        assert resumed.keys() == whole.keys()
        for name, values in whole.items():
            np.testing.assert_array_equal(resumed[name], values)

    @pytest.mark.parametrize("change", [{"seed": 1}, {"sampled_tokens": 41}], ids=["seed", "sample"])
    def test_another_sample_starts_anew(self, decoder: Artifact, windows: TokenWindows, tmp_path: Path, change):
        settings = {"sampled_tokens": 40, "seed": 0}
        collect(decoder, windows, tmp_path / "one", **settings)
        changed = contents(collect(decoder, windows, tmp_path / "one", **{**settings, **change}))
        expected = contents(collect(decoder, windows, tmp_path / "two", **{**settings, **change}))
        for name, values in expected.items():
            np.testing.assert_array_equal(changed[name], values)

    def test_another_model_starts_anew(self, decoder: Artifact, windows: TokenWindows, tmp_path: Path):
        collect(decoder, windows, tmp_path / "one", sampled_tokens=40)
        other = write_decoder(tmp_path / "other", GATED, random_weights(seed=1))
        changed = contents(collect(other, windows, tmp_path / "one", sampled_tokens=40))
        expected = contents(collect(other, windows, tmp_path / "two", sampled_tokens=40))
        np.testing.assert_array_equal(changed["layers/0/up"], expected["layers/0/up"])

    def test_a_shorter_text_leaves_no_part_of_the_longer_one(
        self, decoder: Artifact, windows: TokenWindows, tmp_path: Path
    ):
        collect(decoder, windows, tmp_path, sampled_tokens=300)
        (tmp_path / "activations" / "00004.123.partial").write_bytes(b"half")
        collect(decoder, TokenWindows(windows.ids[:2], "0" * 64), tmp_path, sampled_tokens=300)
        assert len(list((tmp_path / "activations").iterdir())) == 2

    @pytest.mark.parametrize("damage", [cut_short, garbled])
    def test_a_damaged_part_is_made_again(self, decoder: Artifact, windows: TokenWindows, tmp_path: Path, damage):
        path = collect(decoder, windows, tmp_path, sampled_tokens=300)
        expected = contents(path)
        damage(tmp_path / "activations" / "00002.h5")
        collect(decoder, windows, tmp_path, sampled_tokens=300)
        for name, values in contents(path).items():
            np.testing.assert_array_equal(values, expected[name])


class TestAFullDisk:
    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
    def test_too_little_room_is_seen_before_anything_runs(
        self, decoder: Artifact, windows: TokenWindows, tmp_path: Path
    ):
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]
        if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            pytest.skip("this machine mounts no tmpfs")
        try:
            with pytest.raises(SparseccError, match=r"the disk is full: 300 tokens' .* sample fewer tokens"):
                collect(decoder, windows, disk, sampled_tokens=300)
            assert list((disk / "activations").iterdir()) == []
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half_written(
        self, decoder: Artifact, windows: TokenWindows, tmp_path: Path
    ):
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                collect(decoder, windows, tmp_path, sampled_tokens=300)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert list((tmp_path / "activations").iterdir()) == []
        collect(decoder, windows, tmp_path, sampled_tokens=300)


class TestDamage:
    @pytest.fixture
    def collected(self, decoder: Artifact, windows: TokenWindows, tmp_path: Path) -> Path:
        return collect(decoder, windows, tmp_path, sampled_tokens=300)

    def refused(self, path: Path) -> str:
        with (
            pytest.raises(SparseccError, match=r"no readable activations .*; run `sparsecc analyze` again") as raised,
            open_activations(path) as activations,
        ):
            for layer, component in activations.components:
                activations.of(layer, component)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def test_a_missing_file(self, tmp_path: Path):
        self.refused(tmp_path / "nowhere.h5")

    def test_a_missing_part(self, collected: Path):
        (collected.parent / "activations" / "00003.h5").unlink()
        assert "00003.h5 is missing" in self.refused(collected)

    def test_a_file_of_something_else(self, collected: Path):
        collected.write_bytes(b"text")
        self.refused(collected)

    @pytest.mark.parametrize("attribute", ["format", "version", "seed", "versions"])
    def test_a_missing_attribute(self, collected: Path, attribute: str):
        with h5py.File(collected, "a") as file:
            del file.attrs[attribute]
        self.refused(collected)

    @pytest.mark.parametrize(
        "values", [np.zeros((300, 8)), np.zeros(300, np.float32), np.zeros((7, 8), np.float32)], ids=lambda v: v.shape
    )
    def test_a_dataset_of_another_kind(self, collected: Path, values: np.ndarray):
        with h5py.File(collected, "a") as file:
            del file["layers/0/up"]
            file["layers/0/up"] = values
        self.refused(collected)

    def test_a_component_that_there_is_not(self, collected: Path):
        with h5py.File(collected, "a") as file:
            file["layers/0/soul"] = np.zeros((300, 8), np.float32)
        self.refused(collected)

    def test_a_part_cut_short(self, collected: Path):
        part = collected.parent / "activations" / "00003.h5"
        os.truncate(part, part.stat().st_size - 3_000)
        self.refused(collected)


@pytest.mark.parametrize("rows", [1, 7, 20])
def test_windows_larger_than_the_buffer_become_several_parts(
    decoder: Artifact, windows: TokenWindows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
):
    whole = contents(collect(decoder, windows, tmp_path / "whole", sampled_tokens=200))
    monkeypatch.setattr(collection, "BUFFER_BYTES", rows * (WIDTH + 4 * NEURONS) * 4)
    in_parts = contents(collect(decoder, windows, tmp_path / "parts", sampled_tokens=200))
    for name, values in whole.items():
        np.testing.assert_allclose(in_parts[name], values, rtol=1e-5, atol=1e-6)
    parts = sorted((tmp_path / "parts" / "activations").iterdir())
    for part in parts:
        positions = contents(part)["tokens/position"]
        assert len(positions) <= rows
        assert len(np.unique(positions // windows.window)) == 1
    for lost in parts[1::3]:
        lost.unlink()
    written = {part: part.stat().st_mtime_ns for part in parts if part.exists()}
    resumed = contents(collect(decoder, windows, tmp_path / "parts", sampled_tokens=200))
    assert {part: part.stat().st_mtime_ns for part in written} == written
    for name, values in in_parts.items():
        np.testing.assert_array_equal(resumed[name], values)


def test_memory_holds_one_window_not_the_text(tmp_path: Path):
    """Python's own memory, which is where activations are kept."""
    neurons, window = 4_096, 128
    weights = random_weights()
    weights |= {"w_up": np.ones((WIDTH, neurons), np.float32), "w_down": np.ones((neurons, WIDTH), np.float32)}
    decoder = write_decoder(tmp_path / "wide", RELU, weights)

    def peak(windows: int) -> int:
        tracemalloc.start()
        try:
            text = TokenWindows(np.full((windows, window), 7), "0" * 64)
            collect(decoder, text, tmp_path / str(windows), sampled_tokens=windows * window)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    window_bytes = window * (2 * neurons + WIDTH) * 4
    assert peak(12) < peak(2) + window_bytes


def test_memory_holds_few_buffers_not_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    neurons, window = 16_384, 1_024
    weights = random_weights()
    weights |= {"w_up": np.ones((WIDTH, neurons), np.float32), "w_down": np.ones((neurons, WIDTH), np.float32)}
    decoder = write_decoder(tmp_path / "wide", RELU, weights)
    token_bytes = (2 * neurons + WIDTH) * 4
    monkeypatch.setattr(collection, "BUFFER_BYTES", 64 * token_bytes)
    tracemalloc.start()
    try:
        collect(decoder, TokenWindows(np.full((1, window), 7), "0" * 64), tmp_path, sampled_tokens=window)
        assert tracemalloc.get_traced_memory()[1] < 4 * 64 * token_bytes < window * token_bytes / 3
    finally:
        tracemalloc.stop()
