from sparsecc.quantization.block_size import block_size


def test_int4_of_a_small_model_has_smaller_blocks():
    assert block_size(4, 12_000_000) == 32  # books-16m
    assert block_size(4, 75_000_000) == 64  # books-82m
    assert (block_size(4, 1 << 25), block_size(4, (1 << 25) + 1)) == (32, 64)
    assert block_size(8, 12_000_000) == block_size(8, 75_000_000) == 64
