"""A short run of the fuzzer, in a process of its own so that a crash is an error and not the end of the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("fuzz_ops.py")
CASES = 400


@pytest.mark.parametrize("kernels", ["fastest", "portable"])
def test_no_random_or_hostile_model_crashes_an_operator(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECC_KERNELS", kernels)
    seed = {"fastest": "0", "portable": str(CASES)}[kernels]
    process = subprocess.run(
        [sys.executable, FUZZER, "--cases", str(CASES), "--seed", seed], check=False, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr[-3000:]
    assert "computed" in process.stdout
    assert "refused" in process.stdout
