"""Misuse of the runtime gets a sentence that says what was found, what is allowed and what to do; from the command line exit code 1 and no traceback."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, save

import trtcli
from runtime.cpu import CpuDevice
from runtime.device import CaptureError, DeviceError, DeviceLostError, DeviceMemoryError
from runtime.engine import EngineError
from trtcli.cli import main
from trtcli.errors import report
from trtcli.log import Log

Captured = pytest.CaptureFixture[str]
RUN = ["--device=cpu", "--duration=0", "--iterations=1", "--warmUp=0"]
X = np.ones((2, 4), np.float32)


@pytest.fixture(scope="module")
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"], "soft")], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path_factory.mktemp("bad")
    save(model, folder / "m.onnx")
    shapes = {"min_shapes": {"x": (1, 4)}, "opt_shapes": {"x": (2, 4)}, "max_shapes": {"x": (8, 4)}}
    trtcli.build(model.SerializeToString(), trtcli.BuildConfig(optimization_level=0, **shapes), device="cpu").save(folder / "m.engine")
    return folder / "m.engine"


@pytest.fixture
def context(engine_file: Path):
    return trtcli.Engine.load(engine_file).create_execution_context()


def refused(capsys: Captured, *argv: str) -> str:
    assert main(list(argv)) == 1
    found = capsys.readouterr()
    assert "&&&& FAILED" in found.out and "Traceback" not in found.out + found.err
    return found.err


def test_shapes_outside_of_the_profile(engine_file: Path, context, capsys: Captured) -> None:
    err = refused(capsys, f"--loadEngine={engine_file}", "--shapes=x:9x4", *RUN)
    assert "input 'x' 9x4 is outside of what the engine was built for (1x4 to 8x4); build again with --minShapes and --maxShapes" in err
    with pytest.raises(ValueError, match=r"input 'x': shape 9x4 is outside of profile 0 \(1x4 to 8x4\)"):
        context.set_input_shape("x", (9, 4))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--shapes=x:9x4"], "--shapes: input 'x' 9x4 is outside of what the engine was built for (1x4 to 8x4)"),
        (["--useProfile=1"], "Selected profile index 1 exceeds the number of profiles that the engine holds (1)"),
        (["--loadInputs=z:{file}"], "Invalid tensor names found in --loadInputs flag: z; the inputs are x"),
        (["--loadInputs=x:{file}"], "Input 'x' is 64 bytes (4x4 FP32), but the file has 3 bytes"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_the_build(flags: list[str], complaint: str, engine_file: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "f").write_bytes(b"123")
    bounds = ["--minShapes=x:1x4", "--optShapes=x:4x4", "--maxShapes=x:8x4"]
    argv = [f"--onnx={engine_file.with_suffix('.onnx')}", *bounds, *(flag.format(file=tmp_path / "f") for flag in flags)]
    assert main([*argv, "--skipInference", *RUN[:1]]) == 0  # which cannot be seen from a build
    capsys.readouterr()
    assert main([*argv, *RUN]) == 1
    found = capsys.readouterr()
    assert complaint in found.err and "Fused" not in found.out


def test_a_file_of_the_other_kind(engine_file: Path, capsys: Captured) -> None:
    assert f"an engine file, not a model: run it with --loadEngine={engine_file}" in refused(capsys, f"--onnx={engine_file}", *RUN)
    model = engine_file.with_suffix(".onnx")
    err = refused(capsys, f"--loadEngine={model}", *RUN)
    assert f"give it as --onnx={model}" in err and "--saveEngine" not in err, "the advice must not write over the model"
    other = engine_file.with_suffix(".md")
    other.write_text("# Not an engine")
    assert f"{str(other)!r} is not an engine file: build one with --onnx=model.onnx --saveEngine=model.engine" in refused(capsys, f"--loadEngine={other}", *RUN)


def test_an_engine_of_the_other_kind_of_device(engine_file: Path) -> None:
    engine = trtcli.Engine.load(engine_file)
    other = replace(engine, device=replace(engine.device, kind="cuda", name="NVIDIA H100", arch="sm_90a"))
    with pytest.raises(EngineError, match=r"built for NVIDIA H100, a GPU, and this device is a CPU: run it where it was built .*or build the model again"):
        other.create_execution_context(CpuDevice())


def test_words_of_commands(engine_file: Path, capsys: Captured) -> None:
    for words, complaint in ((["compare", "a"], "trtcli compare takes A B"), (["cache", "list"], "trtcli cache takes ACTION FILE")):
        assert main(words) == 1
        err = capsys.readouterr().err
        assert complaint in err and f"trtcli {words[0]} --help shows its flags" in err
    assert main(["inspect", str(engine_file), "--whyNot=soft9"]) == 1
    assert capsys.readouterr().err.rstrip().endswith("near it: soft"), "named once, as node or layer"


def test_an_address_that_is_not_set(context) -> None:
    context.set_input_shape("x", X.shape)
    context.set_tensor_address("x", X)
    with pytest.raises(EngineError, match="tensor 'y' has no address: call set_tensor_address"):
        context.execute_async_v3(0)


def test_a_wrong_type_or_too_small_a_buffer(context) -> None:
    context.set_input_shape("x", X.shape)
    with pytest.raises(ValueError, match="tensor 'x': the memory holds float64, the engine wants float32"):
        context.set_tensor_address("x", X.astype(np.float64))
    with pytest.raises(ValueError, match="tensor 'x': the memory has shape 1x4, the engine wants 2x4"):
        context.set_tensor_address("x", X[:1])
    context.set_tensor_address("x", X)
    context.set_tensor_address("y", np.empty_like(X))
    context.set_input_shape("x", (8, 4))
    with pytest.raises(EngineError, match=r"tensor '[xy]': the memory given holds 32 bytes, shape 8x4 needs 128: call set_tensor_address"):
        context.execute_async_v3(0)


def test_the_legacy_default_stream(context) -> None:
    legacy = context.device.stream()
    legacy.legacy = True
    with pytest.raises(ValueError, match="the legacy default stream, which all others wait for: give non-blocking streams"):
        context.set_aux_streams([legacy])


def test_a_changed_context_under_a_captured_graph(context) -> None:
    """A graph that the caller captures holds the context's addresses: changes are refused until it is released."""
    context.execute({"x": X})
    stream = context.device.stream()
    theirs = context._external[0] = stream
    graph = context.device.capture(stream, lambda: context.execute_async_v3(0))
    with pytest.raises(EngineError, match=r"in a captured CUDA graph.*use another context of the engine.*or call release_graph\(\)"):
        context.set_input_shape("x", (1, 4))
    graph.launch(theirs)
    context.release_graph()
    context.set_input_shape("x", (1, 4))


@pytest.mark.parametrize("flag", ["", "--noCudaGraph"])
def test_a_capture_that_fails_falls_back(flag: str, engine_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def fails(*_: object) -> None:
        raise CaptureError("no")

    monkeypatch.setattr(CpuDevice, "capture", fails)
    assert main([f"--loadEngine={engine_file}", *RUN, *([flag] if flag else [])]) == 0
    found = capsys.readouterr()
    assert ("The CUDA graph capture on the stream has failed." in found.out + found.err) is not bool(flag)


def test_device_memory_exhausted(engine_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def full(self: CpuDevice, size: int, managed: bool = False) -> None:
        raise DeviceMemoryError("no")

    monkeypatch.setattr(CpuDevice, "allocate", full)
    err = refused(capsys, f"--loadEngine={engine_file}", *RUN)
    assert "MiB are free on device cpu" in err and "need" in err


@pytest.mark.parametrize("flag", ["--exportTimes", "--exportReport", "--saveDebugTensors=y"])
def test_an_output_over_an_input_or_another_output(engine_file: Path, tmp_path: Path, flag: str, capsys: Captured) -> None:
    before, mark = engine_file.read_bytes(), ":" if "=" in flag else "="
    err = refused(capsys, f"--loadEngine={engine_file}", f"{flag}{mark}{engine_file}", *RUN)
    assert f"{flag.split('=')[0]}={engine_file}: this file is an input; give another one" in err and engine_file.read_bytes() == before
    twice = tmp_path / "twice"
    err = refused(capsys, f"--loadEngine={engine_file}", f"--exportLayerInfo={twice}", f"{flag}{mark}{tmp_path / '.' / 'twice'}", *RUN)
    assert "this file is also what --export" in err and not twice.exists()


def test_a_broken_gpu_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Not again for every kernel that cupy cannot unload at the end."""
    told: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, value, trace: told.append(value))
    monkeypatch.setattr(sys, "unraisablehook", lambda one: told.append(one.exc_value))
    assert report(DeviceLostError("waiting for a stream: it broke"), Log()) == 1
    assert capsys.readouterr().err.endswith("[E] waiting for a stream: it broke\n")
    ours, cupys = ValueError("ours"), type("CUDADriverError", (RuntimeError,), {"__module__": "cupy_backends.cuda.api.driver"})("once more")
    for error in (ours, cupys):
        sys.excepthook(type(error), error, None)
        sys.unraisablehook(SimpleNamespace(exc_type=type(error), exc_value=error))  # type: ignore[arg-type]
    assert told == [ours, ours]


def test_wrong_arguments_of_the_library(engine_file: Path, context) -> None:
    model = engine_file.with_name("m.onnx")
    shape = r"BuildConfig: shapes: input 'x': '4x4' is no shape; give a tuple of integers"
    with pytest.raises(ValueError, match=shape):
        trtcli.build(model, trtcli.BuildConfig(shapes={"x": "4x4"}), device="cpu")  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="opt_shapes: input 'x'"):
        trtcli.build(model, trtcli.BuildConfig(profiles=(trtcli.ProfileShapes(opt_shapes={"x": (1.5, 4)}),)), device="cpu")  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="dict is no BuildConfig"):
        trtcli.build(model, {"shapes": {}}, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="--device"):  # on a machine with GPUs the number is too large
        trtcli.build(model, device=99)
    with pytest.raises(ValueError, match=r"input 'x': \(1.5, 4\) is no shape"):
        context.set_input_shape("x", (1.5, 4))
    with pytest.raises(IndexError, match="I/O tensor 2: the engine has 2, 0 to 1"):
        context.engine.get_tensor_name(2)


def test_an_engine_prints_as_one_line(engine_file: Path) -> None:
    shown = repr(trtcli.Engine.load(engine_file))
    assert shown.startswith("<Engine 'g': 1 layers, x FP32 Nx4 -> y FP32 Nx4, built for ")
