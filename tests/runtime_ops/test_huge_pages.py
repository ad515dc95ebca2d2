import re
from pathlib import Path

import numpy as np
import pytest

from sparsecc import open_session, ops_library_path
from sparsecc.model_file import save_model

from ..graphs import model_of, random_arrays

TEXT = """
product (float[1, 1024] x) => (float[1, 1024] y) {
  y = ai.sparsecc.SparseLinear(x, threshold, weights)
}
"""
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ (?:\S+ ){4}\s*(.*)")


def kernel_flags(file: Path) -> set[str]:
    """What Linux notes of the memory maps of a file."""
    flags: set[str] = set()
    is_of_file = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := MAPPING.fullmatch(line):
            is_of_file = mapping[1] == str(file)
        elif is_of_file and line.startswith("VmFlags:"):
            flags |= set(line.split()[1:])
    return flags


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="only Linux can be asked for huge pages"
)
def test_mapped_weights_are_wanted_in_huge_pages_once_they_are_used(tmp_path: Path):
    arrays = random_arrays({"threshold": (1,), "weights": (1024, 1024), "x": (1, 1024)})
    x, weights = arrays.pop("x"), arrays["weights"]
    arrays["threshold"][:] = 0
    save_model(model_of(TEXT, arrays), tmp_path)
    session = open_session(tmp_path / "model.onnx", ops_library=ops_library_path())
    assert "hg" not in kernel_flags(tmp_path / "model.onnx.data")
    (y,) = session.run(["y"], {"x": x})
    np.testing.assert_allclose(y, x @ weights, rtol=1e-3, atol=1e-3)
    flags = kernel_flags(tmp_path / "model.onnx.data")
    assert "hg" in flags
    assert "rr" not in flags, "pages that are read at random are the first to go when memory is short"
