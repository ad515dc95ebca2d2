import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.quantization.block_size import VOCABULARY_BLOCK_SIZE
from sparsecc.quantization.packed_matrix import packed_blocks
from sparsecc.quantization.round_to_nearest import round_to_nearest

from ..graphs import model_of, run


@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_reads_what_was_packed(bits: int):
    rng = np.random.default_rng(bits)
    weight = round_to_nearest(rng.standard_normal((7, 128)).astype(np.float32), bits, VOCABULARY_BLOCK_SIZE)
    block_size = weight.block_size
    text = f"""
    tied (int64[1, s] ids, float[1, s, 128] x) => (
      float[1, s, {128 // block_size}, {block_size}] rows, float[1, s, 7] product) {{
      rows = com.microsoft.GatherBlockQuantized <bits={bits}, block_size={block_size}, gather_axis=0, quantize_axis=2> (
        packed, ids, deep_scales)
      product = com.microsoft.MatMulNBits <K=128, N=7, bits={bits}, block_size={block_size}> (x, packed, scales)
    }}"""
    scales = weight.scales.astype(np.float32)
    model = model_of(text, {"packed": packed_blocks(weight), "scales": scales, "deep_scales": scales[:, :, None]})
    assert isinstance(model, ir.Model)
    x, ids = rng.standard_normal((1, 4, 128)).astype(np.float32), np.array([[6, 0, 3, 3]])
    rows, product = run(model, ids=ids, x=x)
    np.testing.assert_array_equal(rows.reshape(1, 4, 128), weight.dequantized()[ids])
    np.testing.assert_allclose(product, x @ weight.dequantized().T, rtol=1e-4, atol=1e-4)
