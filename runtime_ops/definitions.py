"""The sparse operators as standard ONNX, in the domain ``ai.sparsecc`` version 1.

Every function here is shipped inside each compiled model as a model-local function, so that the model runs wherever
standard ONNX runs. The C++ kernels of :mod:`sparsecc.runtime_ops` replace the functions where their library is
registered; these bodies are the specification that the kernels are tested against, but for what an operator leaves
undefined: there a body and a kernel may differ.
"""

import onnx
import onnx_ir as ir
from onnxscript import INT64, script
from onnxscript import opset22 as op
from onnxscript.onnx_types import FLOAT
from onnxscript.values import Opset

from sparsecc.operators import DOMAIN, VERSION

OPSET = Opset(DOMAIN, VERSION)


@script(OPSET, default_opset=op)
def Threshold(X: FLOAT[...], T: FLOAT[...], max_sparse_rows: int = 0) -> FLOAT[...]:
    """Zero the entries of a hidden state that are too small to matter (TEAL, arXiv 2408.14690, equation 3).

    Y = X where abs(X) >= T, else 0. X is [..., K]; T is [1], or [K] for one threshold per input channel. NaN is not
    greater than any threshold, so it becomes 0. When X has more rows than ``max_sparse_rows`` (and that is not 0), X
    passes through untouched: a prompt runs dense while decoding runs sparse.

    A T of any other shape is undefined: this body broadcasts it, the kernels refuse it.
    """
    limit = op.Constant(value_int=max_sparse_rows)
    rows = op.ReduceProd(op.Shape(X, start=0, end=-1), keepdims=0)
    is_dense = op.And(op.Greater(limit, op.Constant(value_int=0)), op.Greater(rows, limit))
    kept = op.Or(op.GreaterOrEqual(op.Abs(X), T), is_dense)
    return op.Where(kept, X, op.CastLike(op.Constant(value_float=0.0), X))


@script(OPSET, default_opset=op)
def KeepLargest(X: FLOAT[...], k: int, max_sparse_rows: int = 0) -> FLOAT[...]:
    """Zero all but the k largest entries of every row of a hidden state (LaRoSA, arXiv 2507.01299).

    Y = X where abs(X) is among the k largest of its row, else 0; all of a row that has no more than k. X is [..., K].
    Of equal magnitudes those of the first channels are kept. NaN counts as 0 and becomes 0. When X has more rows than
    ``max_sparse_rows`` (and that is not 0), X passes through untouched.

    A negative k is undefined: this body takes it for 0, the kernels refuse it.
    """
    limit = op.Constant(value_int=max_sparse_rows)
    rows = op.ReduceProd(op.Shape(X, start=0, end=-1), keepdims=0)
    is_dense = op.And(op.Greater(limit, op.Constant(value_int=0)), op.Greater(rows, limit))
    zero = op.CastLike(op.Constant(value_float=0.0), X)
    magnitudes = op.Where(op.IsNaN(X), zero, op.Abs(X))
    kept = op.Constant(value_int=k)
    searched = op.Min(op.Max(kept, op.Constant(value_int=1)), op.Shape(X, start=-1))
    largest, _ = op.TopK(magnitudes, searched, axis=-1)
    smallest_kept = op.ReduceMin(largest, op.Constant(value_ints=[-1]))
    is_larger = op.Greater(magnitudes, smallest_kept)
    is_tie = op.Cast(op.Equal(magnitudes, smallest_kept), to=onnx.TensorProto.INT64)
    larger = op.ReduceSum(op.Cast(is_larger, to=onnx.TensorProto.INT64), op.Constant(value_ints=[-1]))
    ties_so_far = op.CumSum(is_tie, op.Constant(value_int=-1))
    is_kept_tie = op.And(op.Cast(is_tie, to=onnx.TensorProto.BOOL), op.LessOrEqual(ties_so_far, op.Sub(kept, larger)))
    is_kept = op.And(op.Or(is_larger, is_kept_tie), op.Greater(magnitudes, zero))
    return op.Where(op.Or(is_kept, is_dense), X, zero)


@script(OPSET, default_opset=op)
def GatherActive(Y: FLOAT[...]) -> tuple[FLOAT[...], INT64[...]]:
    """Select the input channels that are non-zero in any row.

    Y is [..., K]. Returns values [..., A] and indices [A] (int64, ascending), A being the number of active channels.
    NaN counts as active.
    """
    is_active = op.Cast(op.Not(op.Equal(Y, op.CastLike(op.Constant(value_float=0.0), Y))), to=onnx.TensorProto.INT64)
    by_channel = op.ReduceMax(op.Flatten(is_active, axis=-1), op.Constant(value_ints=[0]), keepdims=0)
    in_any_row = op.Greater(by_channel, op.Constant(value_int=0))
    indices = op.Squeeze(op.NonZero(in_any_row), op.Constant(value_ints=[0]))
    values = op.Gather(Y, indices, axis=-1)
    return values, indices


@script(OPSET, default_opset=op)
def SparseMatMul(values: FLOAT[...], indices: INT64[...], W: FLOAT[...], bias: FLOAT[...]) -> FLOAT[...]:
    """Multiply the active channels by their weight rows: values @ W[indices] + bias.

    values is [..., A], indices [A], W [K, N] in float32 or float16, bias [N] and optional; the product is [..., N],
    computed in float32. Only A of W's K rows are read. Gemm is used because its C is optional as well, so one body
    serves nodes with and without a bias.

    An index below 0 or from K on is undefined: this body counts it from the end where it can, the kernels refuse it.
    """
    rows = op.Cast(op.Gather(W, indices, axis=0), to=onnx.TensorProto.FLOAT)
    product = op.Gemm(op.Flatten(values, axis=-1), rows, bias)
    shape = op.Concat(op.Shape(values, start=0, end=-1), op.Shape(W, start=1), axis=0)
    return op.Reshape(product, shape, allowzero=1)


@script(OPSET, default_opset=op)
def SparseMatMulNBits(
    values: FLOAT[...],
    indices: INT64[...],
    Wq: FLOAT[...],
    scales: FLOAT[...],
    bias: FLOAT[...],
    block_size: int = 32,
) -> FLOAT[...]:
    """Multiply the active channels by their quantized weight rows: values @ dequantized(Wq)[indices] + bias.

    values is [..., A], indices [A], Wq [K, N] in int4 or int8, scales [K, ceil(N / block_size)] in float16, bias [N]
    and optional; the product is [..., N], computed in float32. Each run of ``block_size`` weights of a row has one
    scale, of either sign, and no zero point: w[k, n] = Wq[k, n] * scales[k, n // block_size]. So what a row needs lies
    in that row, and a row that is not active is never read.

    This body dequantizes all of Wq first, because onnxruntime gathers no int4. An index below 0 or from K on is
    undefined, as for SparseMatMul.
    """
    weight = op.DequantizeLinear(Wq, op.Cast(scales, to=onnx.TensorProto.FLOAT), axis=1, block_size=block_size)
    product = op.Gemm(op.Flatten(values, axis=-1), op.Gather(weight, indices, axis=0), bias)
    shape = op.Concat(op.Shape(values, start=0, end=-1), op.Shape(weight, start=1), axis=0)
    return op.Reshape(product, shape, allowzero=1)


@script(OPSET, default_opset=op)
def SparseLinear(X: FLOAT[...], T: FLOAT[...], W: FLOAT[...], bias: FLOAT[...], max_sparse_rows: int = 0) -> FLOAT[...]:
    """Threshold, GatherActive and SparseMatMul in one: X is [..., K], T [1] or [K], the product [..., N]."""
    values, indices = GatherActive(Threshold(X, T, max_sparse_rows=max_sparse_rows))
    return SparseMatMul(values, indices, W, bias)


@script(OPSET, default_opset=op)
def SparseLinearNBits(
    X: FLOAT[...],
    T: FLOAT[...],
    Wq: FLOAT[...],
    scales: FLOAT[...],
    bias: FLOAT[...],
    max_sparse_rows: int = 0,
    block_size: int = 32,
) -> FLOAT[...]:
    """Threshold, GatherActive and SparseMatMulNBits in one: X is [..., K], T [1] or [K], the product [..., N].

    SparseMatMulNBits is written out, because onnxruntime learns that Wq may be int4 only from a standard operator.
    """
    values, indices = GatherActive(Threshold(X, T, max_sparse_rows=max_sparse_rows))
    weight = op.DequantizeLinear(Wq, op.Cast(scales, to=onnx.TensorProto.FLOAT), axis=1, block_size=block_size)
    product = op.Gemm(op.Flatten(values, axis=-1), op.Gather(weight, indices, axis=0), bias)
    shape = op.Concat(op.Shape(values, start=0, end=-1), op.Shape(weight, start=1), axis=0)
    return op.Reshape(product, shape, allowzero=1)


@script(OPSET, default_opset=op)
def GatherMatMul(X: FLOAT[...], indices: INT64[...], W: FLOAT[...]) -> FLOAT[...]:
    """Compute chosen output channels only: X @ transpose(W[indices]).

    X is [..., K], indices [A], W [N, K] in float32 or float16: it is stored transposed, so that an output channel is
    one contiguous row. The product is [..., A], computed in float32. Only A of W's N rows are read.

    An index below 0 or from N on is undefined, as for SparseMatMul.
    """
    rows = op.Cast(op.Gather(W, indices, axis=0), to=onnx.TensorProto.FLOAT)
    product = op.Gemm(op.Flatten(X, axis=-1), rows, transB=1)
    shape = op.Concat(op.Shape(X, start=0, end=-1), op.Shape(indices), axis=0)
    return op.Reshape(product, shape, allowzero=1)


@script(OPSET, default_opset=op)
def GatherMatMulNBits(
    X: FLOAT[...], indices: INT64[...], Wq: FLOAT[...], scales: FLOAT[...], block_size: int = 32
) -> FLOAT[...]:
    """Compute chosen output channels only: X @ transpose(dequantized(Wq)[indices]).

    X is [..., K], indices [A], Wq [N, K] in int4 or int8, scales [N, ceil(K / block_size)] in float16; the product is
    [..., A], computed in float32. w[n, k] = Wq[n, k] * scales[n, k // block_size], so an output channel is one row.

    This body dequantizes all of Wq first, as that of SparseMatMulNBits does.
    """
    weight = op.DequantizeLinear(Wq, op.Cast(scales, to=onnx.TensorProto.FLOAT), axis=1, block_size=block_size)
    product = op.Gemm(op.Flatten(X, axis=-1), op.Gather(weight, indices, axis=0), transB=1)
    shape = op.Concat(op.Shape(X, start=0, end=-1), op.Shape(indices), axis=0)
    return op.Reshape(product, shape, allowzero=1)


@script(OPSET, default_opset=op)
def SwiGLU(X: FLOAT[...]) -> FLOAT[...]:
    """The activation of a gated feed-forward network (arXiv 2002.05202, equation 6): gate * sigmoid(gate) * up.

    X is [..., 2 N]: the gate is the first half of the channels and up the second. The product is [..., N].

    An odd number of channels is undefined: this body fails or broadcasts, the kernels refuse it.
    """
    gate, up = op.Split(X, axis=-1, num_outputs=2)
    return op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)


def model_local_functions() -> list[ir.Function]:
    """The operators as functions that can be added to a model."""
    selecting = (Threshold, KeepLargest, GatherActive)
    multiplying = (SparseMatMul, SparseMatMulNBits, SparseLinear, SparseLinearNBits, GatherMatMul, GatherMatMulNBits)
    return [ir.from_proto(function.to_function_proto()) for function in (*selecting, *multiplying, SwiGLU)]
