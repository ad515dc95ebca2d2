"""Which cuts are measured, and how they are remembered; measuring itself needs a GPU."""

import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sparsecc.runtime_ops.triton import cut_file, tuning
from sparsecc.runtime_ops.triton.launch import Cut
from sparsecc.runtime_ops.triton.projection import BlockedWeight, PlainWeight, Projection, Weight

CUT = Cut(64, 2, 1, 16, 128)
HIDDEN = torch.zeros(64)
Measure = Callable[..., Cut]


def projection_of(weight: Weight) -> Projection:
    return Projection(weight, (torch.ones(1),), (weight.shape[1],))


def plain(columns: int = 96) -> Projection:
    return projection_of(PlainWeight(torch.zeros(64, columns)))


def quantized(columns: int, *, packed: bool) -> Projection:
    codes = torch.zeros(64, columns // 2 if packed else columns, dtype=torch.uint8 if packed else torch.int8)
    return projection_of(BlockedWeight(codes, torch.zeros(64, -(-columns // 32), dtype=torch.float16), 32))


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sparsecc" / "gpu-cuts.json"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Measure], None]:
    """A GPU of which all is known but how fast it is: that is for the caller to say."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _device: types.SimpleNamespace(multi_processor_count=132)
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    tuning._known.cache_clear()
    return lambda measure: monkeypatch.setattr(tuning, "_fastest", measure)


def second(cuts: list[Cut], *_given: object, **_how: object) -> Cut:
    return cuts[1]


def unable(*_given: object, **_how: object) -> Cut:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_entries_of_several_processes_are_kept(file: Path) -> None:
    cut_file.remember("mine", dataclasses.asdict(CUT))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"theirs": {"block": 32}}))
    cut_file.remember("mine too", {"block": 16})
    assert cut_file.remembered() == {
        "mine": dataclasses.asdict(CUT),
        "theirs": {"block": 32},
        "mine too": {"block": 16},
    }


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1}', b'{"a": {"block": [1]}}']
)
def test_a_file_of_something_else_is_written_anew(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    assert cut_file.remembered() == {}
    cut_file.remember("key", {"block": 32})
    assert cut_file.remembered() == {"key": {"block": 32}}


def test_a_full_disk_keeps_nothing_behind(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_given: object, **_how: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    cut_file.remember("key", {"block": 32})
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("change", [{"block": "x"}, {"splits": 0}, {"warps": 3}, {"prefetch": None}, {"more": 1}])
def test_an_entry_that_is_no_candidate_is_ignored(file: Path, change: dict[str, object]) -> None:
    cut_file.remember("good", dataclasses.asdict(CUT))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"bad": dataclasses.asdict(CUT) | change}))
    assert tuning._remembered("good", [CUT]) == CUT
    assert tuning._remembered("bad", [CUT]) is None


def test_measures_once_and_remembers(gpu: Callable[[Measure], None]) -> None:
    gpu(second)
    cut = tuning.cut_for(plain(), HIDDEN, gated=False)
    assert cut in tuning.candidates(plain(), 132, gated=False, early=True)
    tuning._known.cache_clear()
    gpu(unable)
    assert tuning.cut_for(plain(), HIDDEN, gated=False) == cut


def test_takes_the_safe_cut_without_memory_to_measure(gpu: Callable[[Measure], None], file: Path) -> None:
    gpu(unable)
    assert tuning.cut_for(plain(), HIDDEN, gated=False) == tuning.SAFE_CUT
    assert not file.exists()


def test_a_key_says_what_was_measured(gpu: Callable[[Measure], None]) -> None:
    gpu(unable)
    merged = dataclasses.replace(plain(), thresholds=(torch.ones(1),) * 2, widths=(32, 64))
    projections = [plain(), plain(128), merged, quantized(96, packed=True), quantized(96, packed=False)]
    keys = {tuning._key(one, HIDDEN, gated=gated) for one in projections for gated in (False, True)}
    assert len(keys) == 10
    assert tuning._key(plain(), HIDDEN.half(), gated=False) not in keys


def test_halves_that_end_within_a_word_are_cut_as_the_bytes_that_they_become() -> None:
    packed, unpacked = (
        list(tuning.candidates(quantized(72, packed=packed), 132, gated=True, early=False)) for packed in (True, False)
    )
    assert packed == unpacked


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("projection", [plain(), plain(2), quantized(96, packed=True), quantized(8192, packed=False)])
def test_candidates_can_be_launched(projection: Projection, gated: bool) -> None:
    for cut in tuning.candidates(projection, 132, gated=gated, early=True):
        assert cut.block > 0
        assert cut.block & (cut.block - 1) == 0
        assert 1 <= cut.splits <= projection.weight.shape[0]
