"""``--exportReport``: one page that is well formed, holds every layer and loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from trtcli.cli import main
from trtcli.report.html import report_html
from trtcli.report.summary import measure

VOID = {"meta", "br"}


class Checker(HTMLParser):
    """Tags must close in order; collects attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.open)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    names = {tag for tag, _ in checker.seen}
    assert not names & {"script", "link", "img", "iframe", "object"} and "http" not in page
    assert not any(name and name.startswith("on") for _, attributes in checker.seen for name in attributes)
    for _, attributes in checker.seen:
        for name in ("x", "y", "cx", "cy", "x1", "x2", "y1", "y2", "width", "height"):
            if attributes.get(name):
                assert np.isfinite(float(str(attributes[name]).rstrip("%")))
    return checker


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("html")
    weights = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "fc <&> 'one'"),
        helper.make_node("Softmax", ["h"], ["y"], 'soft"max'),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")
    argv = [f"--onnx={folder / 'net.onnx'}", "--device=cpu", "--duration=0", "--iterations=30", "--warmUp=0", "--avgTiming=1",
            f"--exportReport={folder / 'r.html'}"]  # fmt: skip
    assert main(argv) == 0
    return Path(folder / "r.html").read_text(encoding="utf-8")


def test_the_page(page: str) -> None:
    checker = check(page)
    assert "fc &lt;&amp;&gt; &#x27;one&#x27;" in page and "soft&quot;max" in page
    assert sum(tag == "svg" for tag, _ in checker.seen) == 3
    for text in ("queries/s", "Latency distribution of 30 queries", "Latency over time", "memory bound", "--exportReport=", "x: FP32 4x16"):
        assert text in page, text
    points = [attributes for tag, attributes in checker.seen if tag == "circle" and attributes.get("r") == "4"]
    assert len(points) == 3 + 2  # the legend, and two layers
    shares = [float(one) for one in re.findall(r"([\d.]+) %</td>", page)]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_without_queries_and_times(page: str) -> None:
    from fusion.network import Network
    from runtime.engine import Engine
    from tactics.tactic import DeviceSpec

    empty = Engine(Network("nothing", (), (), (), {}, {}), (), {}, {}, ({},), DeviceSpec("cpu", "Test"))
    found = report_html(empty, {}, "trtcli", measure([], (99.0,)), [], None)
    check(found)
    assert "No queries were measured" in found and "No layer was timed" in found
