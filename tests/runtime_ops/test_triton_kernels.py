"""The GPU's kernels, run by Triton's interpreter.

Triton decides when it is imported whether to interpret, so they are tested in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("triton_kernels.py")


def test_kernels_agree_with_float64() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(TESTS)]
    run = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
