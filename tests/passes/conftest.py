import onnx_ir as ir
import pytest

from sparsecc.artifact import Artifact
from sparsecc.model_file import load_model

from ..graphs import BLOCK_SHAPES, Array, block, random_arrays


@pytest.fixture
def dense_model(dense: Artifact) -> ir.Model:
    return load_model(dense.model_path)


@pytest.fixture
def weights() -> dict[str, Array]:
    return random_arrays(BLOCK_SHAPES)


@pytest.fixture
def model(weights: dict[str, Array]) -> ir.Model:
    """One decoder layer in standard operators."""
    return block(weights)
