import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from sparsecc.artifact import Artifact, open_artifact, staged_directory
from sparsecc.calibration import calibrate
from sparsecc.calibration_statistics import Statistics
from sparsecc.compilation import make_recipe, write_sparse_artifact
from sparsecc.dense_export import export
from sparsecc.text import load_tokenizer, shipped_text, token_windows

MODEL = Path(__file__).parent.parent / "models" / "books-16m"
CALIBRATION_TOKENS = 8192
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
"""Of onnxruntime and torch: threads of several workers on the same cores wait for each other in loops."""
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The trained Llama-architecture model that the repository ships."""
    return MODEL


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(str(MODEL), tmp_path_factory.mktemp("artifacts") / "dense")


@pytest.fixture(scope="session")
def statistics(dense: Artifact) -> Statistics:
    """On a quarter of the tokens that the evaluation protocol takes."""
    windows = token_windows(shipped_text("calibration"), load_tokenizer(dense.directory), tokens=CALIBRATION_TOKENS)
    return calibrate(dense, windows, threads=THREADS)


@pytest.fixture(scope="session")
def compiled(
    tmp_path_factory: pytest.TempPathFactory, dense: Artifact, statistics: Statistics
) -> Callable[[str, float], Artifact]:
    """A function from method and sparsity to a compiled books-16m, each made once."""
    made: dict[tuple[str, float], Artifact] = {}
    folder = tmp_path_factory.mktemp("compiled")

    def artifact(method: str, sparsity: float) -> Artifact:
        key = (method, sparsity)
        if key not in made:
            target = folder / f"{method}-{sparsity}"
            with staged_directory(target, overwrite=False) as staging:
                write_sparse_artifact(dense, make_recipe(dense, statistics, method, sparsity), staging)
            made[key] = open_artifact(target)
        return made[key]

    return artifact


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium is installed, so no page is looked at; `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()
