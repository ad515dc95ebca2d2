"""sparsecc: compile a language model so that decoding never reads the weight rows it does not need.

With numpy and onnxruntime alone, :func:`ops_library_path` and :func:`open_session` run a compiled model. Compiling
needs ``pip install 'sparsecc[compile]'``.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from sparsecc.errors import SparseccError
from sparsecc.session import open_session, ops_library_path

# Torch's threads otherwise spin where they wait for one another, and beside another busy process calibration by
# gradients takes ten times as long instead of twice. OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from sparsecc.analysis.study import analyze
    from sparsecc.artifact import open_artifact
    from sparsecc.benchmark import benchmark
    from sparsecc.compilation import calibrate_to_file
    from sparsecc.compilation import compile_model as compile
    from sparsecc.dense_export import export
    from sparsecc.evaluation import evaluate
    from sparsecc.generation import generate
    from sparsecc.inspection import inspect
    from sparsecc.search import search

__all__ = [
    "SparseccError",
    "analyze",
    "benchmark",
    "calibrate_to_file",
    "compile",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "open_artifact",
    "open_session",
    "ops_library_path",
    "search",
]

_COMPILER = {
    "analyze": ("sparsecc.analysis.study", "analyze"),
    "benchmark": ("sparsecc.benchmark", "benchmark"),
    "calibrate_to_file": ("sparsecc.compilation", "calibrate_to_file"),
    "compile": ("sparsecc.compilation", "compile_model"),
    "evaluate": ("sparsecc.evaluation", "evaluate"),
    "export": ("sparsecc.dense_export", "export"),
    "generate": ("sparsecc.generation", "generate"),
    "inspect": ("sparsecc.inspection", "inspect"),
    "open_artifact": ("sparsecc.artifact", "open_artifact"),
    "search": ("sparsecc.search", "search"),
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Import a part of the compiler only when it is asked for: it brings onnx, torch and transformers."""
    if name not in _COMPILER:
        raise AttributeError(f"module 'sparsecc' has no attribute {name!r}")
    module, function = _COMPILER[name]
    # Importing sparsecc.benchmark would leave the module in the function's place.
    globals()[name] = getattr(importlib.import_module(module), function)
    return globals()[name]
