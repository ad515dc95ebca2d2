"""Every set of kernels, compiled into tests/runtime_ops/kernel_check.cc, against sums in double."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(directory: Path, *options: str) -> Path:
    """Compile kernel_check in a directory, with more options for CMake."""
    for command in (
        ["cmake", "-S", ROOT, "-B", directory, *options],
        ["cmake", "--build", directory, "--target", "kernel_check", "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return directory / "kernel_check"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_sets_of_this_processor(tmp_path: Path) -> None:
    done = run(build(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "portable: " in done.stdout
