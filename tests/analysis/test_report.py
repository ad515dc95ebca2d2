"""The report of a study: true to the files beside it, different for different models, and readable in a browser."""

import csv
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnxruntime
import pytest
from playwright.sync_api import Browser

from sparsecc.analysis.study import analyze
from sparsecc.analysis.wording import percent

from .decoders import GATED, RELU, random_weights, write_decoder

PHONE, DESKTOP, A4 = 360, 1200, 700
"""Pixels; paper is 210 mm less its margins."""


@pytest.fixture(scope="module")
def study_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function from a decoder and what is changed in its weights to the directory of its study, each made once."""
    made: dict[str, Path] = {}

    def study(name: str, text: str, **changed: np.ndarray) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("studies")
            decoder = write_decoder(folder / "decoder", text, {**random_weights(), **changed})
            tokens = {"tokens": 4096, "sampled_tokens": 1024, "evaluation_tokens": 768}
            made[name] = analyze(decoder.directory, folder / name, **tokens).directory
        return made[name]

    return study


@pytest.fixture
def gated(study_of: Callable[..., Path]) -> Path:
    return study_of("gated", GATED)


@pytest.fixture
def relu(study_of: Callable[..., Path]) -> Path:
    return study_of("relu", RELU)


def report_text(study: Path) -> str:
    page = (study / "report.html").read_text("utf-8")
    return " ".join(html.unescape(re.sub(r"<svg.*?</svg>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


def table_rows(study: Path, caption: str) -> list[list[str]]:
    """The cells of the table whose caption begins so."""
    page = (study / "report.html").read_text("utf-8")
    body = page[page.index(f'<table aria-label="{caption}') :]
    rows = re.findall(r"<tr>(.*?)</tr>", body[: body.index("</table>")], re.DOTALL)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def components(study: Path) -> int:
    """How many there are; each has a distribution of its own."""
    return len(json.loads((study / "study.json").read_text())["neurons"])


def activations(study: Path, component: str) -> np.ndarray:
    with h5py.File(study / "activations.h5") as file:
        return file[f"layers/0/{component}"][...]


class TestNumbersFromTheFiles:
    def test_natural_sparsity(self, gated: Path):
        header, *rows = table_rows(gated, "Activations whose magnitude is at most a bound")
        told = next(row for row in rows if row[0] == "inputs of down")[header.index("≤ 0.01")]
        assert told == f"{100 * np.mean(np.abs(activations(gated, 'down_input')) <= 0.01):.3g}"

    def test_thresholds(self, gated: Path):
        header, row = table_rows(gated, "The magnitude that 50 % of the activations do not exceed")
        told = row[header.index("inputs of gate and up")]
        assert told == f"{np.quantile(np.abs(activations(gated, 'ffn_input')), 0.5):.3g}"

    def test_hot_neurons(self, gated: Path):
        values = np.abs(activations(gated, "down_input"))
        counts = np.sort(np.sum(values > np.quantile(values, 0.5), axis=0))[::-1]
        hot = next(n for n in range(1, len(counts) + 1) if counts[:n].sum() >= 0.8 * counts.sum())
        assert (
            f"{100 * hot / len(counts):.0f} % of the neurons hold 80 % of the important inputs of down"
            in report_text(gated)
        )

    def test_how_often_neurons_are_important(self, gated: Path):
        values = np.abs(activations(gated, "down_input"))
        frequency = np.sort(np.mean(values > np.quantile(values, 0.5), axis=0))
        told = re.search(
            r"hottest tenth of the neurons is important in (\S+) % of the tokens, the coldest tenth in (\S+) %",
            report_text(gated),
        )
        assert told is not None
        assert float(told[1]) == pytest.approx(100 * frequency[-1], abs=0.5)
        assert float(told[2]) == pytest.approx(100 * frequency[0], abs=0.5)

    def test_the_worst_and_the_best_match_of_patterns(self, gated: Path):
        with h5py.File(gated / "patterns.h5") as file:
            dataset = file["layers/0/down_input"]
            active = np.unpackbits(dataset[...], axis=-1, count=dataset.attrs["neurons"])
        rates = np.mean(active[:, :1] == active[:, 1:], axis=(2, 3))
        prompt, variant = np.unravel_index(rates.argmin(), rates.shape)
        similarity = (95, 90, 85, 80, 75, 70)[variant]
        assert (
            f"The worst match is {percent(rates.min())}: prompt {prompt} and its variant that shares {similarity} % of "
            "the tokens, in layer 0."
        ) in report_text(gated)
        assert f"The best match is {percent(rates.max())}: prompt " in report_text(gated)
        header, row = table_rows(gated, "Match rate of the inputs of down by layer")
        assert float(row[header.index("70")]) == pytest.approx(100 * rates[:, -1].mean(), abs=0.05)

    def test_what_the_exported_predictor_finds(self, gated: Path):
        states, values = activations(gated, "ffn_input"), np.abs(activations(gated, "down_input"))
        with h5py.File(gated / "activations.h5") as file:
            position = file["tokens/position"][...]
        judged = (position // 1024 == 3) & (np.diff(position, prepend=-1) == 1) & (position % 1024 > 0)
        session = onnxruntime.InferenceSession(gated / "predictor-0.onnx", providers=["CPUExecutionProvider"])
        (scores,) = session.run(["layers.0.down_input"], {"ffn_input": states[judged]})
        active = (values > np.quantile(values, 0.5))[judged]
        found = np.mean(active.ravel()[np.argsort(-scores, axis=None)[: active.sum()]])
        with (gated / "prediction.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert float(row["recall"]) == pytest.approx(found, abs=1e-3)
        assert float(row["precision"]) == pytest.approx(found, abs=1e-3)
        header, told = table_rows(gated, "Recall and precision")
        assert float(told[header.index("recall")]) == pytest.approx(100 * found, abs=0.2)
        assert found > float(row["hot_recall"])


class TestClaims:
    def test_differ_where_models_differ(self, gated: Path, relu: Path):
        assert "Nothing is sparse by itself" in report_text(gated)
        zeros = np.mean(activations(relu, "down_input") == 0)
        assert f"Without anything being done, {100 * zeros:.0f} % of the inputs of down" in report_text(relu)
        assert "inputs of gate and up" not in report_text(relu)

    def test_a_layer_that_is_all_zero(self, study_of: Callable[..., Path]):
        text = report_text(study_of("zero", GATED, w_up=np.zeros_like(random_weights()["w_up"])))
        assert "100 % of the inputs of down (100 % to 100 % by layer) are exactly zero" in text
        assert "The most zeros are among the outputs of up of layer 0, 100 %" in text
        assert "None of the inputs of down is important" in text
        assert "The worst match is 100 %" in text
        assert "No predictor could be trained" in text

    def test_activations_that_are_not_finite(self, study_of: Callable[..., Path]):
        weights = random_weights()["w_up"]
        weights[:, 3] = np.nan
        text = report_text(study_of("nan", GATED, w_up=weights))
        assert "are NaN or infinite and left out" in text
        assert "Perplexity could not be measured." in text
        assert "8 weights are NaN or infinite" in text


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", ["gated", "relu"])
def test_a_browser_shows_the_report(browser: Browser, request: pytest.FixtureRequest, name: str, width: int):
    page = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: requests.append(asked.url))
    address = (request.getfixturevalue(name) / "report.html").as_uri()
    page.goto(address)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert page.locator("figure svg").count() == 13 + components(request.getfixturevalue(name))
    for figure in page.locator("figure").all():
        assert figure.locator("figcaption b").inner_text().endswith(".")
        assert figure.locator("svg text").count() > 4
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert all(figure.bounding_box()["width"] <= width for figure in page.locator("figure svg").all())
    page.close()


def test_a_table_is_copied_as_cells(browser: Browser, gated: Path):
    page = browser.new_page()
    page.goto((gated / "report.html").as_uri())
    page.locator("table").first.select_text()
    copied = [line.split("\t") for line in page.evaluate("getSelection().toString()").strip().splitlines()]
    assert copied == [
        [html.unescape(cell) for cell in row] for row in table_rows(gated, "Activations whose magnitude is at most")
    ]
    page.close()


@pytest.mark.parametrize("name", ["gated", "relu"])
def test_the_report_fits_on_paper(browser: Browser, request: pytest.FixtureRequest, name: str):
    page = browser.new_page(viewport={"width": A4, "height": 1000})
    page.emulate_media(media="print")
    page.goto((request.getfixturevalue(name) / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= A4
    assert len(page.pdf(format="A4")) > 10_000
    page.close()
