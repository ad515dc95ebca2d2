from pathlib import Path

import pytest

from sparsecc.analysis.study import analyze
from sparsecc.artifact import Artifact


@pytest.fixture(scope="session")
def study(dense: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a study of the trained model, on few tokens."""
    output = tmp_path_factory.mktemp("studies") / "books-16m"
    return analyze(dense.directory, output, tokens=4096, sampled_tokens=512, evaluation_tokens=768).directory
