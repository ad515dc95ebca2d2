"""Models of one operator, and the three ways to run them: the library, stock onnxruntime, the reference evaluator."""

import ctypes
import functools
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import sparsecc
from sparsecc.operators import DOMAIN, VERSION
from sparsecc.runtime_ops import definitions

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
INPUTS = {
    "Threshold": ("X", "T"),
    "KeepLargest": ("X",),
    "GatherActive": ("Y",),
    "SparseMatMul": ("values", "indices", "W", "bias"),
    "SparseMatMulNBits": ("values", "indices", "Wq", "scales", "bias"),
    "GatherMatMul": ("X", "indices", "W"),
    "GatherMatMulNBits": ("X", "indices", "Wq", "scales"),
    "SwiGLU": ("X",),
}
OUTPUTS = {
    "Threshold": {"Y": FLOAT},
    "KeepLargest": {"Y": FLOAT},
    "GatherActive": {"values": FLOAT, "indices": INT64},
    "SparseMatMul": {"product": FLOAT},
    "SparseMatMulNBits": {"product": FLOAT},
    "GatherMatMul": {"product": FLOAT},
    "GatherMatMulNBits": {"product": FLOAT},
    "SwiGLU": {"Y": FLOAT},
}
LIBRARY, STOCK, REFERENCE = "library", "stock onnxruntime", "reference evaluator"

Arrays = dict[str, np.ndarray]


def model(op: str, feeds: Arrays, **attributes: int) -> onnx.ModelProto:
    """A model of one node: inputs have the arrays' element types and any shape; a name without an array is empty."""
    types = tuple((name, helper.np_dtype_to_tensor_dtype(array.dtype)) for name, array in feeds.items())
    return model_of_types(op, types, **attributes)


@functools.cache
def model_of_types(op: str, types: tuple[tuple[str, int], ...], **attributes: int) -> onnx.ModelProto:
    """The same for named element types."""
    node = helper.make_node(
        op,
        [name if name in dict(types) else "" for name in INPUTS[op]],
        list(OUTPUTS[op]),
        domain=DOMAIN,
    )
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in types],
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in OUTPUTS[op].items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[function.to_function_proto() for function in (getattr(definitions, op),)],
        ir_version=10,
    )


def session(model_bytes: bytes, threads: int = 2, library: bool = True) -> ort.InferenceSession:
    """A session on that many threads, with or without the library of operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # each tensor on its own, so that a sanitizer sees where it ends
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # many sessions, few processors
    if library:
        options.register_custom_ops_library(str(sparsecc.ops_library_path()))
    return ort.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])


cached_session = functools.cache(session)


def ort_value(array: np.ndarray) -> ort.OrtValue:
    """The array as onnxruntime's own; NumPy has no int4, and ml_dtypes does not pack two of them into a byte."""
    if array.dtype != ml_dtypes.int4:
        return ort.OrtValue.ortvalue_from_numpy(array)
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), onnx.TensorProto.INT4)
    packed = numpy_helper.from_array(array).raw_data
    ctypes.memmove(value.data_ptr(), packed, len(packed))
    return value


def run(op: str, feeds: Arrays, how: str = LIBRARY, threads: int = 2, **attributes: int) -> list[np.ndarray]:
    """Run the operator on these inputs, one of the three ways."""
    if op in ("Threshold", "KeepLargest"):
        attributes = {"max_sparse_rows": 0} | attributes  # the reference evaluator knows no defaults
    one_node = model(op, feeds, **attributes)
    if how == REFERENCE:
        outputs = ReferenceEvaluator(one_node).run(None, feeds)
        assert isinstance(outputs, Sequence)
        return [np.asarray(output) for output in outputs]
    values = {name: ort_value(array) for name, array in feeds.items()}
    outputs = cached_session(one_node.SerializeToString(), threads, how == LIBRARY).run_with_ort_values(None, values)
    return [output.numpy() for output in outputs]
