"""Feed the operators random and hostile models of one node: each gives the right numbers or an error, never a crash.

From the root of the repository, for as long as one likes:

    python tests/runtime_ops/fuzz_ops.py --seconds 60

With a library that finds what only happens to go well, which gcc builds:

    cmake -S . -B build/sanitized -DCMAKE_BUILD_TYPE=RelWithDebInfo \
        -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
    cmake --build build/sanitized
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" \
        ASAN_OPTIONS=detect_leaks=0 \
        python tests/runtime_ops/fuzz_ops.py --seconds 60 --library build/sanitized/libsparsecc_ops.so

SPARSECC_KERNELS=portable in the environment takes the other kernels. A crash names the case it was in by its seed,
which ``--seed N --cases 1`` repeats.
"""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import itertools
import sys
import time
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import sparsecc

DOMAIN = "ai.sparsecc"
INPUTS = {
    "Threshold": ["X", "T"],
    "KeepLargest": ["X"],
    "GatherActive": ["Y"],
    "SparseMatMul": ["values", "indices", "W", "bias"],
    "SparseMatMulNBits": ["values", "indices", "Wq", "scales", "bias"],
    "SparseLinear": ["X", "T", "W", "bias"],
    "SparseLinearNBits": ["X", "T", "Wq", "scales", "bias"],
    "SwiGLU": ["X"],
}
OPTIONAL = {"bias"}
ATTRIBUTES = {
    "Threshold": {"max_sparse_rows"},
    "KeepLargest": {"k", "max_sparse_rows"},
    "SparseMatMulNBits": {"block_size"},
    "SparseLinear": {"max_sparse_rows"},
    "SparseLinearNBits": {"block_size", "max_sparse_rows"},
}
OUTPUTS = {"GatherActive": [np.float32, np.int64]}
FLOAT32 = {np.dtype(np.float32)}
TYPES: dict[str, set[Any]] = {
    "indices": {np.dtype(np.int64)},
    "W": {np.dtype(np.float32), np.dtype(np.float16)},
    "Wq": {np.dtype(np.int8), np.dtype(ml_dtypes.int4)},
    "scales": {np.dtype(np.float16)},
}
OTHER_TYPES = [np.float64, np.int32, np.int64, np.uint8, np.int8, np.float16, np.bool_, ml_dtypes.int4, np.str_]
SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 1e-45, -1e-39, 3.4e38, 1e20, -1e-20]
INTEGERS = [0, -1, 1, 7, 32, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)]
SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 96, 128, 255, 300]
HANG_SECONDS = 60
MAX_PRODUCT = 2**31
GROUP = 32
"""Channels whose products the int4 and int8 kernels round to a common unit."""
UNITS = {np.dtype(ml_dtypes.int4): (127, 8), np.dtype(np.int8): (32767, 128)}
"""How many units the largest multiplier of a group has, and the largest weight."""


@dataclasses.dataclass
class Case:
    op: str
    arrays: dict[str, NDArray[Any]]
    attributes: dict[str, Any]
    constants: set[str]
    threads: int


def random_case(rng: np.random.Generator, ops: list[str]) -> Case:
    """A case that is right."""
    op = str(rng.choice(ops))
    channels, columns = (int(size) for size in rng.choice(SIZES, 2))
    leading = [(), (1,), (2,), (3, 2), (7,), (40,), (0,)][rng.integers(7)]
    if op == "SwiGLU":
        channels *= 2
    x = rng.standard_normal((*leading, channels)).astype(np.float32)
    x[rng.random(x.shape) < rng.choice([0, 0.5, 0.9])] = 0
    arrays: dict[str, NDArray[Any]] = {"X": x, "Y": x}
    arrays["T"] = rng.random(channels if rng.random() < 0.5 else 1).astype(np.float32)
    active = np.flatnonzero(rng.random(channels) < rng.choice([0, 0.3, 0.9, 1]))
    arrays["indices"] = rng.permutation(active) if rng.random() < 0.2 else active
    arrays["values"] = rng.standard_normal((*leading, len(active))).astype(np.float32)
    arrays["W"] = rng.standard_normal((channels, columns)).astype(rng.choice([np.float32, np.float16]))
    dtype, smallest = [(ml_dtypes.int4, -8), (np.int8, -128)][rng.integers(2)]
    block_size = int(rng.choice([1, 2, 5, 16, 32, 32, 32, 64, 128, 256, 1024, 2**20]))
    arrays["Wq"] = rng.integers(smallest, -smallest, (channels, columns)).astype(dtype)
    arrays["scales"] = rng.standard_normal((channels, -(-columns // block_size))).astype(np.float16)
    arrays["bias"] = rng.standard_normal(columns).astype(np.float32)
    attributes = {"block_size": block_size, "max_sparse_rows": int(rng.choice([0, 1, 4, 100]))}
    attributes["k"] = int(rng.integers(0, channels + 2))
    names = [name for name in INPUTS[op] if name not in OPTIONAL or rng.random() < 0.5]
    return Case(
        op,
        {name: arrays[name] for name in names},
        {name: attributes[name] for name in ATTRIBUTES.get(op, ())},
        {name for name in names if rng.random() < 0.5 or arrays[name].dtype == ml_dtypes.int4},
        int(rng.choice([1, 2])),
    )


def damage(case: Case, rng: np.random.Generator) -> None:
    """Change something, which may or may not make the case wrong."""
    name = str(rng.choice(list(case.arrays)))
    array = case.arrays[name]
    kind = str(rng.choice(["number", "size", "rank", "type", "huge", "absent", "attribute"]))
    if kind == "number" and array.size and array.dtype != np.str_:
        array = array.copy()
        places = rng.integers(0, array.size, rng.integers(1, 4))
        if array.dtype == np.int64:
            array.flat[places] = rng.choice(np.array([*INTEGERS, array.size, array.flat[0]], np.int64))
        elif array.dtype in (np.float32, np.float16):
            with np.errstate(over="ignore"):
                array.flat[places] = np.array(rng.choice(SPECIAL)).astype(array.dtype)
        case.arrays[name] = array
    elif kind == "size" and array.ndim:
        shape = [*array.shape]
        axis = int(rng.integers(array.ndim))
        shape[axis] = max(0, [0, 1, shape[axis] - 1, shape[axis] + 1, 2 * shape[axis]][rng.integers(5)])
        case.arrays[name] = resized(array, tuple(shape))
    elif kind == "rank":
        shapes = [(), (array.size,), (1, *array.shape), (*array.shape, 1), array.shape[::-1]]
        case.arrays[name] = resized(array, shapes[rng.integers(len(shapes))])
    elif kind == "type":
        dtype = OTHER_TYPES[rng.integers(len(OTHER_TYPES))]
        with np.errstate(all="ignore"):
            case.arrays[name] = np.nan_to_num(array.astype(np.float32)).clip(-8, 7).astype(dtype)
    elif kind == "huge":
        shapes = [(2**40, 0), (0, 2**40), (2**31, 2**16, 0)]
        if name in ("X", "Y"):  # these are gone through, which only takes long
            shapes = [(2**20, 0), (0, 2**20), (2**10, 2**10, 0)]
        case.arrays[name] = np.zeros(shapes[rng.integers(len(shapes))], array.dtype)
    elif kind == "absent":
        del case.arrays[name]
        case.constants.discard(name)
    elif kind == "attribute":
        attribute = str(rng.choice(["block_size", "k", "max_sparse_rows"]))
        values = [*INTEGERS, 1.5, "32", [32], None]
        case.attributes[attribute] = values[rng.integers(len(values))]
    for constant in list(case.arrays):
        if case.arrays[constant].dtype == ml_dtypes.int4:
            case.constants.add(constant)


def resized(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    size = prod(shape)
    return np.resize(array, shape) if array.size else np.zeros(shape if size < 10**6 else (0,), array.dtype)


def is_right(case: Case) -> bool:
    """Whether the contract of the operators says what comes out."""
    arrays = case.arrays
    is_whole = all(name in arrays or name in OPTIONAL for name in INPUTS[case.op])
    if not is_whole or any(array.dtype not in TYPES.get(name, FLOAT32) for name, array in arrays.items()):
        return False
    hidden = arrays[INPUTS[case.op][0]]
    fits = hidden.ndim > 0
    if fits and "T" in arrays:
        fits = arrays["T"].shape in ((1,), hidden.shape[-1:])
    if case.op == "KeepLargest":
        k = case.attributes.get("k")
        return fits and isinstance(k, int) and k >= 0
    if case.op == "SwiGLU":
        return fits and hidden.shape[-1] % 2 == 0
    return fits and (case.op in ("Threshold", "GatherActive") or has_right_weight(case, hidden.shape[-1]))


def has_right_weight(case: Case, channels: int) -> bool:
    """Whether weight, scales, bias and indices fit each other and so many channels."""
    arrays = case.arrays
    weight = arrays["Wq" if "Wq" in arrays else "W"]
    fits = weight.ndim == 2 and ("bias" not in arrays or arrays["bias"].shape == weight.shape[1:])
    if fits and "Wq" in arrays:
        block_size = block_size_of(case)
        fits = block_size > 0 and arrays["scales"].shape == (len(weight), -(-weight.shape[1] // block_size))
    if not fits or "indices" not in arrays:
        return fits and channels == len(weight)
    indices = arrays["indices"]
    return indices.shape == (channels,) and bool(np.all((indices >= 0) & (indices < len(weight))))


def block_size_of(case: Case) -> int:
    """Of another type it counts as absent."""
    block_size = case.attributes.get("block_size")
    return block_size if isinstance(block_size, int) else 32


def expected(case: Case) -> list[tuple[NDArray[Any], NDArray[Any] | float]]:
    """What comes out of a case that is right, in float64, each with the error that is allowed."""
    arrays = case.arrays
    if case.op == "Threshold":
        return [(thresholded(case), 0.0)]
    if case.op == "KeepLargest":
        return [(largest_kept(case), 0.0)]
    if case.op == "SwiGLU":
        gate, up = np.split(arrays["X"].astype(np.float64), 2, axis=-1)
        gated = gate / (1 + np.exp(-gate)) * up
        return [(gated, 1e-6 * np.abs(gated) + 1e-35 * np.abs(up) + 1e-30)]
    if case.op == "GatherActive":
        active = active_channels(arrays["Y"])
        return [(arrays["Y"][..., active], 0.0), (active, 0.0)]
    weight = arrays["Wq" if "Wq" in arrays else "W"].astype(np.float64)
    scales = np.ones_like(weight)
    if "Wq" in arrays:
        blocks = np.arange(weight.shape[1]) // block_size_of(case)
        scales = arrays["scales"].astype(np.float64)[:, blocks]
    if "indices" in arrays:
        values, indices = arrays["values"].astype(np.float64), arrays["indices"]
    else:
        values = thresholded(case).astype(np.float64)
        indices = active_channels(values)
        values = values[..., indices]
    rows, scales = weight[indices], scales[indices]
    bias = arrays.get("bias", np.zeros(weight.shape[1])).astype(np.float64)
    terms = np.abs(values) @ np.abs(rows * scales) + np.abs(bias)
    allowed = 1e-5 * terms + 1e-30
    if "Wq" in arrays:
        units, largest = UNITS[arrays["Wq"].dtype]
        for start in range(0, len(indices), GROUP):
            group = slice(start, start + GROUP)
            unit = np.abs(values[..., group]).max(axis=-1, keepdims=True) * np.abs(scales[group]).max(axis=0) / units
            allowed = allowed + 0.51 * unit * largest * len(indices[group])
    multipliers = np.abs(values) @ np.abs(scales)  # beyond float32 they may be infinite, and times a weight of 0 NaN
    return [(values @ (rows * scales) + bias, np.where(np.maximum(terms, multipliers) < 1e30, allowed, np.inf))]


def active_channels(hidden: NDArray[Any]) -> NDArray[np.int64]:
    return np.flatnonzero((hidden != 0).any(axis=tuple(range(hidden.ndim - 1))))


def runs_dense(case: Case) -> bool:
    limit = case.attributes.get("max_sparse_rows")
    limit = limit if isinstance(limit, int) else 0  # of another type it counts as absent
    return 0 < limit < prod(case.arrays["X"].shape[:-1])


def largest_kept(case: Case) -> NDArray[np.float32]:
    x = case.arrays["X"]
    if runs_dense(case):
        return x
    rows = np.where(np.isnan(x), np.float32(0), x)
    ranks = np.argsort(np.argsort(-np.abs(rows), axis=-1, kind="stable"), axis=-1)
    return np.where(ranks < case.attributes["k"], rows, np.float32(0))


def thresholded(case: Case) -> NDArray[np.float32]:
    x = case.arrays["X"]
    if runs_dense(case):
        return x
    return np.where(np.abs(x) >= case.arrays["T"], x, np.float32(0))


def model_of(case: Case) -> bytes:
    names = INPUTS[case.op]
    element_types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in case.arrays.items()}
    outputs = [
        helper.make_tensor_value_info(f"output_{index}", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)
        for index, dtype in enumerate(OUTPUTS.get(case.op, [np.float32]))
    ]
    present = [name if name in case.arrays else "" for name in names]
    while present and not present[-1]:
        present.pop()
    node = helper.make_node(case.op, present, [value.name for value in outputs], domain=DOMAIN)
    node.attribute.extend(
        helper.make_attribute(name, value) for name, value in case.attributes.items() if value is not None
    )
    fed = [name for name in case.arrays if name not in case.constants]
    graph = helper.make_graph(
        [node],
        case.op,
        [helper.make_tensor_value_info(name, element_types[name], None) for name in fed],
        outputs,
        [numpy_helper.from_array(case.arrays[name], name) for name in sorted(case.constants)],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid(DOMAIN, 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return serialized


def run(case: Case, library: Path) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # each tensor on its own, so that a sanitizer sees where it ends
    options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(model_of(case), options, providers=["CPUExecutionProvider"])
    feeds = {name: array for name, array in case.arrays.items() if name not in case.constants}
    return [np.asarray(output) for output in session.run(None, feeds)]


def check(case: Case, library: Path) -> str:
    """Run a case; what it says of how it went serves as a count of each.

    Raises:
        AssertionError: what should be refused was not, or the other way round, or the numbers are wrong.
    """
    if entries_of_product(case) >= MAX_PRODUCT:
        return "too large to be tried"
    is_too_large = any(array.shape and max(array.shape) >= MAX_PRODUCT for array in case.arrays.values())
    try:
        outputs = run(case, library)
    except Exception as error:
        assert is_too_large or not is_right(case), f"a case that is right was refused: {error}"
        assert str(error).strip(), "refused without a word"
        return "refused"
    assert is_right(case), "a case that is wrong was taken"
    if is_too_large:
        return "computed from nothing"
    with np.errstate(all="ignore"):
        for output, (exact, allowed) in zip(outputs, expected(case), strict=True):
            assert output.shape == exact.shape, f"shape {output.shape}, not {exact.shape}"
            if isinstance(allowed, float):
                np.testing.assert_array_equal(output, exact)
            else:
                is_finite = np.isfinite(allowed) & np.isfinite(exact)
                error = np.abs(output - exact)
                assert np.all((error <= allowed) | ~is_finite), f"off by {np.nanmax(error - allowed)} more than allowed"
    return "computed"


def entries_of_product(case: Case) -> int:
    """How much onnxruntime would allocate for an operator that believed its inputs; 0 where nothing is multiplied."""
    hidden, weight = case.arrays.get(INPUTS[case.op][0]), case.arrays.get("Wq", case.arrays.get("W"))
    if hidden is None or weight is None or weight.ndim == 0:
        return 0
    return prod(hidden.shape[:-1]) * weight.shape[-1]


def known_ops(library: Path) -> list[str]:
    """The operators that the library has."""
    rng = np.random.default_rng(0)
    known = []
    for op in INPUTS:
        try:
            run(random_case(rng, [op]), library)
        except Exception as error:
            if "is not a registered function/op" in str(error):
                continue
            raise
        known.append(op)
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the operators.")
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--library", type=Path, default=sparsecc.ops_library_path())
    arguments = parser.parse_args()
    faulthandler.enable()
    ops = known_ops(arguments.library)
    print("fuzzing", ", ".join(ops))
    end = time.monotonic() + arguments.seconds
    counts: Counter[tuple[str, str]] = Counter()
    wrong = 0
    for seed in itertools.islice(itertools.count(arguments.seed), arguments.cases):
        if time.monotonic() > end:
            break
        print(f"\rseed {seed}", end="", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        rng = np.random.default_rng(seed)
        case = random_case(rng, ops)
        for _ in range(int(rng.choice([0, 1, 1, 2]))):
            if case.arrays:
                damage(case, rng)
        try:
            counts[case.op, check(case, arguments.library)] += 1
        except AssertionError as error:
            wrong += 1
            shapes = {name: (array.dtype.name, array.shape) for name, array in case.arrays.items()}
            print(f"\nseed {seed}: {case.op} {shapes} {case.attributes}: {str(error).strip()}")
    print(file=sys.stderr)
    for (op, outcome), count in sorted(counts.items()):
        print(f"{op}: {count} {outcome}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
