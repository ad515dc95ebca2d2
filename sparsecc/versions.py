"""The versions of what a compiled model depends on."""

from importlib.metadata import version

_LIBRARIES = ("sparsecc", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-genai", "torch", "transformers")


def library_versions() -> dict[str, str]:
    """The installed version of each library that takes part in compiling, by its name."""
    return {name: version(name) for name in _LIBRARIES}
