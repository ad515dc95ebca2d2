"""The passes that store the head and the embedding: QuantizeVocabularyPass and HalveVocabularyPass."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.passes import (
    CleanUpPass,
    HalveVocabularyPass,
    PackedTensors,
    QuantizeVocabularyPass,
    ShipFunctionsPass,
)
from sparsecc.quantization.block_size import VOCABULARY_BLOCK_SIZE
from sparsecc.quantization.packed_matrix import packed_blocks
from sparsecc.quantization.round_to_nearest import round_to_nearest

from ..graphs import Array, model_of, operators, random_arrays, run, serialized

HEADER = "decoder (int64[b, s] input_ids) => (float[b, s, 12] logits) {"
UP_AND_DOWN = """
  ["up/MatMul"] u = MatMul(e, w_up)
  h = Relu(u)
  ["down/MatMul"] d = MatMul(h, w_down)
  r = Add(e, d)
"""
TIED = HEADER + ' t = Transpose <perm=[1, 0]> (head) ["embed/Gather"] e = Gather(t, input_ids)' + UP_AND_DOWN
UNTIED = HEADER + ' ["embed/Gather"] e = Gather(table, input_ids)' + UP_AND_DOWN
HEAD = ' ["lm_head/MatMul"] logits = MatMul(r, head) }'
SHAPES = {"head": (64, 12), "w_up": (64, 32), "w_down": (32, 64)}


@pytest.fixture(params=["tied", "untied", "a copy"])
def decoder(request: pytest.FixtureRequest) -> tuple[ir.Model, dict[str, Array], str]:
    arrays = random_arrays(SHAPES)
    if request.param == "tied":
        return model_of(TIED + HEAD, arrays), {**arrays, "table": arrays["head"].T}, request.param
    table = arrays["head"].T.copy() if request.param == "a copy" else random_arrays({"table": (12, 64)}, 7)["table"]
    arrays["table"] = table
    return model_of(UNTIED + HEAD, arrays), arrays, request.param


def pack(bits: int) -> Callable[[str, Array], PackedTensors]:
    def packed(name: str, matrix: Array) -> PackedTensors:
        weight = round_to_nearest(matrix, bits, VOCABULARY_BLOCK_SIZE)
        scales = weight.scales.astype(np.float32)
        return PackedTensors(
            ir.tensor(packed_blocks(weight), name=f"{name}/packed"),
            ir.tensor(scales, name=f"{name}/scales"),
            bits,
            VOCABULARY_BLOCK_SIZE,
        )

    return packed


def logits(ids: np.ndarray, arrays: dict[str, Array]) -> np.ndarray:
    embedded = arrays["table"].astype(np.float64)[ids]
    down = np.maximum(embedded @ arrays["w_up"], 0) @ arrays["w_down"]
    return (embedded + down) @ arrays["head"].astype(np.float64)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized(decoder: tuple[ir.Model, dict[str, Array], str], bits: int):
    model, arrays, kind = decoder
    assert QuantizeVocabularyPass(pack(bits), VOCABULARY_BLOCK_SIZE)(model).modified
    CleanUpPass()(model)
    assert {"MatMulNBits", "GatherBlockQuantized"} < set(operators(model))
    assert not {"head", "table"} & set(model.graph.initializers)
    packed = [name for name in model.graph.initializers if name.endswith("/packed")]
    assert len(packed) == (2 if kind == "untied" else 1)
    matrices = {"table": arrays["table"], "head": np.ascontiguousarray(arrays["head"].T)}
    stored = {
        name: round_to_nearest(matrix, bits, VOCABULARY_BLOCK_SIZE).dequantized() for name, matrix in matrices.items()
    }
    stored["head"] = stored["head"].T
    ids = np.array([[3, 0, 11], [5, 5, 1]])
    expected = logits(ids, {**arrays, **stored})
    (actual,) = run(model, input_ids=ids)
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()  # MatMulNBits rounds its input to int8


def test_halved(decoder: tuple[ir.Model, dict[str, Array], str]):
    model, arrays, _ = decoder
    assert HalveVocabularyPass()(model).modified
    ShipFunctionsPass()(model)
    CleanUpPass()(model)
    assert not {"head", "table"} & set(model.graph.initializers)
    halves = {name: arrays[name].astype(np.float16) for name in ("table", "head")}
    ids = np.array([[3, 0, 11], [5, 5, 1]])
    np.testing.assert_allclose(run(model, input_ids=ids)[0], logits(ids, {**arrays, **halves}), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("make", [lambda: QuantizeVocabularyPass(pack(8), VOCABULARY_BLOCK_SIZE), HalveVocabularyPass])
def test_a_second_call_does_nothing(
    decoder: tuple[ir.Model, dict[str, Array], str], make: Callable[[], ir.passes.InPlacePass]
):
    model, _, _ = decoder
    make()(model)
    once = serialized(model)
    assert not make()(model).modified
    assert serialized(model) == once


@pytest.mark.parametrize("make", [lambda: QuantizeVocabularyPass(pack(8), VOCABULARY_BLOCK_SIZE), HalveVocabularyPass])
def test_work_not_done_would_be_caught(
    decoder: tuple[ir.Model, dict[str, Array], str], make: Callable[[], ir.passes.InPlacePass]
):
    with pytest.raises(ir.passes.PostconditionError):
        make().ensures(decoder[0])


@pytest.mark.parametrize("make", [lambda: QuantizeVocabularyPass(pack(8), VOCABULARY_BLOCK_SIZE), HalveVocabularyPass])
def test_a_graph_without_vocabulary_stays_as_it_is(model: ir.Model, make: Callable[[], ir.passes.InPlacePass]):
    before = serialized(model)
    assert not make()(model).modified
    assert serialized(model) == before


def test_channels_that_are_no_whole_blocks_stay_float32():
    model = model_of(
        HEADER + " e = Gather(table, input_ids) logits = MatMul(e, head) }",
        {"table": (12, 40), "head": (40, 12)},
    )
    before = serialized(model)
    assert not QuantizeVocabularyPass(pack(8), VOCABULARY_BLOCK_SIZE)(model).modified
    assert serialized(model) == before


def test_learned_positions_are_no_embedding():
    header = "decoder (int64[b, s] position_ids, int64[b, s] input_ids) => (float[b, s, 12] logits) {"
    looked_up = " p = Gather(positions, position_ids) t = Gather(table, input_ids) e = Add(t, p)"
    arrays = random_arrays({**SHAPES, "table": (12, 64), "positions": (9, 64)})
    model = model_of(header + looked_up + UP_AND_DOWN + HEAD, arrays)
    assert QuantizeVocabularyPass(pack(8), VOCABULARY_BLOCK_SIZE)(model).modified
    gathers = [node for node in model.graph if node.op_type == "Gather"]
    assert [node.inputs[1].name for node in gathers] == ["position_ids"]
