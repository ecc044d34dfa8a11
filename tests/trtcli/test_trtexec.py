"""trtexec's mode from end to end on the CPU device: build, save, load, benchmark, export."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from trtcli.cli import main

ROOT = Path(__file__).parent.parent.parent
Captured = pytest.CaptureFixture[str]
QUICK = ["--device=cpu", "--duration=0", "--iterations=12", "--warmUp=0", "--avgTiming=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """Convolution, activation, matrix product and softmax, with a dynamic batch."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "m": random.standard_normal((4 * 36, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Flatten", ["r"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "m"], ["l"], "fc"),
        helper.make_node("Softmax", ["l"], ["y"], "soft"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    path = folder / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def engine(model: Path, folder: Path) -> Path:
    path = folder / "net.engine"
    assert main(["build", str(model), f"--saveEngine={path}", "--device=cpu", "--avgTiming=1",
                 "--minShapes=x:1x3x8x8", "--optShapes=x:2x3x8x8", "--maxShapes=x:4x3x8x8",
                 "--profilingVerbosity=detailed"]) == 0  # fmt: skip
    return path


def text_of(capsys: Captured) -> tuple[list[str], str]:
    out, err = capsys.readouterr()
    lines = [re.sub(r"^\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[\w\] ", "", line) for line in out.splitlines()]
    return lines, err


def test_blocks_and_labels_in_trtexecs_order(model: Path, capsys: Captured) -> None:
    argv = [f"--onnx={model}", "--shapes=x:2x3x8x8", *QUICK, "--dumpLayerInfo", "--dumpProfile"]
    assert main(argv) == 0
    lines, _ = text_of(capsys)
    assert lines[0] == f"&&&& RUNNING trtcli v0.1.0 # trtcli {' '.join(argv)}"
    assert lines[-1] == f"&&&& PASSED trtcli v0.1.0 # trtcli {' '.join(argv)}"
    wanted = [
        "Device cpu:", "Parsed net.onnx", "Fused 5 layers", "Built in", "Set shape of input tensor x to: 2x3x8x8",
        "Using random values for input x", "Created execution context", "Layer Information:", "conv + relu",
        "Starting inference", "First inference after setting the shapes:", "Warmup completed 0 queries over 0 ms", "Timing trace has 12 queries over",
        "=== Trace details ===", "Trace averages of 10 runs:", "Average on 10 runs - GPU latency:",
        "=== Performance summary ===", "Throughput:", "Latency:", "Enqueue Time:", "H2D Latency:", "GPU Compute Time:",
        "D2H Latency:", "Total Host Walltime:", "Total GPU Compute Time:",
        "Explanations of the performance metrics are printed in the verbose logs.", "=== Profile (",
    ]  # fmt: skip
    position = 0
    for label in wanted:
        following = [number for number, line in enumerate(lines) if number >= position and line.startswith(label)]
        assert following, f"no line {label!r} after line {position}: {lines[position:]}"
        position = following[0] + 1
    (trace,) = [line for line in lines if line.startswith("Average on 10 runs")]
    assert re.fullmatch(
        r"Average on 10 runs - GPU latency: [\d.e-]+ ms - Host latency: [\d.e-]+ ms \(enqueue [\d.e-]+ ms\)", trace
    )
    (fused,) = [line for line in lines if "Fused 5 layers" in line]
    assert re.search(r"Fused 5 layers into \d( and \d views?)? in [\d.]+ s, [\d.]+ MB of intermediate tensors saved: ", fused)


def test_exports_have_trtexecs_keys_and_right_values(engine: Path, folder: Path, capsys: Captured) -> None:
    x = np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)
    x.tofile(folder / "x.bin")
    files = {name: folder / f"{name}.json" for name in ("Times", "Output", "Profile", "LayerInfo")}
    exports = [f"--export{name}={path}" for name, path in files.items()]
    argv = [f"--loadEngine={engine}", "--shapes=x:3x3x8x8", f"--loadInputs=x:{folder / 'x.bin'}"]
    assert main([*argv, *QUICK[:4], *exports, "--dumpOutput", "--includeDataTransfers"]) == 0
    lines, _ = text_of(capsys)
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    assert len(found["Times"]) >= 12
    assert list(found["Times"][0]) == [
        "startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs",
        "h2dMs", "computeMs", "d2hMs", "latencyMs",
    ]  # fmt: skip
    reference = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    (wanted,) = reference.run(None, {"x": x})
    (output,) = found["Output"]
    assert (output["name"], output["dimensions"]) == ("y", "3x5")
    np.testing.assert_allclose(np.reshape(output["values"], (3, 5)), wanted, rtol=1e-4, atol=1e-6)
    dumped = [float(word) for word in lines[lines.index("y: (3x5)") + 1].split()]
    np.testing.assert_allclose(dumped, output["values"], rtol=1e-5)
    assert found["Profile"][0]["count"] >= 12
    names = [layer["Name"] for layer in found["LayerInfo"]["Layers"]]
    assert [one["name"] for one in found["Profile"][1:]] == names
    assert set(found["Profile"][1]) == {"name", "timeMs", "averageMs", "medianMs", "percentage"}
    assert found["LayerInfo"]["I/O Tensors"][0]["Dimensions"] == [3, 3, 8, 8]
    assert {origin for layer in found["LayerInfo"]["Layers"] for origin in layer["Origins"]} >= {"conv", "relu", "fc", "soft"}


def test_raw_bindings_can_be_loaded_again(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [f"--loadEngine={engine}", *QUICK[:4], "--dumpRawBindingsToFile"]
    assert main(argv) == 0
    (first_output,) = tmp_path.glob("y.output.2.5.FP32.raw")
    expected = first_output.read_bytes()
    first_output.unlink()
    assert main([*argv, "--loadInputs=x:x.input.2.3.8.8.FP32.raw"]) == 0
    assert first_output.read_bytes() == expected
    assert "Using values loaded from x.input.2.3.8.8.FP32.raw for input x" in "\n".join(text_of(capsys)[0])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--shapes=x:5x3x8x8"], "outside of what the engine was built for (1x3x8x8 to 4x3x8x8)"),
        (["--shapes=z:1"], "no input 'z'"),
        (["--loadInputs=z:f"], "Cannot open file f"),
        (["--loadInputs=x:{model}"], "Unexpected file size for input file"),
        (["--loadInputs=z:{model}"], "Invalid tensor names found in --loadInputs flag: z"),
        (["--whyNot=nope"], "no such ONNX node or layer"),
    ],
)
def test_refusals_fail_between_banners(engine: Path, model: Path, flags: list[str], complaint: str, capsys: Captured) -> None:
    assert main([f"--loadEngine={engine}", *QUICK[:4], *(flag.format(model=model) for flag in flags)]) == 1
    lines, err = text_of(capsys)
    assert complaint in err
    assert "Traceback" not in err
    assert lines[-1].startswith("&&&& FAILED")


def test_an_engine_that_is_none(model: Path, tmp_path: Path, capsys: Captured) -> None:
    junk = tmp_path / "x.engine"
    junk.write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    assert main([f"--loadEngine={junk}", *QUICK[:4]]) == 1
    assert main([f"--loadEngine={model}", *QUICK[:4]]) == 1
    err = capsys.readouterr().err
    assert "x.engine" in err and "Traceback" not in err


def test_options_of_the_inference_loop(engine: Path, capsys: Captured) -> None:
    argv = [f"--loadEngine={engine}", *QUICK[:4], "--infStreams=2", "--threads", "--noCudaGraph", "--noSpinWait",
            "--includeDataTransfers", "--exposeDMA", "--idleTime=1", "--sleepTime=5", "--percentile=50,99.9", "--avgRuns=1"]  # fmt: skip
    assert main(argv) == 0
    lines, err = text_of(capsys)
    assert "percentile(99.9%)" in "\n".join(lines)
    assert "* Multiple inference streams are used." in err
    assert sum(line.startswith("Average on 1 runs") for line in lines) >= 24


def test_the_timing_cache_makes_the_second_build_hit(model: Path, tmp_path: Path, capsys: Captured) -> None:
    cache = tmp_path / "t.cache"
    argv = ["build", str(model), "--device=cpu", "--avgTiming=1", f"--timingCacheFile={cache}"]
    assert main([*argv, "--errorOnTimingCacheMiss"]) == 1
    assert "is not in the timing cache" in capsys.readouterr().err
    notes = tmp_path / "notes"
    notes.write_text("mine")
    assert main([*argv[:-1], f"--timingCacheFile={notes}"]) == 0  # by mistake
    assert "notes: is no timing cache, but another file" in capsys.readouterr().err and notes.read_text() == "mine"
    assert main(argv) == 0
    assert main([*argv, "--errorOnTimingCacheMiss"]) == 0
    lines, _ = text_of(capsys)
    assert any(re.match(r"Timing cache: [1-9]\d* hits, 0 misses", line) for line in lines)
    for level, hits in ((1, True), (4, False), (3, True)):
        assert main([*argv, f"--builderOptimizationLevel={level}"]) == 0
        lines, _ = text_of(capsys)
        (line,) = [one for one in lines if one.startswith("Timing cache: ")]
        assert (", 0 misses" in line) == hits, (level, line)


def test_build_options_are_obeyed(model: Path, tmp_path: Path, capsys: Captured) -> None:
    info = tmp_path / "info.json"
    argv = ["build", str(model), "--device=cpu", "--avgTiming=1", f"--exportLayerInfo={info}"]
    assert main([*argv, "--disableFusion=all"]) == 0
    assert "relu" in json.loads(info.read_text())["Layers"]
    assert main([*argv, "--disableFusion=convolution-activation@relu,convolution-pointwise@relu"]) == 0
    assert "conv" in json.loads(info.read_text())["Layers"]
    assert main([*argv, "--fp16", "--profilingVerbosity=detailed"]) == 0
    assert "FP16" in {layer["Precision"] for layer in json.loads(info.read_text())["Layers"]}
    assert main([*argv, "--pinTactic=soft:no.such.tactic"]) == 1
    assert "pinned tactic 'no.such.tactic' cannot serve this layer" in capsys.readouterr().err
    assert main([*argv, "--buildBudget=0.001", "--builderOptimizationLevel=0", "--maxAuxStreams=0"]) == 0
    assert main([*argv, "--memPoolSize=workspace:0", "--profilingVerbosity=detailed"]) == 0
    layers = json.loads(info.read_text())["Layers"]
    assert all(layer["WorkspaceBytes"] == 0 for layer in layers)
    (soft,) = (layer for layer in layers if layer["Name"] == "soft")
    assert re.search(r"needs \d+ bytes of workspace, 0 are allowed \(--memPoolSize\)", json.dumps(soft["Alternatives"]))


def test_inspect_and_check_an_engine(engine: Path, capsys: Captured) -> None:
    assert main(["inspect", str(engine)]) == 0
    out = capsys.readouterr().out
    assert "conv + relu" in out and "min 1x3x8x8, opt 2x3x8x8, max 4x3x8x8" in out
    assert max(map(len, out.splitlines()[1:])) <= 110  # the first line holds the model's path
    assert main(["inspect", str(engine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1
    assert main(["inspect", str(engine), "--whyNot=soft"]) == 0
    assert main(["check", str(engine), "--device=cpu"]) == 0
    assert main(["compare", str(engine), str(engine)]) == 0


def test_old_scripts_keep_working(model: Path, capsys: Captured) -> None:
    argv = [f"--onnx={model}", "--explicitBatch", "--workspace=64", "--buildOnly", "--device=cpu", "--avgTiming=1"]
    assert main(argv) == 0
    lines, err = text_of(capsys)
    assert err.count("is deprecated") == 3
    assert "Skipped inference phase since --skipInference is added." in lines


def test_engines_are_not_written_over_devices(model: Path, capsys: Captured) -> None:
    assert main(["build", str(model), "--device=cpu", "--saveEngine=/dev/full"]) == 1
    assert main(["build", str(model), "--device=cpu", "--timingCacheFile=/dev/null"]) == 1
    err = capsys.readouterr().err
    assert "--saveEngine=/dev/full: is no regular file" in err
    assert "--timingCacheFile=/dev/null: is no regular file" in err


def test_no_space_is_an_error_not_a_traceback(engine: Path, capsys: Captured) -> None:
    assert main([f"--loadEngine={engine}", *QUICK[:4], "--exportTimes=/dev/full"]) == 1
    out, err = capsys.readouterr()
    assert "no space left on the device" in err
    assert out.splitlines()[-1].startswith("&&&& FAILED")


def test_an_interrupt_ends_with_130(engine: Path) -> None:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: here the signal must arrive.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from trtcli.cli import main; "
    argv = [sys.executable, "-c", start + "sys.exit(main(sys.argv[1:]))", f"--loadEngine={engine}", "--device=cpu", "--duration=-1"]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "Starting inference" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "[E] Interrupted" in err and "Traceback" not in err
    assert out.splitlines()[-1].startswith("&&&& FAILED")


@pytest.mark.parametrize("argv", [["--help"], ["doctor"]])
def test_a_reader_that_goes_away(argv: list[str]) -> None:
    command = " ".join([shlex.quote(sys.executable), "-m", "trtcli", *argv])
    done = subprocess.run(["sh", "-c", f"{command} | head -1"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_why_not_reads_what_the_build_recorded(model: Path, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "e.engine"
    argv = ["build", str(model), "--device=cpu", "--avgTiming=1", "--disableFusion=all", f"--saveEngine={path}"]
    assert main([*argv, "--whyNot=relu"]) == 0
    refused = r"  nearest rule: (convolution-\w+) - refused \(disabled\): switched off by --disableFusion=all"
    assert re.search(refused, capsys.readouterr().out)
    assert main(["inspect", str(path), "--whyNot=relu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("relu is a layer of its own (")
    assert re.fullmatch(refused, lines[1])
    assert lines[2] == "  it would have joined it with conv"
    assert "kB of traffic, about" in lines[3]


def test_ranges_need_a_profiler(engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    argv = [f"--loadEngine={engine}", *QUICK[:4], "--verbose"]
    assert main(argv) == 0
    assert "NVTX: no profiler is attached" in capsys.readouterr().out
    for name in ("nvtx", "cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("NVTX_INJECTION64_PATH", "/opt/profiler.so")
    assert main(argv) == 0
    assert "NVTX: neither nvtx nor cupy is installed" in capsys.readouterr().out
