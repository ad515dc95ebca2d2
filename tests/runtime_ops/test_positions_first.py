"""Nodes that say where tokens are come before all others."""

from sparsecc.runtime_ops.triton.positions_first import PositionsFirstPass

from ..graphs import model_of

DECODER = """
decoder (float[1, 1, 8] x, int64[1, t] mask, float[1, 1, p, 4] key, float[1, 1, p, 4] value) => (float[1, 1, 8] y) {
  queries = Mul (x, two)
  keys = Slice (x, zero, four, last)
  summed = ReduceSum <keepdims = 0> (mask, one)
  position = Sub (summed, one)
  last_position = Cast <to = 6> (position)
  y, keys_now, values_now = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1>
    (queries, keys, keys, key, value, last_position, total)
}
"""
CONSTANTS = {"two": (8,), "zero": (1,), "four": (1,), "last": (1,), "one": (1,), "total": (1,)}


def test_positions_come_first_and_keep_their_order():
    model = model_of(DECODER, CONSTANTS)
    assert PositionsFirstPass()(model).modified
    moved = ["ReduceSum", "Sub", "Cast"]
    assert [node.op_type for node in model.graph] == [*moved, "Mul", "Slice", "GroupQueryAttention"]
    assert not PositionsFirstPass()(model).modified


def test_a_graph_without_attention_stays():
    model = model_of("g (float[2, 3] x) => (float[2, 3] y) { y = Neg (x) }")
    assert not PositionsFirstPass()(model).modified
