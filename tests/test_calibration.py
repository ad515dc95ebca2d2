import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from sparsecc import calibration
from sparsecc.artifact import Artifact
from sparsecc.calibration import calibrate, calibrate_on_demand, calibrate_once, require_statistics_of
from sparsecc.calibration_statistics import Statistics, read_statistics, write_statistics
from sparsecc.errors import SparseccError
from sparsecc.model_file import save_model
from sparsecc.projections import Projection, find_projections
from sparsecc.text import TokenWindows

from .graphs import model_of

DECODER = """
decoder (int64[1, s] input_ids) => (float[1, s, 8] logits) {
  x = Gather(embedding, input_ids)
  ["up/MatMul"] u = MatMul(x, w_up)
  h = Relu(u)
  ["down/MatMul"] logits = MatMul(h, w_down)
}
"""
MODEL = model_of(DECODER, {"embedding": (10, 8), "w_up": (8, 16), "w_down": (16, 8)})
WINDOWS = TokenWindows(np.arange(20).reshape(2, 10) % 10, hashlib.sha256(b"text").hexdigest())


@pytest.fixture
def dense(tmp_path: Path) -> Artifact:
    (tmp_path / "model").mkdir()
    save_model(MODEL, tmp_path / "model")
    decoder = {"filename": "model.onnx", "num_key_value_heads": 1, "head_size": 1}
    return Artifact(tmp_path / "model", {"model": {"decoder": decoder}})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where statistics are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sparsecc" / "statistics"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that were hashed."""
    return counted(monkeypatch, "model_sha256")


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that were run."""
    return counted(monkeypatch, "_gather")


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Path]:
    calls: list[Path] = []
    function = getattr(calibration, name)

    def counting(first, *rest):
        calls.append(first)
        return function(first, *rest)

    monkeypatch.setattr(calibration, name, counting)
    return calls


def assert_same(actual: Statistics, expected: Statistics) -> None:
    assert actual.calibration == expected.calibration
    for name, state in expected.hidden_states.items():
        np.testing.assert_array_equal(actual.hidden_states[name].magnitudes, state.magnitudes)
    for name, projection in expected.projections.items():
        np.testing.assert_array_equal(actual.projections[name].row_norms, projection.row_norms)


class TestCalibrateOnce:
    def test_the_second_time_statistics_are_read(self, dense: Artifact, cache: Path, gathered: list, hashed: list):
        first = calibrate_once(dense, WINDOWS)
        assert len(hashed) == 1
        assert [file.suffix for file in cache.iterdir()] == [".h5"]
        assert_same(calibrate_once(dense, WINDOWS), first)
        assert len(gathered) == 1
        assert_same(first, calibrate(dense, WINDOWS))

    def test_on_demand_nothing_is_run_before(self, dense: Artifact, cache: Path, gathered: list, hashed: list):
        statistics = calibrate_on_demand(dense, WINDOWS)
        assert statistics.calibration == calibrate(dense, WINDOWS).calibration
        gathered.clear()
        hashed.clear()
        assert not cache.exists()
        assert statistics.projections.keys() == {"up", "down"}
        assert len(statistics.hidden_states) == 2
        assert (len(gathered), len(hashed)) == (1, 0)

    def test_what_is_damaged_is_made_again(self, dense: Artifact, cache: Path, gathered: list):
        expected = calibrate_once(dense, WINDOWS)
        (file,) = cache.iterdir()
        file.write_bytes(b"damaged")
        assert_same(calibrate_once(dense, WINDOWS), expected)
        assert len(gathered) == 2
        assert_same(read_statistics(file), expected)

    @pytest.mark.parametrize("field", ["text_sha256", "model_sha256"])
    def test_a_hash_that_only_begins_alike_is_told_apart(
        self, dense: Artifact, cache: Path, gathered: list, field: str
    ):
        expected = calibrate_once(dense, WINDOWS)
        (file,) = cache.iterdir()
        other = getattr(expected.calibration, field)[:16] + "0" * 48
        changed = dataclasses.replace(expected.calibration, **{field: other})
        write_statistics(dataclasses.replace(expected, calibration=changed), file)
        assert_same(calibrate_once(dense, WINDOWS), expected)
        assert len(gathered) == 2

    def test_what_lacks_a_projection_is_made_again(self, dense: Artifact, cache: Path, gathered: list):
        expected = calibrate_once(dense, WINDOWS)
        (file,) = cache.iterdir()
        write_statistics(dataclasses.replace(expected, projections={}), file)
        assert_same(calibrate_once(dense, WINDOWS), expected)
        assert len(gathered) == 2

    def test_a_cache_that_cannot_be_made_is_done_without(
        self, dense: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        (tmp_path / "cache").write_text("a file")
        assert_same(calibrate_once(dense, WINDOWS), calibrate(dense, WINDOWS))
        assert "not kept" in caplog.text

    def test_a_home_that_is_not_known_is_done_without(
        self, dense: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        def no_home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
        assert_same(calibrate_once(dense, WINDOWS), calibrate(dense, WINDOWS))
        assert "home directory" in caplog.text

    def test_a_full_disk_leaves_nothing_behind(
        self, dense: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        def write_half(_: Statistics, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError("no space left")

        monkeypatch.setattr(calibration, "write_statistics", write_half)
        assert_same(calibrate_once(dense, WINDOWS), calibrate(dense, WINDOWS))
        assert "no space left" in caplog.text
        assert list(cache.iterdir()) == []


class TestRequireStatisticsOf:
    @pytest.fixture
    def statistics(self, dense: Artifact) -> Statistics:
        return calibrate(dense, WINDOWS)

    @pytest.fixture
    def projections(self) -> list[Projection]:
        return find_projections(MODEL.graph)

    def test_statistics_of_the_model_fit(self, projections: list[Projection], statistics: Statistics):
        require_statistics_of(projections, statistics, Path("statistics.h5"))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda statistics: statistics.projections.pop("down"),
            lambda statistics: statistics.hidden_states.pop("h"),
            lambda statistics: setattr(statistics.projections["down"], "hidden_state", "x"),
            lambda statistics: setattr(statistics.projections["down"], "row_norms", np.ones(3, np.float32)),
            lambda statistics: setattr(statistics.hidden_states["h"], "channel_sum", np.ones(3)),
        ],
        ids=["no projection", "no hidden state", "another hidden state", "other norms", "other channels"],
    )
    def test_others_are_refused_with_a_remedy(self, projections: list[Projection], statistics: Statistics, damage):
        damage(statistics)
        with pytest.raises(SparseccError, match="holds no statistics that fit down; run `sparsecc calibrate`"):
            require_statistics_of(projections, statistics, Path("statistics.h5"))
