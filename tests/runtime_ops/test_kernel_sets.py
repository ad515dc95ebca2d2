"""Every set of kernels, compiled into tests/runtime_ops/kernel_check.cc, against sums in double."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CROSS_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"


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


@pytest.mark.skipif(
    shutil.which(CROSS_COMPILER) is None or shutil.which(EMULATOR) is None,
    reason="needs Debian's packages g++-aarch64-linux-gnu and qemu-user",
)
def test_sets_of_aarch64(tmp_path: Path) -> None:
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    check = build(tmp_path, *system, f"-DCMAKE_CXX_COMPILER={CROSS_COMPILER}", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    done = run(EMULATOR, "-cpu", "max", check, "neon", "neon_dotprod")
    assert done.returncode == 0, done.stdout
    without_dotprod = run(EMULATOR, "-cpu", "cortex-a72", check, "neon_dotprod")
    assert "not supported" in without_dotprod.stdout
    assert without_dotprod.returncode == 1
