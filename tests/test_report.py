"""The report beside a compiled model, and how it looks in a browser."""

from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from sparsecc.benchmark import Speed
from sparsecc.compilation import Measurements
from sparsecc.evaluation import Evaluation
from sparsecc.recipe import ProjectionRecipe, Recipe
from sparsecc.report import write_report

KINDS = ("q", "k", "v", "o", "gate", "up", "down")
PHONE, DESKTOP = 360, 1200


def recipe() -> Recipe:
    projections = [
        ProjectionRecipe(
            name=f"/model/layers.{layer}/{kind}",
            layer=layer,
            kind=kind,
            method="wina",
            target_sparsity=0.5,
            calibrated_sparsity=0.4 + 0.02 * layer + 0.01 * place,
            threshold=np.array([0.25, 0.5, np.inf], np.float32),
            kept=100 if kind == "o" else None,
            branch=np.eye(3, dtype=np.float32) if kind == "v" else None,
        )
        for layer in range(4)
        for place, kind in enumerate(KINDS)
    ]
    return Recipe("wina", 0.5, tuple(projections), versions={"sparsecc": "0.1.0"})


def measurements() -> Measurements:
    def speed(tokens_per_s: float, limit: float) -> Speed:
        return Speed(
            artifact=Path("model"),
            runtime="onnxruntime-genai",
            decode_tokens_per_s=tokens_per_s,
            decode_tokens_per_s_p10=0.9 * tokens_per_s,
            decode_tokens_per_s_p90=1.1 * tokens_per_s,
            prefill_tokens_per_s=1000,
            ratio=1,
            bytes_per_token=1 << 20,
            active_gb_s=1,
            floor_tokens_per_s=limit,
            model_bytes=1 << 20,
            resident_bytes=None,
        )

    def quality(perplexity: float, sparsity: float) -> Evaluation:
        return Evaluation(perplexity, sparsity, dict.fromkeys(KINDS, sparsity), 2048, 1024, bytes_per_token=1 << 20)

    return Measurements(quality(20, 0), quality(22, 0.493), speed(100, 200), speed(150, 375), 32.0)


@pytest.fixture(params=["measured", "unmeasured", "dense"])
def report(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    made = Recipe("dense", 0) if request.param == "dense" else recipe()
    write_report(made, measurements() if request.param == "measured" else None, "<b>model</b>", path)
    return path


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_browser_shows_the_report(browser: Browser, report: Path, width: int):
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    assert complaints == []
    assert page.locator("h1").inner_text().startswith("<b>model</b>, compiled with")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert len(page.pdf(format="A4")) > 5_000
    page.close()


def test_it_says_what_was_gained_and_lost(tmp_path: Path):
    write_report(recipe(), measurements(), "model", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "49.3 % of the bytes of projection weights are not read." in page
    assert "Perplexity rises by 10.0 %, from 20.00 to 22.00." in page
    assert "Decoding is 1.50 times as fast: 100.0 tokens/s dense, 150.0 sparse." in page
    assert "decodes at 40 % of the speed that reading its weights would allow" in page
    assert "Skipped rows range from 40 % (q in layer 0) to 52 % (down in layer 3)." in page


def test_it_says_what_was_done_to_each_projection(tmp_path: Path):
    write_report(recipe(), None, "model", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("<td>among the 100 largest</td>") == 4
    assert page.count("<td>magnitude ≥ 0.25 to inf, by channel</td>") == 24
    assert page.count("<td>3</td>") >= 4


def test_the_same_model_gives_the_same_page(tmp_path: Path):
    for name in ("first.html", "second.html"):
        write_report(recipe(), measurements(), "model", tmp_path / name)
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()
