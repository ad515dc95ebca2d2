"""The graph of a compiled model as Netron shows it."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from urllib.parse import urlsplit

import onnx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page
from typer.testing import CliRunner

from sparsecc.artifact import Artifact
from sparsecc.command_line import app
from sparsecc.graph_view import viewable_graph

SPARSE_OPERATORS = ("Threshold", "GatherActive", "SparseMatMul")
HEEDS_INTERRUPTS = """
import signal
from sparsecc.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
"""The command, which in a shell's background would ignore interrupts."""


@pytest.fixture(scope="module")
def sparse(compiled) -> Artifact:
    return compiled("wina", 0.5)


@pytest.fixture(scope="module")
def address(sparse: Artifact) -> Iterator[str]:
    """Where `sparsecc view --no-browser` says that it serves."""
    command = [sys.executable, "-c", HEEDS_INTERRUPTS, "view", str(sparse.directory), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+:\d+", process.stdout.readline()).group()
        yield address
        with socket.create_connection(("localhost", urlsplit(address).port)):  # as browsers do ahead of use
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()


@pytest.fixture(scope="module")
def netron(browser: Browser, address: str) -> Iterator[Page]:
    """Netron with the graph drawn; it reaches nothing but its own server."""
    context = browser.new_context()
    context.add_cookies([{"name": "consent", "value": "yes", "url": address}])
    _stop_the_clock_at_release(context)
    page = context.new_page()
    page.route(lambda url: not url.startswith(address), lambda route: route.abort())
    page.goto(address)
    page.wait_for_selector(".node", timeout=60_000)
    yield page
    context.close()


def _stop_the_clock_at_release(context: BrowserContext) -> None:
    """Netron asks for an update half a year after its release and shows nothing until then."""
    index = files("netron").joinpath("index.html").read_text("utf-8")
    context.clock.set_fixed_time(re.search(r'<meta name="date" content="([^"]+)">', index).group(1))


@pytest.mark.parametrize("operator", SPARSE_OPERATORS)
def test_netron_shows_what_was_done(netron: Page, operator: str):
    node = netron.locator(".node").filter(has=netron.get_by_text(operator, exact=True)).first
    node.locator(".node-item-type").first.click()
    properties = netron.locator(".sidebar").first
    properties.get_by_text("Metadata").wait_for()
    text = properties.text_content()
    names = [properties.locator("input").nth(i).input_value() for i in range(properties.locator("input").count())]
    assert {"layer", "projection", "method", "target_sparsity", "calibrated_sparsity"} < set(names)
    assert re.search(rf"{operator}ai\.sparsecc/model/layers\.\d+/\S+/{operator}", text)
    assert re.search(r"Metadata0\.\d{4}\dwina(q, k, v|q|k|v|o|gate, up|gate|up|down)0\.5000", text)
    netron.keyboard.press("Escape")
    properties.get_by_text("Metadata").wait_for(state="detached")


def test_the_viewed_graph_is_unfused_and_holds_thresholds_but_no_weight(sparse: Artifact):
    graph = onnx.load_from_string(viewable_graph(sparse)).graph
    counts = {operator: sum(node.op_type == operator for node in graph.node) for operator in SPARSE_OPERATORS}
    assert counts["SparseMatMul"] == 56
    assert counts["GatherActive"] == counts["Threshold"] > 0
    thresholds = [tensor for tensor in graph.initializer if tensor.name.endswith("/T")]
    assert len(thresholds) == counts["Threshold"]
    assert all(tensor.raw_data for tensor in thresholds)
    weights = {node.input[2] for node in graph.node if node.op_type == "SparseMatMul"}
    assert len(weights) == 56
    external = {tensor.name for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert weights < external
    assert graph.ByteSize() < sparse.model_path.stat().st_size * 10


def test_a_dense_model_can_be_viewed(dense: Artifact):
    graph = onnx.load_from_string(viewable_graph(dense)).graph
    assert sum(node.op_type == "MatMul" for node in graph.node) >= 56


def test_a_taken_port_is_refused(sparse: Artifact):
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["view", str(sparse.directory), "--no-browser", "--port", str(port)])
    assert result.exit_code == 2
    assert f"cannot listen on port {port}" in result.stderr
    assert result.stdout == ""


def test_without_netron_the_extra_is_named(sparse: Artifact, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "netron", None)
    result = CliRunner().invoke(app, ["view", str(sparse.directory), "--no-browser"])
    assert result.exit_code == 2
    assert "sparsecc[view]" in result.stderr
