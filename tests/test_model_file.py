import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsecc.errors import SparseccError
from sparsecc.model_file import ALIGNMENT, load_model, model_sha256, save_model

from .graphs import Array, model_of, random_arrays

TEXT = """
feed_forward (float[1, s, 32] x) => (float[1, s, 32] y) {
  u = MatMul(x, w_up)
  b = Add(u, bias)
  h = Relu(b)
  y = MatMul(h, w_down)
}
"""
SHAPES = {"w_up": (32, 48), "w_down": (48, 32), "bias": (48,)}


@pytest.fixture
def weights() -> dict[str, Array]:
    return random_arrays(SHAPES)


@pytest.fixture
def path(weights: dict[str, Array], tmp_path: Path) -> Path:
    """A saved model in a folder of its own, whose parent holds a copy of its data."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(model_of(TEXT, weights), folder)
    (tmp_path / "outside.data").write_bytes((folder / "model.onnx.data").read_bytes())
    return folder / "model.onnx"


def set_external_data(path: Path, **entries: str) -> None:
    """Change where the first weight of a model says that its data lies."""
    proto = onnx.load(path, load_external_data=False)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.external_data)
    for entry in tensor.external_data:
        entry.value = entries.pop(entry.key, entry.value)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def test_a_model_survives_a_file(path: Path, weights: dict[str, Array]):
    loaded = load_model(path)
    assert [node.op_type for node in loaded.graph] == ["MatMul", "Add", "Relu", "MatMul"]
    for name, value in loaded.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), weights[name])


def test_weights_lie_in_the_data_file_on_pages_and_small_tensors_in_the_graph(path: Path):
    tensors = {name: value.const_value for name, value in load_model(path).graph.initializers.items()}
    external = {name for name, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}
    assert external == {"w_up", "w_down"}
    for name in external:
        assert tensors[name].offset % ALIGNMENT == 0
        assert tensors[name].location == "model.onnx.data"
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_tensors_that_fill_huge_pages_begin_with_one(tmp_path: Path):
    text = (
        "product (float[1, 512] x) => (float[1, 512] y) { s = Add(x, small) h = MatMul(s, first) y = MatMul(h, last) }"
    )
    shapes = {"small": (512,), "first": (512, 1024), "last": (1024, 512)}
    save_model(model_of(text, random_arrays(shapes)), tmp_path)
    tensors = {
        name: value.const_value for name, value in load_model(tmp_path / "model.onnx").graph.initializers.items()
    }
    offsets = {name: tensor.offset for name, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}
    assert offsets == {"first": 0, "last": 1 << 21, "small": 1 << 22}


def test_weights_stay_on_disk_until_they_are_used(path: Path):
    model = load_model(path)
    (path.parent / "model.onnx.data").unlink()
    with pytest.raises(FileNotFoundError):
        model.graph.initializers["w_up"].const_value.numpy()


def test_a_model_can_be_saved_again_from_its_own_files(path: Path, tmp_path: Path, weights: dict[str, Array]):
    folder = tmp_path / "again"
    folder.mkdir()
    save_model(load_model(path), folder)
    np.testing.assert_array_equal(
        load_model(folder / "model.onnx").graph.initializers["w_up"].const_value.numpy(), weights["w_up"]
    )


@pytest.mark.parametrize("location", ["../outside.data", "sub/../../outside.data", "./../outside.data"])
def test_data_outside_the_folder_is_refused(path: Path, location: str):
    set_external_data(path, location=location)
    with pytest.raises(SparseccError, match="outside the model's folder"):
        load_model(path)


def test_data_at_an_absolute_path_is_refused_even_inside_the_folder(path: Path):
    set_external_data(path, location=str(path.parent / "model.onnx.data"))
    with pytest.raises(SparseccError, match="outside the model's folder"):
        load_model(path)


def test_a_link_that_leaves_the_folder_is_refused(path: Path):
    data = path.parent / "model.onnx.data"
    data.unlink()
    data.symlink_to(path.parent.parent / "outside.data")
    with pytest.raises(SparseccError, match="outside the model's folder"):
        load_model(path)


def test_a_linked_folder_that_leaves_the_folder_is_refused(path: Path):
    (path.parent / "sub").symlink_to(path.parent.parent, target_is_directory=True)
    set_external_data(path, location="sub/outside.data")
    with pytest.raises(SparseccError, match="outside the model's folder"):
        load_model(path)


def test_a_link_within_the_folder_is_followed(path: Path, weights: dict[str, Array]):
    data = path.parent / "model.onnx.data"
    data.rename(path.parent / "blob")
    data.symlink_to("blob")
    np.testing.assert_array_equal(load_model(path).graph.initializers["w_up"].const_value.numpy(), weights["w_up"])


def test_a_folder_reached_through_a_link_is_accepted(path: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(path.parent, target_is_directory=True)
    assert len(load_model(tmp_path / "link" / "model.onnx").graph.initializers) == 3


@pytest.mark.parametrize("location", [".", "nowhere", "sub/nowhere", "model.onnx.data/x"])
def test_missing_data_is_refused_with_a_remedy(path: Path, location: str):
    set_external_data(path, location=location)
    with pytest.raises(SparseccError, match="compile again"):
        load_model(path)


@pytest.mark.parametrize("kept", [0, 1, ALIGNMENT, -1])
def test_truncated_data_is_refused_with_a_remedy(path: Path, kept: int):
    data = path.parent / "model.onnx.data"
    os.truncate(data, kept % data.stat().st_size)
    with pytest.raises(SparseccError, match="cut short"):
        load_model(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "1000000"},
        {"offset": str(2**70)},
        {"length": "4"},
        {"offset": "-4096"},
        {"length": "-1"},
    ],
    ids=str,
)
def test_places_that_do_not_fit_the_data_are_refused(path: Path, entries: dict[str, str]):
    set_external_data(path, **entries)
    with pytest.raises(SparseccError):
        load_model(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": ""},
        {"location": "a\0b"},
        {"offset": "x"},
    ],
    ids=str,
)
def test_places_that_make_no_sense_are_refused(path: Path, entries: dict[str, str]):
    set_external_data(path, **entries)
    with pytest.raises(SparseccError):
        load_model(path)


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        b"\0" * 1000,
        b"\xff" * 1000,
        b"<html>not a model</html>",
        bytes(range(256)),
        b"",
    ],
    ids=len,
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(SparseccError):
        load_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["nowhere.onnx", "."])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str):
    with pytest.raises(SparseccError, match="is missing"):
        load_model(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data")
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_overwritten_bytes_raise_nothing_but_a_clear_error(path: Path, data: st.DataObject):
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(max_size=8))
    end = data.draw(st.sampled_from([start + len(patch), len(content)]))
    damaged = path.with_name("damaged.onnx")
    damaged.write_bytes(content[:start] + patch + content[end:])
    try:
        load_model(damaged)
    except SparseccError as error:
        assert "\n" not in str(error)


def test_equal_models_have_equal_hashes_wherever_they_lie(path: Path, tmp_path: Path, weights: dict[str, Array]):
    folder = tmp_path / "again"
    folder.mkdir()
    save_model(model_of(TEXT, weights), folder)
    assert model_sha256(folder / "model.onnx") == model_sha256(path)


@pytest.mark.parametrize("tensor", ["w_up", "w_down", "bias"])
def test_the_hash_changes_with_any_byte_of_a_weight(path: Path, tensor: str):
    before = model_sha256(path)
    loaded = load_model(path).graph.initializers[tensor].const_value
    if isinstance(loaded, ir.ExternalTensor):
        file, offset = path.parent / loaded.location, loaded.offset + loaded.nbytes - 1
    else:
        file, offset = path, path.read_bytes().index(loaded.numpy().tobytes())
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)
    assert model_sha256(path) != before


def test_the_hash_of_a_broken_model_is_refused(path: Path):
    (path.parent / "model.onnx.data").unlink()
    with pytest.raises(SparseccError, match="is missing"):
        model_sha256(path)
