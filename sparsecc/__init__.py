"""sparsecc: compile a language model so that decoding never reads the weight rows it does not need.

With numpy and onnxruntime alone, :func:`ops_library_path` and :func:`open_session` run a compiled model. Compiling
needs ``pip install 'sparsecc[compile]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsecc.errors import SparseccError
from sparsecc.session import open_session, ops_library_path

if TYPE_CHECKING:
    from sparsecc.compilation import compile_model as compile
    from sparsecc.export import export

__all__ = ["SparseccError", "compile", "export", "open_session", "ops_library_path"]


def __getattr__(name: str) -> Any:
    """Import the compiler only when it is asked for: it brings torch and transformers."""
    if name == "compile":
        from sparsecc.compilation import compile_model

        return compile_model
    if name == "export":
        from sparsecc.export import export

        return export
    raise AttributeError(f"module 'sparsecc' has no attribute {name!r}")
