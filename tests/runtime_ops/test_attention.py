"""What attention does with the cache that a file or the caller gives it."""

import numpy as np
import pytest
import torch

from sparsecc.errors import SparseccError
from sparsecc.runtime_ops.triton.executor import GraphExecutor

from ..graphs import model_of

CACHE = ", float[b, 1, p, 4] key, float[b, 1, p, 4] value"
ATTENTION = """
attention (float[b, s, 4] x{given}) => (float[b, s, 4] y, float[b, 1, p, 4] before) {{
  {first}
  y, keys_now, values_now = com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1>
    (x, x, x, {cache}, last, total)
  before = Identity (key)
}}
"""
LENGTHS = {"last": np.array([2], np.int32), "total": np.array([3], np.int32)}
CONSTANT = {"key": (1, 1, 8, 4), "value": (1, 1, 8, 4)}


def attention(given="", first="", cache="key, value", constants=None):
    return model_of(ATTENTION.format(given=given, first=first, cache=cache), LENGTHS | (constants or {}))


def token(batch=1):
    return torch.ones(batch, 1, 4)


def test_a_constant_cache_is_not_written_to():
    executor = GraphExecutor(attention(constants=CONSTANT))
    first, second = (executor.run({"x": token()}, ["y", "before", "keys_now"]) for _ in range(2))
    assert not torch.equal(first["keys_now"], first["before"])
    for name, values in first.items():
        torch.testing.assert_close(second[name], values)


def test_a_cache_that_the_file_maps_is_not_written_to(tmp_path):
    import onnx_ir as ir

    ir.save(attention(constants=CONSTANT), tmp_path / "model.onnx", external_data="data", size_threshold_bytes=0)
    before = (tmp_path / "data").read_bytes()
    GraphExecutor(ir.load(tmp_path / "model.onnx")).run({"x": token()}, ["y"])
    assert (tmp_path / "data").read_bytes() == before


def test_a_computed_cache_keeps_what_others_read():
    model = attention(CACHE, "other_key = Identity (key)", "other_key, value")
    cache = {"key": torch.randn(1, 1, 8, 4), "value": torch.randn(1, 1, 8, 4)}
    copies = {name: values.clone() for name, values in cache.items()}
    before = GraphExecutor(model).run({"x": token(), **cache}, ["y", "before"])["before"]
    torch.testing.assert_close(before, copies["key"])
    torch.testing.assert_close(cache["value"], copies["value"])


def test_the_callers_cache_is_written_in_place():
    cache = {"key": torch.zeros(1, 1, 8, 4), "value": torch.zeros(1, 1, 8, 4)}
    GraphExecutor(attention(CACHE)).run({"x": token(), **cache}, ["y"])
    assert cache["key"][0, 0].any(dim=1).tolist() == [place == 2 for place in range(8)]


def test_a_batch_is_not_written_in_place():
    cache = {"key": torch.zeros(2, 1, 8, 4), "value": torch.zeros(2, 1, 8, 4)}
    with pytest.raises(SparseccError, match="several sequences have caches longer than what they hold"):
        GraphExecutor(attention(CACHE)).run({"x": token(2), **cache}, ["y"])


def test_attention_without_a_cache_is_refused():
    with pytest.raises(SparseccError, match="GroupQueryAttention of output 'y' has no key-value cache"):
        GraphExecutor(attention(CACHE, cache=", "))
