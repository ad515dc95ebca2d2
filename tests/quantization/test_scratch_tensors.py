from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsecc.quantization.scratch_tensors import ScratchTensors


def test_tensors_are_read_back_from_the_file_they_share(tmp_path: Path):
    tensors = ScratchTensors(tmp_path)
    rng = np.random.default_rng(0)
    integers = rng.integers(-8, 8, (5, 6)).astype(np.int8)
    odd = rng.integers(-8, 8, (3, 3)).astype(np.int8)
    scales = rng.standard_normal((5, 1)).astype(np.float16)
    int4 = tensors.add("a", integers, ir.DataType.INT4)
    packed_odd = tensors.add("b", odd, ir.DataType.INT4)
    int8 = tensors.add("c", integers, ir.DataType.INT8)
    half = tensors.add("d", scales, ir.DataType.FLOAT16)
    np.testing.assert_array_equal(int4.numpy().astype(np.int8), integers)
    np.testing.assert_array_equal(packed_odd.numpy().astype(np.int8), odd)
    np.testing.assert_array_equal(int8.numpy(), integers)
    np.testing.assert_array_equal(half.numpy(), scales)
    assert [tensor.nbytes for tensor in (int4, packed_odd, int8, half)] == [15, 5, 30, 10]
    assert {tensor.path for tensor in (int4, packed_odd, int8, half)} == {str(tmp_path / "quantized.data")}
