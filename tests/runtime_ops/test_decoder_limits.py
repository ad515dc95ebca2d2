"""What a decoder refuses, and what it forgets, on a graph of one attention."""

import numpy as np
import pytest
import torch

from sparsecc.errors import SparseccError
from sparsecc.runtime_ops.triton.decoding import open_decoder

from ..graphs import model_of

DECODER = """
decoder (int64[1, s] input_ids, int64[1, t] attention_mask, float[1, 1, p, 4] past_key, float[1, 1, p, 4] past_value)
  => (float[1, s, 4] logits, float[] one_number) {
  x = Gather (table, input_ids)
  counted = ReduceSum <keepdims = 0> (attention_mask, axis)
  last = Sub (counted, one)
  length = Shape <start = 1> (attention_mask)
  logits, keys, values = com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1>
    (x, x, x, past_key, past_value, last, length)
  one_number = ReduceSum <keepdims = 0> (logits)
}
"""
TABLE = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [np.nan] * 4], np.float32)
CONSTANTS = {"table": TABLE, "axis": np.array([1]), "one": np.array([1])}
NAN_TOKEN = 2


def decoder(capacity=8, kv_heads=1, head_size=4, text=DECODER, **options):
    shape = {"kv_heads": kv_heads, "head_size": head_size}
    return open_decoder(model_of(text, CONSTANTS), capacity, device="cpu", dtype=torch.float32, **shape, **options)


@pytest.mark.parametrize("size", [{"capacity": 0}, {"kv_heads": -1}, {"head_size": -4}])
def test_a_cache_that_holds_nothing_is_refused(size):
    with pytest.raises(SparseccError, match="holds nothing"):
        decoder(**size)


@pytest.mark.parametrize("capacity", [1 << 50, 1 << 62])
def test_a_cache_larger_than_memory_is_refused(capacity):
    with pytest.raises(SparseccError, match="does not fit the memory of cpu"):
        decoder(capacity)


def test_a_cache_that_is_not_written_in_place_is_refused():
    text = DECODER.replace("x = Gather", "key = Identity (past_key) x = Gather").replace("x, past_key", "x, key")
    with pytest.raises(SparseccError, match="past_key is no cache that attention writes in place"):
        decoder(text=text)


def test_a_sequence_of_nan_leaves_the_next_one_alone():
    used, fresh = decoder(), decoder()
    used.start([0, NAN_TOKEN, NAN_TOKEN])
    for each in (used, fresh):
        each.start([0])
    torch.testing.assert_close(used.step(1), fresh.step(1))
    assert fresh.step(1).isfinite().all()


def test_logits_of_another_rank_are_refused():
    with pytest.raises(SparseccError, match=r"one_number is \[\], logits are \[1, tokens, vocabulary\]"):
        decoder(logits_name="one_number").start([0])
