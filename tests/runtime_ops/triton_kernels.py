"""The GPU's kernels against float64, on a GPU or in Triton's interpreter:

    pytest tests/runtime_ops/triton_kernels.py
    TRITON_INTERPRET=1 pytest tests/runtime_ops/triton_kernels.py

Memory that torch allocates is filled with NaN, so that an output that nobody writes is seen.
"""

import itertools
import math
import os
import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import triton
import triton.language as tl
from torch.nn import functional

from sparsecc.errors import SparseccError
from sparsecc.runtime_ops.triton import early_start, reference
from sparsecc.runtime_ops.triton.decode_attention import Rotation, decode_attention
from sparsecc.runtime_ops.triton.executor import GraphExecutor
from sparsecc.runtime_ops.triton.fuse_norms import FuseNormsPass
from sparsecc.runtime_ops.triton.launch import Cut, one_row_launch, parts_of
from sparsecc.runtime_ops.triton.operators import OPERATORS, attention
from sparsecc.runtime_ops.triton.operators.operator import Placement
from sparsecc.runtime_ops.triton.packed_rows import packed_rows_product
from sparsecc.runtime_ops.triton.projection import (
    BlockedWeight,
    LowRank,
    Norm,
    PlainWeight,
    Projection,
    Residual,
    Weight,
)
from sparsecc.runtime_ops.triton.row_norm import row_norm
from sparsecc.runtime_ops.triton.sparse_linear import added_linear, gated_linear, sparse_linear

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
CHANNELS, COLUMNS = 38, 104
KINDS = ("float32", "float16", "bfloat16", "int8", "int4")
SEEDS = range(12 if INTERPRETED else 200)
BOUNDS = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}
"""Of ‖y - expected‖ / ‖expected‖: sums are float32, results are rounded to the type of x; the interpreter truncates."""

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.set_default_device("cpu" if INTERPRETED else "cuda")
torch.use_deterministic_algorithms(True, warn_only=True)  # which poisons what is allocated


def weight_of(kind: str, block_size: int = 32, channels: int = CHANNELS, columns: int = COLUMNS) -> Weight:
    """So large that a product of two results is a float16."""
    deviation = channels**-0.5
    if kind in ("float32", "float16", "bfloat16"):
        return PlainWeight((torch.randn(channels, columns) * deviation).to(getattr(torch, kind)))
    scales = (torch.randn(channels, -(-columns // block_size)) * deviation / (64 if kind == "int8" else 4)).half()
    if kind == "int8":
        return BlockedWeight(torch.randint(-128, 128, (channels, columns)).to(torch.int8), scales, block_size)
    return BlockedWeight(torch.randint(0, 256, (channels, columns // 2)).to(torch.uint8), scales, block_size)


def thresholds(*widths: int) -> tuple[torch.Tensor, ...]:
    """One for all channels, one for each, and one that drops more."""
    return (torch.tensor([0.6]), torch.rand(CHANNELS), torch.tensor([1.2]))[: len(widths)]


def check(x: torch.Tensor, projection: Projection, *, gated: bool = False) -> None:
    y = (gated_linear if gated else sparse_linear)(x, projection)
    expected = (reference.gated_project if gated else reference.project)(x, projection, torch.float64)
    assert y.dtype == x.dtype
    assert_close(y, expected)


def assert_close(y: torch.Tensor, expected: torch.Tensor) -> None:
    assert y.shape == expected.shape
    error = torch.linalg.norm(y.double() - expected)
    assert error <= BOUNDS[y.dtype] * torch.linalg.norm(expected)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_projects_weights_of_each_type(kind: str, rows: int) -> None:
    widths = (40, 32, 32)
    check(torch.randn(rows, CHANNELS), Projection(weight_of(kind), thresholds(*widths), widths, torch.randn(COLUMNS)))


@pytest.mark.parametrize("seed", SEEDS)
def test_projects_any_shape(seed: int) -> None:
    """Odd sizes, any number of segments, both kinds of thresholds, with a bias and without."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kind = draw.choice(KINDS)
    channels, gated = draw.randint(1, 90 if INTERPRETED else 3000), draw.random() < 0.3
    widths = [draw.randint(1, 60 if INTERPRETED else 900) for _ in range(draw.randint(1, 3))]
    if gated:
        widths = widths[:1] * 2
    if kind == "int4" and sum(widths) % 2:
        widths[-1] += 1
    projection = Projection(
        weight_of(kind, draw.choice((5, 16, 32, 64)), channels, sum(widths)),
        tuple(draw.choice((torch.rand(1), torch.rand(channels))) for _ in widths),
        tuple(widths),
        draw.choice((None, torch.randn(sum(widths)))),
    )
    dtype = draw.choice(tuple(BOUNDS))
    check(torch.randn(draw.choice((1, 1, 2, 7, 16)), channels).to(dtype), projection, gated=gated)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", ["float16", "int4"])
@pytest.mark.parametrize("widths", [(COLUMNS,), (COLUMNS // 2, COLUMNS // 2)])
def test_gates(kind: str, widths: tuple[int, ...], rows: int) -> None:
    projection = Projection(weight_of(kind, 16), thresholds(*widths), widths, torch.randn(COLUMNS))
    check(torch.randn(rows, CHANNELS), projection, gated=True)


def test_scales_of_blocks_that_are_no_power_of_two() -> None:
    for kind in ("int8", "int4"):
        check(torch.randn(1, CHANNELS), Projection(weight_of(kind, 5), thresholds(COLUMNS), (COLUMNS,)))


@pytest.mark.parametrize("rows", [1, 3])
def test_bias_and_thresholds_that_are_expanded(rows: int) -> None:
    bounds, bias = torch.tensor([0.6]).expand(CHANNELS), torch.randn(1).expand(COLUMNS)
    check(torch.randn(rows, CHANNELS), Projection(weight_of("float16"), (bounds,), (COLUMNS,), bias))


@pytest.mark.parametrize("shape", [(CHANNELS - 1,), (1, CHANNELS + 1), (CHANNELS, 1), (3, 2), (20, 1), ()])
def test_refuses_hidden_states_of_other_channels(shape: tuple[int, ...]) -> None:
    projection = Projection(weight_of("float16"), thresholds(COLUMNS), (COLUMNS,))
    x = torch.randn(shape)
    for refused in (sparse_linear, gated_linear, lambda *given: added_linear(*given, torch.randn(COLUMNS))):
        with pytest.raises(ValueError, match=f"do not fit a weight of {CHANNELS} input channels"):
            refused(x, projection)


def test_refuses_weights_without_channels() -> None:
    with pytest.raises(SparseccError, match="at least one input channel"):
        Projection(PlainWeight(torch.zeros(0, COLUMNS)), thresholds(COLUMNS), (COLUMNS,))


@pytest.mark.parametrize("rows", [1, 2])
def test_weights_that_only_the_other_half_needs_are_not_read(rows: int) -> None:
    values = torch.randn(CHANNELS, COLUMNS)
    x = torch.randn(rows, CHANNELS)
    x[:, 5], values[5, COLUMNS // 2 :] = 0.9, float("inf")
    widths = (COLUMNS // 2, COLUMNS // 2)
    bounds = (torch.tensor([0.6]), torch.tensor([1.2]))
    check(x, Projection(PlainWeight(values), bounds, widths), gated=True)


@pytest.mark.parametrize("rows", [1, 2, 20])
def test_rows_that_nobody_needs_are_not_read(rows: int) -> None:
    values = torch.randn(CHANNELS, COLUMNS)
    x = torch.randn(rows, CHANNELS)
    x[:, 5], x[:, 6], x[:, 7] = 0.1, float("nan"), 0.0
    values[5], values[6], values[7] = float("nan"), float("inf"), float("nan")
    check(x, Projection(PlainWeight(values), (torch.tensor([0.6]),), (COLUMNS,)))


def test_no_active_channel_leaves_the_bias() -> None:
    projection = Projection(weight_of("float16"), (torch.tensor([9.0]),), (COLUMNS,), torch.randn(COLUMNS))
    check(torch.randn(1, CHANNELS).clamp(-8, 8), projection)


def test_more_rows_than_the_limit_pass_untouched() -> None:
    projection = Projection(weight_of("int8"), thresholds(COLUMNS), (COLUMNS,), max_sparse_rows=2)
    check(torch.randn(2, CHANNELS), projection)
    check(torch.randn(3, CHANNELS), projection)


def test_low_rank_serves_what_is_dropped() -> None:
    low_rank = LowRank(torch.randn(CHANNELS, 4), torch.randn(4, COLUMNS))
    projection = Projection(weight_of("float32"), thresholds(COLUMNS), (COLUMNS,), low_rank=low_rank)
    for rows in (1, 20):
        check(torch.randn(rows, CHANNELS), projection)


def test_every_cut_gives_the_same_every_time() -> None:
    projection = Projection(weight_of("float32"), thresholds(COLUMNS), (COLUMNS,))
    x = torch.randn(CHANNELS)
    expected = reference.project(x, projection, torch.float64)
    for cut in (
        Cut(32, 1, 1, 2, 64),
        Cut(32, 2, 2, 1, 64),
        Cut(32, 3, 2, 1, 64),
        Cut(64, 2, 4, 1, 64),
        Cut(128, 2, 4, 2, 64),
        Cut(64, 2, 1, 2, 64, compact=False),
    ):
        outs = []
        for _ in range(2):
            out = torch.full((COLUMNS,), float("nan"))
            one_row_launch(x, projection, cut, gated=False, out=out).run()
            outs.append(out)
        assert torch.equal(*outs)
        assert_close(outs[0], expected)


@triton.jit
def prefetching_kernel(w_ptr, row_bytes, rows):
    early_start.prefetch_rows(w_ptr, row_bytes, tl.program_id(1) * rows, rows, tl.program_id(0), tl.num_programs(0))


@pytest.mark.skipif(not INTERPRETED, reason="only in the interpreter can it be seen what is asked for")
@pytest.mark.parametrize("offset", [0, 1])
def test_prefetches_whole_lines_wherever_weights_begin(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(early_start, "prefetch", lambda *run: asked.append([int(part.handle.data[0]) for part in run]))
    weights = torch.zeros(6 * 1000 + 1, dtype=torch.float16)[offset:]
    prefetching_kernel[(2, 3)](weights, 2000, 2)
    begin, end = weights.data_ptr(), weights.data_ptr() + 6 * 2000
    assert len(asked) == 6
    assert all(address % 128 == size % 128 == 0 < size for address, size in asked)
    assert all(begin - 128 < address and address + size <= end for address, size in asked)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter starts nothing early")
def test_starts_early_with_weights_that_begin_anywhere() -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9.0")
    values = torch.randn(1 + 512 * 256).half()[1:].view(512, 256)
    projection = Projection(PlainWeight(values), (torch.tensor([0.6]),), (256,))
    x, out = torch.randn(512), torch.full((256,), float("nan"))
    one_row_launch(x, projection, Cut(64, 4, 1, 8, 128, early=True, prefetch=1 << 16), gated=False, out=out).run()
    assert_close(out, reference.project(x, projection, torch.float64))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", ["bfloat16", "int4"])
def test_adds_to_a_residual_and_norms_the_sum(kind: str, rows: int) -> None:
    torch.manual_seed(0)
    x, residual, gain = torch.randn(rows, CHANNELS), torch.randn(rows, COLUMNS), torch.rand(COLUMNS)
    first = Projection(weight_of(kind), thresholds(COLUMNS), (COLUMNS,), torch.randn(COLUMNS))
    total, squares = added_linear(x, first, residual)
    expected = residual.double() + reference.project(x, first, torch.float64)
    assert_close(total, expected)
    second = Projection(weight_of(kind, 32, COLUMNS, 96), (torch.tensor([0.3]),), (96,))
    normed = reference.rms_norm(total, gain, 1e-5)
    norm = Norm(gain, squares, 1e-5)
    assert_close(sparse_linear(total, second, norm), reference.project(normed, second, torch.float64))
    assert_close(gated_linear(total, second, norm), reference.gated_project(normed, second, torch.float64))


def test_a_sum_falls_back_to_torch_where_the_kernel_has_no_place() -> None:
    """A residual that wants a gradient or has another shape, and squares that nobody added up."""
    torch.manual_seed(0)
    x, gain = torch.randn(1, 1, CHANNELS), torch.rand(COLUMNS)
    first = Projection(weight_of("float16"), thresholds(COLUMNS), (COLUMNS,))
    assert added_linear(x, first, torch.randn(1, 1, COLUMNS, requires_grad=True))[0].requires_grad
    second = Projection(weight_of("float16", channels=COLUMNS), (torch.tensor([0.3]),), (COLUMNS,))
    for shape in ((COLUMNS,), (2, 1, COLUMNS)):
        residual = torch.randn(shape)
        total, squares = added_linear(x, first, residual)
        assert squares.numel() == 0
        assert_close(total, residual.double() + reference.project(x, first, torch.float64))
    row = total[:1]
    normed = reference.rms_norm(row, gain, 1e-5)
    norm = Norm(gain, squares, 1e-5)
    assert_close(sparse_linear(row, second, norm), reference.project(normed, second, torch.float64))
    assert_close(added_linear(row, second, row, norm)[0], row + reference.project(normed, second, torch.float64))


@pytest.mark.parametrize("quantized", [False, True])
def test_a_fused_graph_computes_what_it_did(quantized: bool) -> None:
    """Two branches of equal names, each a projection whose sum is normed, projected, and normed and projected again."""
    torch.manual_seed(0)
    model = branches(quantized=quantized)
    inputs = {"x": torch.randn(1, 1, 32), "residual": torch.randn(1, 1, 32)}
    device = torch.get_default_device()
    expected = GraphExecutor(model, device).run(inputs, ["y1", "y2"])
    fused = GraphExecutor(model, device, passes=[FuseNormsPass()]).run(inputs, ["y1", "y2"])
    assert FuseNormsPass()(model).modified
    assert (
        sorted(node.op_type.split("Sparse")[0] for node in model.graph)
        == ["Added"] * 2 + ["AddedNormed"] * 2 + ["Normed"] * 2
    )
    for name, values in fused.items():
        assert_close(values, expected[name].double())


def branches(*, quantized: bool) -> ir.Model:
    operator = "SparseLinearNBits" if quantized else "SparseLinear"
    weight = "w, scales" if quantized else "w"
    steps = [
        f"p{{n}} = ai.sparsecc.{operator} (x, t{{n}}, {weight})",
        "n{n}, a, b, s{n} = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (residual, p{n}, gain)",
        f"q{{n}} = ai.sparsecc.{operator} (n{{n}}, t{{n}}, {weight}, bias)",
        "m{n}, c, d, r{n} = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (s{n}, q{n}, gain)",
        f"y{{n}} = ai.sparsecc.{operator} (m{{n}}, t{{n}}, {weight})",
    ]
    unique = {name: itertools.count() for name in "abcd"}
    lines = []
    for step in steps:
        for n in (1, 2):
            line = step.format(n=n)
            for name, numbers in unique.items():
                line = line.replace(f" {name},", f" {name}{next(numbers)},")
            lines.append(line)
    signature = "g (float[1, 1, 32] x, float[1, 1, 32] residual) => (float[1, 1, 32] y1, float[1, 1, 32] y2)"
    text = f"{signature} {{ {' '.join(lines)} }}"
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 22, "com.microsoft": 1, "ai.sparsecc": 1]> {text}'
    )
    values = {"t1": [0.3], "t2": [0.6], "gain": torch.rand(32).tolist(), "bias": torch.randn(32).tolist()}
    tensors = [onnx.numpy_helper.from_array(np.array(entries, np.float32), name) for name, entries in values.items()]
    if quantized:
        codes = torch.randint(0, 256, (512,)).to(torch.uint8).cpu().numpy().tobytes()
        tensors.append(onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [32, 32], codes, raw=True))
        tensors.append(onnx.numpy_helper.from_array(np.full((32, 1), 0.05, np.float16), "scales"))
    else:
        tensors.append(onnx.numpy_helper.from_array(torch.randn(32, 32).cpu().numpy() / 6, "w"))
    proto.graph.initializer.extend(tensors)
    return ir.from_proto(proto)


def test_a_gain_that_is_not_one_for_each_channel_is_left_to_torch() -> None:
    x = torch.randn(1, CHANNELS)
    projection = Projection(weight_of("float16"), (torch.tensor([0.6]),), (COLUMNS,))
    norm = Norm(torch.rand(1), x.square().sum(1), 1e-5)
    normed = reference.rms_norm(x, norm.gain, 1e-5)
    assert_close(sparse_linear(x, projection, norm), reference.project(normed, projection, torch.float64))
    with pytest.raises(RuntimeError, match="must match"):
        sparse_linear(x, projection, Norm(torch.rand(CHANNELS - 1), norm.squares, 1e-5))


@pytest.mark.parametrize("compact", [True, False])
def test_norms_and_adds_in_one_launch(compact: bool) -> None:
    """Squares of tiles, some of them partial, and of slices that are read in different orders."""
    torch.manual_seed(0)
    x, gain = torch.randn(CHANNELS), torch.rand(CHANNELS)
    projection = Projection(weight_of("float16"), thresholds(COLUMNS), (COLUMNS,))
    cut = Cut(32, 3, 1, 2, 64, compact=compact)
    out, squares = torch.full((COLUMNS,), float("nan")), torch.full((parts_of(projection, cut),), float("nan"))
    residual = Residual(torch.randn(COLUMNS), squares)
    norm = Norm(gain, x.square().reshape(2, -1).sum(1), 1e-5)
    one_row_launch(x, projection, cut, gated=False, out=out, norm=norm, residual=residual).run()
    normed = reference.rms_norm(x, gain, 1e-5)
    assert_close(out, residual.hidden.double() + reference.project(normed, projection, torch.float64))
    assert_close(squares.sum(), out.double().square().sum())


@pytest.mark.parametrize("columns", [1, 96, 100])
def test_norms_a_sum(columns: int) -> None:
    hidden, skip, scale = torch.randn(3, columns), torch.randn(3, columns), torch.rand(columns)
    for added in (None, skip):
        normed, total = row_norm(hidden, added, scale, 1e-5)
        expected = hidden if added is None else hidden + added
        assert torch.equal(total, expected)
        wide = expected.double()
        assert_close(normed, wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * scale.double())


def test_norms_what_is_expanded_or_broadcast() -> None:
    hidden, gain = torch.randn(3, 96), torch.rand(1)
    for skip, scale in ((torch.randn(3, 1), gain.expand(96)), (torch.randn(96), gain), (torch.randn(3, 96), gain)):
        normed, total = row_norm(hidden, skip, scale, 1e-5)
        assert torch.equal(total, hidden + skip)
        wide = total.double()
        assert_close(normed, wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain.double())
    with pytest.raises(RuntimeError, match="must match"):
        row_norm(hidden, None, torch.rand(95), 1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "channels", "block_size"), [(33, 100, 32), (16, 64, 16), (5, 1088, 32)])
def test_multiplies_packed_rows(bits: int, outputs: int, channels: int, block_size: int) -> None:
    blocks = -(-channels // block_size)
    codes = torch.randint(0, 1 << bits, (outputs, blocks, block_size)).to(torch.uint8)
    scales, bias, hidden = torch.rand(outputs, blocks), torch.randn(outputs), torch.randn(2 * channels)[::2]
    packed = codes[..., ::2] | codes[..., 1::2] << 4 if bits == 4 else codes
    rows = (codes.double() - (1 << bits - 1)) * scales.double()[..., None]
    expected = rows.reshape(outputs, -1)[:, :channels] @ hidden.double()
    assert_close(packed_rows_product(hidden, packed, scales, None, bits), expected)
    for added in (bias, bias[:1], bias[:1].expand(outputs)):
        assert_close(packed_rows_product(hidden, packed, scales, added, bits), expected + added.double())


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (70, 0.0), (0, 5.0)])
@pytest.mark.parametrize(("position", "capacity"), [(0, 40), (39, 40), (150, 200)])
def test_attends_to_what_is_cached(position: int, capacity: int, window: int, softcap: float, rotates: bool) -> None:
    heads, kv_heads, size = 6, 2, 32
    query, key, value = (torch.randn(2 * count * size)[::2] for count in (heads, kv_heads, kv_heads))
    cache = [torch.full((1, kv_heads, capacity, size), float("nan")) for _ in range(2)]
    for part in cache:
        part[:, :, :position] = torch.randn(1, kv_heads, position, size)
    angles = torch.randn(capacity, size // 2)
    turns = torch.stack((angles.cos(), angles.sin()), dim=-1)
    rotation = Rotation(turns[..., 0], turns[..., 1]) if rotates else None
    scale = 1 / math.sqrt(size)
    keys, values = (part[0, :, : position + 1].double() for part in cache)
    keys[:, position] = turned(key.reshape(kv_heads, size).double(), angles[position] * rotates)
    values[:, position] = value.reshape(kv_heads, size).double()
    attended = decode_attention(
        query, key, value, *cache, torch.tensor([position]), rotation, scale=scale, window=window, softcap=softcap
    )
    queries = turned(query.reshape(heads, size).double(), angles[position] * rotates)
    scores = torch.einsum("hd,hld->hl", queries, keys.repeat_interleave(heads // kv_heads, dim=0)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if window:
        scores[:, : max(0, position + 1 - window)] = -torch.inf
    weights = functional.softmax(scores, dim=-1)
    expected = torch.einsum("hl,hld->hd", weights, values.repeat_interleave(heads // kv_heads, dim=0))
    assert_close(attended, expected.flatten())
    assert_close(cache[0][0, :, position], keys[:, position])
    assert torch.equal(cache[1][0, :, position], value.reshape(kv_heads, size))
    assert bool(cache[0][0, :, position + 1 :].isnan().all())


@pytest.mark.parametrize(("position", "turns"), [(-3, 40), (50, 40), (1 << 32, 40), (30, 20)])
def test_a_position_that_is_not_there_writes_nothing(position: int, turns: int) -> None:
    query, key, value = torch.randn(6 * 32), torch.randn(2 * 32), torch.randn(2 * 32)
    memory = torch.zeros(4, 1, 2, 40, 32)
    rotation = Rotation(torch.ones(turns, 16), torch.ones(turns, 16))
    attended = decode_attention(
        query, key, value, *memory[1:3], torch.tensor([position]), rotation, scale=1.0, window=0, softcap=0.0
    )
    assert bool(attended.isnan().all())
    assert not memory.any()


@pytest.mark.parametrize("head_size", [32, 24])
def test_the_operator_attends_with_the_kernel_as_without(head_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 24 have no kernel."""
    attributes = {"num_heads": 6, "kv_num_heads": 2, "do_rotary": 1}
    inputs = [ir.val(name) for name in ("query", "key", "value", "past_key", "past_value")]
    node = ir.node("GroupQueryAttention", inputs, attributes, num_outputs=3, domain="com.microsoft")
    ir.Graph(inputs, node.outputs, nodes=[node])  # whose inputs are caches that the caller wants written
    attend = OPERATORS[node.domain, node.op_type].bind(node, Placement(torch.get_default_device(), torch.float32))
    rows = [torch.randn(1, 1, heads * head_size) for heads in (6, 2, 2)]
    cached, angles = torch.randn(2, 1, 2, 40, head_size), torch.randn(40, head_size // 2)
    found = []
    for has_kernels in (True, False):
        monkeypatch.setattr(attention, "is_for_triton", lambda *_tensors, answer=has_kernels: answer)
        last, length = torch.tensor([7]), torch.tensor([8])
        found.append(attend(*rows, *cached.clone(), last, length, angles.cos(), angles.sin()))
    for with_kernel, without in zip(*found, strict=True):
        assert_close(with_kernel, without.double())


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has one stream")
def test_attention_on_two_streams_at_a_time() -> None:
    streams = [torch.cuda.Stream() for _ in range(2)]
    query, key, value, last = torch.randn(8 * 128), torch.randn(8 * 128), torch.randn(8 * 128), torch.tensor([4095])
    caches = [torch.randn(2, 1, 8, 4096, 128) for _ in streams]
    torch.cuda.synchronize()

    def attended(cache: torch.Tensor) -> torch.Tensor:
        return decode_attention(query, key, value, *cache, last, None, scale=0.1, window=0, softcap=0.0)

    expected = [attended(cache) for cache in caches]
    torch.cuda.synchronize()
    for _ in range(200):
        results = []
        for stream, cache in zip(streams, caches, strict=True):
            with torch.cuda.stream(stream):
                results.append(attended(cache))
        torch.cuda.synchronize()
        assert all(map(torch.equal, results, expected))


def turned(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """The halves of [H, D] turned by angles [D / 2]."""
    first, second = heads.chunk(2, dim=-1)
    cosine, sine = angles.double().cos(), angles.double().sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


@pytest.mark.skipif(INTERPRETED, reason="only on a GPU do kernels take the place of torch")
def test_kernels_leave_gradients_to_torch() -> None:
    node = ir.node("SkipSimplifiedLayerNormalization", [], num_outputs=4, domain="com.microsoft")
    norm = OPERATORS[node.domain, node.op_type].bind(node, Placement(torch.device("cuda"), torch.float32))
    skip = torch.randn(1, 1, CHANNELS, requires_grad=True)
    normed, *_ = norm(torch.randn(1, 1, CHANNELS), skip, torch.ones(CHANNELS))
    (gradient,) = torch.autograd.grad(normed.square().sum(), skip)
    assert bool((gradient != 0).any())
