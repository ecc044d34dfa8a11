"""``--monitorMemory``: figures of stages, on a device that counts and on this machine."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from onnx.parser import parse_model

from trtcli.cli import main
from trtcli.memory_usage import MemoryUsage, host_memory

MIB = 1 << 20


def test_stages_say_what_they_took_and_what_is_held():
    lines, host, gpu = [], iter([(100, 100), (120, 150), (90, 160), (0, 170)]), iter([(500, 0), (700, 64), (0, 96)])
    device = SimpleNamespace(spec=SimpleNamespace(kind="cuda"), memory_usage=lambda: tuple(MIB * one for one in next(gpu)))
    usage = MemoryUsage(SimpleNamespace(info=lines.append), lambda: tuple(MIB * one for one in next(host)))  # type: ignore[arg-type]
    usage.begin(device)  # type: ignore[arg-type]
    usage.stage("Run inference")
    usage.peak("run")
    assert lines == [
        "[MemUsageChange] Init device: CPU +20.0, GPU +500.0, now: CPU 120.0, GPU 500.0 (MiB)",
        "[MemUsageChange] Run inference: CPU -30.0, GPU +200.0, now: CPU 90.0, GPU 700.0 (MiB)",
        "[MemUsageStats] Peak memory usage of the run: CPU 170.0 MiB, GPU 96.0 MiB",
    ]


def test_without_the_flag_nothing_is_looked_at():
    usage = MemoryUsage(None, host=lambda: pytest.fail("asked"))
    usage.stage("x")
    usage.peak("x")


def test_memory_of_this_process():
    before, _ = host_memory()
    held = np.ones(64 * MIB, np.uint8)
    now, most = host_memory()
    assert most >= now > before > 0 and most >= held.nbytes


def test_a_build_and_a_run_report_every_stage(tmp_path, capsys):
    model = parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }')
    path, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    path.write_bytes(model.SerializeToString())
    quick = ["--device=cpu", "--iterations=1", "--duration=0", "--warmUp=0", "--monitorMemory"]
    assert main([f"--onnx={path}", f"--saveEngine={engine}", *quick]) == 0
    stages = re.findall(r"\[MemUsageChange\] ([^:]+): CPU [+-][\d.]+, now: CPU [\d.]+ \(MiB\)", capsys.readouterr().out)
    assert stages == [
        "Init device", "Import model", "Fuse layers", "Select tactics", "Choose streams", "Save engine", "Create execution contexts", "Run inference",
    ]  # fmt: skip
    assert main([f"--loadEngine={engine}", "--dumpProfile", *quick]) == 0
    out = capsys.readouterr().out
    assert re.findall(r"\[MemUsageChange\] ([^:]+):", out) == ["Load engine", "Init device", "Create execution contexts", "Run inference", "Profile layers"]
    assert len(re.findall(r"\[MemUsageStats\] Peak memory usage of the run: CPU [\d.]+ MiB$", out, re.MULTILINE)) == 1
    assert main(["check", str(path), "--device=cpu", "--monitorMemory"]) == 0
    assert "The answer is static, nothing was built: no effect of --monitorMemory" in capsys.readouterr().err
    assert main(["inspect", str(path), "--monitorMemory"]) == 1
    assert "--monitorMemory: goes with trtcli build, profile, or no command" in capsys.readouterr().err


@pytest.mark.gpu
def test_stages_on_a_gpu(tmp_path, capsys):
    model = parse_model('<ir_version: 8, opset_import: ["" : 18]> g (float[256, 4096] x) => (float[256, 4096] y) { y = Relu(x) }')
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert main([f"--onnx={path}", "--device=0", "--iterations=1", "--duration=0", "--warmUp=0", "--monitorMemory"]) == 0
    out = capsys.readouterr().out
    now = re.findall(r"\[MemUsageChange\] [^:]+: CPU [+-][\d.]+, GPU [+-][\d.]+, now: CPU [\d.]+, GPU ([\d.]+) \(MiB\)", out)
    assert len(now) == 7 and min(map(float, now)) > 100  # the driver's own memory
    (peak,) = re.findall(r"Peak memory usage of the run: CPU [\d.]+ MiB, GPU ([\d.]+) MiB", out)
    assert float(peak) >= 8  # input and output
