"""A second build with the same timing cache measures nothing: neither tactics, nor optional fusions, nor streams."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime import streams
from runtime.cpu import CpuDevice
from tactics.cache import ENGINE, STREAM_EVENT, load
from tests.catalogue import Row, model
from tests.harness.log import Lines
from trtcli.builder import BuildError, build, measured, search
from trtcli.cli import main
from trtcli.config import BuildConfig

BRANCHES = Row(
    "branches",
    "a = Conv<pads=[1,1,1,1]>(x, w1)\nb = Relu(a)\nc = Conv<pads=[1,1,1,1]>(b, w2)\nd = Conv<pads=[1,1,1,1]>(x, w3)\n"
    "e = Sigmoid(d)\nf = Conv<pads=[1,1,1,1]>(e, w4)\ny = Concat<axis=1>(c, f)",
    "", inputs={"x": (1, 8, 12, 12)}, values=dict.fromkeys(("w1", "w2", "w3", "w4"), (8, 8, 3, 3)),
)  # fmt: skip


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> CpuDevice:
    """A CPU that seems to have room for branches beside each other, where an engine with streams is the faster one."""
    found = CpuDevice()
    found.spec = replace(found.spec, multiprocessors=8)
    monkeypatch.setattr(streams, "event_cost", lambda _: 1e-9)
    monkeypatch.setattr(streams, "time_parts", lambda _, engines: [2e-3, *(1e-3 for _ in engines[1:])])
    monkeypatch.setattr(measured, "MIN_GAIN", -1e6)  # optional fusions are taken, so that their search is part of the build
    return found


def forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("measured again")


def test_nothing_is_measured_twice(device: CpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "t.cache"
    config = BuildConfig(max_aux_streams=2, avg_timing=1, timing_cache_file=str(file))
    first = build(model(BRANCHES), config, device, log=Lines())
    assert first.num_aux_streams == 1 and first.record["streams"]["timingCacheMisses"] == 2
    kinds = [entry.timings[0].tactic for entry in load(file).entries.values()]
    assert kinds.count(STREAM_EVENT) == 1 and kinds.count(ENGINE) >= 2

    monkeypatch.setattr(streams, "event_cost", forbidden)
    monkeypatch.setattr(streams, "time_parts", forbidden)
    monkeypatch.setattr(search, "Bench", forbidden)
    log = Lines()
    again = build(model(BRANCHES), replace(config, error_on_timing_cache_miss=True), device, log=log)
    assert [plan.stream for plan in again.layers] == [plan.stream for plan in first.layers]
    assert [plan.tactic for plan in again.layers] == [plan.tactic for plan in first.layers]
    assert any("1000.0 us with them, 2000.0 us on one stream (from the timing cache)" in line for line in log)
    assert first.record["optionalFusions"] == again.record["optionalFusions"]

    # other versions or another share of the device ask other questions
    device.spec = replace(device.spec, share="MPS 50%")
    with pytest.raises(BuildError, match="is not in the timing cache"):
        build(model(BRANCHES), replace(config, error_on_timing_cache_miss=True), device, log=Lines())

    assert main(["cache", "prune", str(file)]) == 0  # they are no tactic's, and stay
    assert main(["cache", "list", str(file)]) == 0
    assert "Engine float32 1x8x12x12 -> float32 1x16x12x12" in capsys.readouterr().out


def test_a_miss_of_streams_alone_is_refused(device: CpuDevice, tmp_path: Path) -> None:
    config = BuildConfig(avg_timing=1, timing_cache_file=str(tmp_path / "t.cache"))
    build(model(BRANCHES), config, device, log=Lines())
    strict = replace(config, max_aux_streams=2, error_on_timing_cache_miss=True)
    with pytest.raises(BuildError, match=r"auxiliary streams is not in the timing cache.*--maxAuxStreams=0"):
        build(model(BRANCHES), strict, device, log=Lines())
