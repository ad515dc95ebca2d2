"""Inputs that a broken model could bring: each ends in an error that says what is wrong, or in a defined result."""

import copy
import ctypes

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import sparsecc

from .one_op import Arrays, model, run, session

InvalidArgument = ort.capi.onnxruntime_pybind11_state.InvalidArgument


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def product(**replaced: np.ndarray) -> Arrays:
    """Inputs of SparseMatMul that are right but for the ones given."""
    return {"values": zeros(3, 2), "indices": np.array([0, 4]), "W": zeros(5, 7), "bias": zeros(7)} | replaced


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("index", [5, -1, 2**31, 2**63 - 1, -(2**63)])
def test_index_out_of_range(rows: int, index: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"SparseMatMul: indices has {index} at position 1, but W has 5 rows"):
        run("SparseMatMul", product(values=zeros(rows, 2), indices=np.array([0, index])))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        (product(values=zeros()), r"values must have rank 1 or more, but its shape is \[\]"),
        (product(indices=np.zeros((1, 2), np.int64)), r"indices must have rank 1, but its shape is \[1, 2\]"),
        (product(W=zeros(5)), r"W must have rank 2, but its shape is \[5\]"),
        (product(W=zeros(1, 5, 7)), r"W must have rank 2, but its shape is \[1, 5, 7\]"),
        (product(bias=zeros(6)), r"bias is \[6\], but W is \[5, 7\]"),
        (product(bias=zeros(1)), r"bias is \[1\], but W is \[5, 7\]"),
        (product(bias=zeros(1, 7)), r"bias must have rank 1, but its shape is \[1, 7\]"),
        (product(values=zeros(3, 4)), r"values is \[3, 4\], but indices is \[2\]"),
        (product(values=zeros(3, 0)), r"values is \[3, 0\], but indices is \[2\]"),
        (product(W=zeros(0, 7)), r"indices has 0 at position 0, but W has 0 rows"),
    ],
)
def test_sparse_matmul_rejects(feeds: Arrays, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"SparseMatMul: {message}"):
        run("SparseMatMul", feeds)


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (zeros(2, 4), zeros(3), r"T must be \[1\] or \[K\], but X is \[2, 4\] and T is \[3\]"),
        (zeros(2, 4), zeros(0), r"T must be \[1\] or \[K\]"),
        (zeros(2, 1), zeros(4), r"T must be \[1\] or \[K\]"),
        (zeros(2, 4), zeros(1, 1), r"T must have rank 1"),
        (zeros(2, 4), zeros(), r"T must have rank 1"),
        (zeros(), zeros(1), r"X must have rank 1 or more"),
    ],
)
def test_threshold_rejects(x: np.ndarray, t: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Threshold: {message}"):
        run("Threshold", {"X": x, "T": t})


@pytest.mark.parametrize("attributes", [{}, {"k": -1}, {"k": -(2**63)}])
def test_keep_largest_rejects_a_count_that_is_none(attributes: dict[str, int]) -> None:
    with pytest.raises(Exception, match=r"KeepLargest: the attribute k must say|Required attribute 'k' is missing"):
        run("KeepLargest", {"X": zeros(2, 4)}, **attributes)


def test_keep_largest_rejects_a_scalar() -> None:
    with pytest.raises(InvalidArgument, match="KeepLargest: X must have rank 1 or more"):
        run("KeepLargest", {"X": zeros()}, k=1)


@pytest.mark.parametrize("k", [4, 5, 2**63 - 1])
def test_keep_largest_keeps_all_of_a_row_that_has_no_more(k: int) -> None:
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run("KeepLargest", {"X": x}, k=k)[0], x)


def test_gather_active_rejects_a_scalar() -> None:
    with pytest.raises(InvalidArgument, match="GatherActive: Y must have rank 1 or more"):
        run("GatherActive", {"Y": zeros()})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (zeros(), "X must have rank 1 or more"),
        (zeros(2, 5), r"the last dimension of X must be even, but X is \[2, 5\]"),
    ],
)
def test_swiglu_rejects(x: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"SwiGLU: {message}"):
        run("SwiGLU", {"X": x})


def test_sizes_of_zero_give_empty_tensors() -> None:
    assert run("Threshold", {"X": zeros(2, 0), "T": zeros(1)})[0].shape == (2, 0)
    assert run("KeepLargest", {"X": zeros(2, 0)}, k=3)[0].shape == (2, 0)
    assert run("SwiGLU", {"X": zeros(2, 0)})[0].shape == (2, 0)
    assert run("SwiGLU", {"X": zeros(0, 6)})[0].shape == (0, 3)
    values, indices = run("GatherActive", {"Y": zeros(2, 0)})
    assert (values.shape, indices.shape) == ((2, 0), (0,))
    no_indices = np.zeros(0, np.int64)
    for rows in (1, 2, 100):
        no_columns = product(values=zeros(rows, 2), W=zeros(5, 0), bias=zeros(0))
        assert run("SparseMatMul", no_columns)[0].shape == (rows, 0)
        bias = np.arange(7, dtype=np.float32)
        no_channels = product(values=zeros(rows, 0), indices=no_indices, W=zeros(0, 7), bias=bias)
        np.testing.assert_array_equal(run("SparseMatMul", no_channels)[0], np.tile(bias, (rows, 1)))


def test_huge_shape_of_an_empty_tensor() -> None:
    """values is [2^40, 0] and takes no memory; the product would not fit any."""
    feeds = product(values=np.zeros((2**40, 0), np.float32), indices=np.zeros(0, np.int64), W=zeros(0, 2**30))
    del feeds["bias"]
    with pytest.raises(InvalidArgument, match=r"SparseMatMul: the shape .* is too large"):
        run("SparseMatMul", feeds)


def test_wrong_element_type_is_refused() -> None:
    wrong = copy.deepcopy(model("GatherActive", {"Y": zeros(1)}))
    wrong.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    wrong.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(Exception, match=r"GatherActive|Type"):
        session(wrong.SerializeToString())


class OldRuntime:
    """An OrtApiBase that has no table recent enough: GetApi returns null for every version, or above the first."""

    def __init__(self, first: int | None) -> None:
        self.get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda v: first if v == 1 else None)
        self.version = ctypes.create_string_buffer(b"1.2.3")
        self.get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(self.version))
        self.base = (ctypes.c_void_p * 2)(
            ctypes.cast(self.get_api, ctypes.c_void_p), ctypes.cast(self.get_version, ctypes.c_void_p)
        )


def test_old_runtime_is_told() -> None:
    register = ctypes.CDLL(str(sparsecc.ops_library_path())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    messages: list[bytes] = []

    def create_status(_code: int, message: bytes) -> int:
        messages.append(message)
        return 1

    entry = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(create_status)
    table = (ctypes.c_void_p * 1)(ctypes.cast(entry, ctypes.c_void_p))
    assert register(None, OldRuntime(ctypes.addressof(table)).base) == 1
    assert messages == [b"sparsecc needs onnxruntime 1.18 or newer, not 1.2.3"]
    assert register(None, OldRuntime(None).base) is None


def test_library_loads_into_many_sessions() -> None:
    one_node = model("GatherActive", {"Y": zeros(1)}).SerializeToString()
    for _ in range(20):
        values, indices = session(one_node).run(None, {"Y": np.array([0, 5], np.float32)})
        assert (values.tolist(), indices.tolist()) == ([5.0], [1])
