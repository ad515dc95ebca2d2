from pathlib import Path

import h5py
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsecc import histogram
from sparsecc.calibration_statistics import (
    HiddenStateStatistics,
    ProjectionStatistics,
    Statistics,
    read_statistics,
    write_statistics,
)
from sparsecc.errors import SparseccError
from sparsecc.projections import Projection, find_projections
from sparsecc.recipe import Calibration

from .graphs import FEED_FORWARD, FEED_FORWARD_SHAPES, model_of, random_arrays

CHANNELS = 8
CALIBRATION = Calibration(text_sha256="ab" * 32, model_sha256="cd" * 32, tokens=4000, window=1000)
WEIGHTS = random_arrays(FEED_FORWARD_SHAPES)
HIDDEN = (np.random.default_rng(0).laplace(size=(4000, CHANNELS)) * np.geomspace(0.01, 10, CHANNELS)).astype(np.float32)


@pytest.fixture(scope="module")
def up() -> Projection:
    return find_projections(model_of(FEED_FORWARD, WEIGHTS).graph)[0]


@pytest.fixture(scope="module")
def statistics(up: Projection) -> Statistics:
    state, projection = HiddenStateStatistics.empty(CHANNELS), ProjectionStatistics.empty(up)
    for part in np.array_split(HIDDEN, 7):
        state.add(part, np.abs(part))
        projection.add(np.abs(part))
    return Statistics(CALIBRATION, {"x": state}, {"up": projection})


@pytest.fixture
def file(statistics: Statistics, tmp_path: Path) -> Path:
    path = tmp_path / "statistics.h5"
    write_statistics(statistics, path)
    return path


def test_moments_are_the_exact_ones_whatever_the_parts(statistics: Statistics):
    state, exact = statistics.hidden_states["x"], HIDDEN.astype(np.float64)
    assert state.rows == len(HIDDEN)
    np.testing.assert_allclose(state.mean, exact.mean(axis=0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.second_moment, (exact**2).mean(axis=0), rtol=1e-9)


def test_moments_of_a_large_offset_keep_their_digits():
    state = HiddenStateStatistics.empty(1)
    x = np.full((100_000, 1), 4097.25, np.float32)
    state.add(x, x)
    assert state.mean[0] == 4097.25
    assert state.second_moment[0] == 4097.25**2


def test_moments_of_nothing_are_zero():
    np.testing.assert_array_equal(HiddenStateStatistics.empty(3).mean, np.zeros(3))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_magnitudes_are_pooled_over_tokens_and_channels(statistics: Statistics, share: float):
    expected = np.quantile(np.abs(HIDDEN.astype(np.float64)), share)
    assert histogram.quantile(statistics.hidden_states["x"].magnitudes, share) == pytest.approx(expected, rel=1e-3)


def test_row_norms_are_those_of_the_weight(statistics: Statistics):
    expected = np.sqrt((WEIGHTS["w_up"].astype(np.float64) ** 2).sum(axis=1))
    np.testing.assert_allclose(statistics.projections["up"].row_norms, expected, rtol=1e-6)
    assert statistics.projections["up"].row_norms.dtype == np.float32


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_weighted_magnitudes_are_magnitude_times_row_norm(statistics: Statistics, share: float):
    norms = np.sqrt((WEIGHTS["w_up"].astype(np.float64) ** 2).sum(axis=1))
    expected = np.quantile(np.abs(HIDDEN.astype(np.float64)) * norms, share)
    counts = statistics.projections["up"].weighted_magnitudes
    assert counts.sum() == HIDDEN.size
    assert histogram.quantile(counts, share) == pytest.approx(expected, rel=1e-3)


def test_a_projection_names_the_hidden_state_that_it_reads(statistics: Statistics):
    assert statistics.projections["up"].hidden_state == "x"


def test_a_file_gives_back_what_was_written(statistics: Statistics, file: Path):
    read = read_statistics(file)
    assert read.calibration == CALIBRATION
    assert read.hidden_states.keys() == {"x"}
    assert read.projections.keys() == {"up"}
    for kind, name in (("hidden_states", "x"), ("projections", "up")):
        expected, actual = getattr(statistics, kind)[name], getattr(read, kind)[name]
        for field, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(actual, field), value)
            assert np.asarray(getattr(actual, field)).dtype == np.asarray(value).dtype


def test_entries_keep_their_order_beyond_ten(statistics: Statistics, tmp_path: Path):
    states = {f"/layers.{index}/x": statistics.hidden_states["x"] for index in range(12)}
    write_statistics(Statistics(CALIBRATION, states, {}), tmp_path / "s.h5")
    assert list(read_statistics(tmp_path / "s.h5").hidden_states) == list(states)


def test_a_file_with_no_entries_can_be_read(tmp_path: Path):
    write_statistics(Statistics(CALIBRATION, {}, {}), tmp_path / "s.h5")
    assert read_statistics(tmp_path / "s.h5") == Statistics(CALIBRATION, {}, {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_an_error_of_the_file_system(statistics: Statistics):
    with pytest.raises(OSError, match="No space left"):
        write_statistics(statistics, Path("/dev/full"))


def test_the_documented_names_are_readable_without_sparsecc(statistics: Statistics, file: Path):
    with h5py.File(file, "r") as content:
        assert (content.attrs["format"], content.attrs["version"]) == ("sparsecc-statistics", 1)
        assert content.attrs["tokens"] == 4000
        state, projection = content["hidden_states/0"], content["projections/0"]
        assert (state.attrs["name"], state.attrs["rows"]) == ("x", len(HIDDEN))
        assert set(state) == {"magnitudes", "channel_sum", "channel_square_sum"}
        assert (projection.attrs["name"], projection.attrs["hidden_state"]) == ("up", "x")
        assert set(projection) == {"row_norms", "weighted_magnitudes"}
        np.testing.assert_array_equal(projection["row_norms"], statistics.projections["up"].row_norms)
        assert state["magnitudes"].compression == "gzip"


def delete(name: str):
    def damage(file: h5py.File) -> None:
        del file[name]

    return damage


def delete_attribute(group: str, name: str):
    def damage(file: h5py.File) -> None:
        del file[group].attrs[name]

    return damage


def replace_attribute(name: str, value: object, group: str = "/"):
    def damage(file: h5py.File) -> None:
        file[group].attrs[name] = value

    return damage


def replace_dataset(name: str, value: object):
    def damage(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return damage


def claim_shape(name: str, *shape: int):
    """A dataset of which nothing was written takes no room in the file, whatever its shape."""

    def damage(file: h5py.File) -> None:
        dtype = file[name].dtype
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=(1024,) * len(shape))

    return damage


def one_count(place: int, count: int) -> NDArray[np.int64]:
    counts = np.ones(histogram.BINS, np.int64)
    counts[place] = count
    return counts


def add_entry_of_the_same_name(file: h5py.File) -> None:
    file.copy("projections/0", "projections/1")


def replace_group(file: h5py.File) -> None:
    del file["projections"]
    file["projections"] = np.zeros(3)


def add_group(file: h5py.File) -> None:
    file.create_group("projections/more")


DAMAGES = {
    "no group": delete("projections"),
    "no dataset": delete("hidden_states/0/channel_sum"),
    "no format": delete_attribute("/", "format"),
    "no name": delete_attribute("projections/0", "name"),
    "no rows": delete_attribute("hidden_states/0", "rows"),
    "no hash": delete_attribute("/", "text_sha256"),
    "newer version": replace_attribute("version", 2),
    "other format": replace_attribute("format", "something"),
    "format is an array": replace_attribute("format", np.zeros(3)),
    "histogram of floats": replace_dataset("hidden_states/0/magnitudes", np.ones(histogram.BINS)),
    "histogram too short": replace_dataset("hidden_states/0/magnitudes", np.ones(histogram.BINS - 1, np.int64)),
    "histogram of everything": claim_shape("projections/0/weighted_magnitudes", 1 << 50),
    "histogram of nothing": replace_dataset("hidden_states/0/magnitudes", np.zeros(histogram.BINS, np.int64)),
    "negative count": replace_dataset("projections/0/weighted_magnitudes", one_count(3, -1)),
    "too great a count": replace_dataset("projections/0/weighted_magnitudes", one_count(3, 2**63 - 1)),
    "channels without end": claim_shape("hidden_states/0/channel_sum", 1 << 50),
    "no channels": replace_dataset("hidden_states/0/channel_sum", np.zeros(0)),
    "channels that differ": replace_dataset("hidden_states/0/channel_square_sum", np.ones(CHANNELS + 1)),
    "negative squares": replace_dataset("hidden_states/0/channel_square_sum", -np.ones(CHANNELS)),
    "infinite sum": replace_dataset("hidden_states/0/channel_sum", np.full(CHANNELS, np.inf)),
    "too few norms": replace_dataset("projections/0/row_norms", np.ones(CHANNELS - 1, np.float32)),
    "norms of float64": replace_dataset("projections/0/row_norms", np.ones(CHANNELS)),
    "norms are a matrix": replace_dataset("projections/0/row_norms", np.ones((CHANNELS, 1), np.float32)),
    "norm that is no number": replace_dataset("projections/0/row_norms", np.full(CHANNELS, np.nan, np.float32)),
    "norms are one number": replace_dataset("projections/0/row_norms", np.float32(1)),
    "no such hidden state": replace_attribute("hidden_state", "y", "projections/0"),
    "hidden state without rows": replace_attribute("rows", 0, "hidden_states/0"),
    "name is a number": replace_attribute("name", 3, "projections/0"),
    "name is there twice": add_entry_of_the_same_name,
    "tokens are a fraction": replace_attribute("tokens", 1.5),
    "tokens are text": replace_attribute("tokens", "many"),
    "group is a dataset": replace_group,
    "group is not numbered": add_group,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_foreign_files_are_refused_with_a_remedy(file: Path, damage: str):
    with h5py.File(file, "r+") as content:
        DAMAGES[damage](content)
    with pytest.raises(SparseccError, match="run `sparsecc calibrate` again"):
        read_statistics(file)


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n", bytes(100_000)])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "s.h5").write_bytes(content)
    with pytest.raises(SparseccError, match="run `sparsecc calibrate` again"):
        read_statistics(tmp_path / "s.h5")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(file: Path, share: float):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SparseccError, match="damaged"):
        read_statistics(file)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_overwritten_bytes_raise_nothing_but_a_clear_error(file: Path, data: st.DataObject):
    content = file.read_bytes()
    damaged = bytearray(content)
    start = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=16))
    damaged[start : start + len(patch)] = patch
    path = file.with_name("damaged.h5")
    path.write_bytes(damaged[: len(content)])
    try:
        read_statistics(path)
    except SparseccError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["nowhere.h5", "."])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str):
    with pytest.raises(SparseccError, match="sparsecc calibrate"):
        read_statistics(tmp_path / name)


def test_a_weight_is_read_from_the_graph(up: Projection):
    assert isinstance(up.node, ir.Node)
    np.testing.assert_array_equal(up.weight.const_value.numpy(), WEIGHTS["w_up"])
