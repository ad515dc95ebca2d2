"""Models of one operator, and the three ways to run them: the library, stock onnxruntime, the reference evaluator."""

import functools
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper
from onnx.reference import ReferenceEvaluator

import sparsecc
from sparsecc.runtime_ops import definitions

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
INPUTS = {
    "Threshold": {"X": FLOAT, "T": FLOAT},
    "GatherActive": {"Y": FLOAT},
    "SparseMatMul": {"values": FLOAT, "indices": INT64, "W": FLOAT, "bias": FLOAT},
}
OUTPUTS = {
    "Threshold": {"Y": FLOAT},
    "GatherActive": {"values": FLOAT, "indices": INT64},
    "SparseMatMul": {"product": FLOAT},
}
LIBRARY, STOCK, REFERENCE = "library", "stock onnxruntime", "reference evaluator"

Arrays = dict[str, np.ndarray]


@functools.cache
def model(op: str, inputs: tuple[str, ...], **attributes: int) -> onnx.ModelProto:
    """A model of one node, whose shapes are all left open. An optional input that is not named is an empty name."""
    node = helper.make_node(
        op,
        [name if name in inputs else "" for name in INPUTS[op]],
        list(OUTPUTS[op]),
        domain=definitions.DOMAIN,
    )
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(name, INPUTS[op][name], None) for name in inputs],
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in OUTPUTS[op].items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 22), helper.make_opsetid(definitions.DOMAIN, definitions.VERSION)],
        functions=[function.to_function_proto() for function in (getattr(definitions, op),)],
        ir_version=10,
    )


def session(model_bytes: bytes, threads: int = 2, library: bool = True) -> ort.InferenceSession:
    """A session on that many threads, with or without the library of operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # each tensor on its own, so that a sanitizer sees where it ends
    if library:
        options.register_custom_ops_library(str(sparsecc.ops_library_path()))
    return ort.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])


cached_session = functools.cache(session)


def run(op: str, feeds: Arrays, how: str = LIBRARY, threads: int = 2, **attributes: int) -> list[np.ndarray]:
    """Run the operator on these inputs, one of the three ways."""
    if op == "Threshold":
        attributes = {"max_sparse_rows": 0} | attributes  # the reference evaluator knows no defaults
    one_node = model(op, tuple(feeds), **attributes)
    if how == REFERENCE:
        outputs = ReferenceEvaluator(one_node).run(None, feeds)
    else:
        outputs = cached_session(one_node.SerializeToString(), threads, how == LIBRARY).run(None, feeds)
    assert isinstance(outputs, Sequence)
    return [np.asarray(output) for output in outputs]
