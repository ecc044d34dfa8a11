"""``--inputIOFormats`` and ``--outputIOFormats`` from the model to bindings, files and reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import trtcli
from fusion.dims import symbol
from fusion.formats import Format
from runtime.addresses import as_in_memory
from runtime.devices import open_device
from runtime.engine import Engine, EngineError
from runtime.interop import foreign
from trtcli.cli import main

RUN = ("--device=cpu", "--duration=0", "--iterations=2", "--warmUp=0", "--builderOptimizationLevel=0")
PROFILE = {"min_shapes": {"x": (1, 3, 8, 6)}, "opt_shapes": {"x": (2, 3, 8, 6)}, "max_shapes": {"x": (4, 3, 8, 6)}}
X = np.random.default_rng(3).standard_normal((2, 3, 8, 6)).astype(np.float32)
Captured = pytest.CaptureFixture[str]


def model(seed: int = 0, channels: int = 3) -> ModelProto:
    """Convolution and ReLU, and the mean of its channels."""
    w = np.random.default_rng(seed).standard_normal((5, channels, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1] * 4), helper.make_node("Relu", ["c"], ["y"], "relu"),
         helper.make_node("GlobalAveragePool", ["y"], ["z"], "mean")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, 8, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 8, 6]), helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 5, 1, 1])],
        [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def wanted(x: np.ndarray = X, seed: int = 0) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model(seed).SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x.astype(np.float32)})


def build(device: str = "cpu", level: int = 0, **options: object) -> Engine:
    return trtcli.build(model(), trtcli.BuildConfig(optimization_level=level, **PROFILE, **options), device=device)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Half-precision hwc8 in, hwc8 out, from its file."""
    path = tmp_path_factory.mktemp("io") / "e.engine"
    build(input_io_formats=("fp16:hwc8",), output_io_formats=("hwc8", "chw")).save(path)
    return Engine.load(path)


def test_callers_see_the_shapes_of_the_model(engine: Engine) -> None:
    assert engine.get_tensor_shape("x") == (-1, 3, 8, 6) and engine.get_tensor_shape("y") == (-1, 5, 8, 6)
    assert engine.get_tensor_profile_shape("x", 0) == ((1, 3, 8, 6), (2, 3, 8, 6), (4, 3, 8, 6))
    assert (engine.get_tensor_format("x"), engine.get_tensor_format("z")) == (trtcli.TensorFormat.HWC8, trtcli.TensorFormat.LINEAR)
    assert engine.get_tensor_format_desc("x") == "Channels last, padded to a multiple of 8 (hwc8)"
    assert engine.get_tensor_dtype("x").label == "FP16" and engine.get_tensor_bytes_per_component("x") == 2
    context = engine.create_execution_context()
    assert context.get_tensor_strides("y") == (-1,) * 4 and context.get_tensor_shape("y") == (-1, 5, 8, 6)
    context.set_input_shape("x", (3, 3, 8, 6))
    assert context.get_tensor_shape("y") == (3, 5, 8, 6)
    assert context.get_tensor_strides("x") == context.get_tensor_strides("y") == (384, 1, 48, 8)
    assert context.get_max_output_size("y") == 3 * 8 * 6 * 8 * 4, "what memory holds, padding included"
    with pytest.raises(ValueError, match=r"1x8x6x3 is outside of profile 0 .1x3x8x6 to 4x3x8x6"):
        context.set_input_shape("x", (1, 8, 6, 3))


def test_execute_takes_and_gives_the_model_s_arrays(engine: Engine) -> None:
    half = X.astype(np.float16)
    found = engine.create_execution_context().execute({"x": half})
    for name, value in zip(("y", "z"), wanted(half), strict=True):
        assert found[name].shape == value.shape and found[name].flags.c_contiguous
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("view", [True, False])
def test_addresses_are_of_channels_last_memory(engine: Engine, view: bool) -> None:
    context, stream = engine.create_execution_context(), open_device("cpu").stream()
    context.set_input_shape("x", X.shape)
    half = X.astype(np.float16)
    given = np.full((2, 8, 6, 8), np.nan, np.float16)  # what padding of an input holds does not matter
    given[..., :3] = half.transpose(0, 2, 3, 1)
    memory = np.full((2, 8, 6, 8), np.nan, np.float32)
    for name, array, channels in (("x", given, 3), ("y", memory, 5)):
        context.set_tensor_address(name, array[..., :channels].transpose(0, 3, 1, 2) if view else array)
    mean = np.empty((2, 5, 1, 1), np.float32)
    context.set_tensor_address("z", mean)
    context.execute_async_v3(stream)
    stream.synchronize()
    y, z = wanted(half)
    np.testing.assert_allclose(memory[..., :5], y.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, z, rtol=1e-5, atol=1e-5)
    assert not memory[..., 5:].any(), "padding of outputs is zero"


def test_memory_of_another_layout_is_refused(engine: Engine) -> None:
    context = engine.create_execution_context()
    context.set_input_shape("x", X.shape)
    with pytest.raises(ValueError, match=r"'x': the memory has shape 2x3x8x6 and strides 144x48x6x1 .*hwc8 has strides 384x1x48x8"):
        context.set_tensor_address("x", X.astype(np.float16))
    for shape, channels in (((3, 8, 6, 8), 3), ((2, 8, 6, 8), 5)):
        given = np.zeros(shape, np.float16)[..., :channels].transpose(0, 3, 1, 2)
        with pytest.raises(ValueError, match=f"the memory has shape {shape[0]}x{channels}x8x6, the engine wants 2x3x8x6"):
            context.set_tensor_address("x", given)
    with pytest.raises(ValueError, match="the memory has shape scalar, the engine wants 2x3x8x6"):
        context.set_tensor_address("x", np.zeros((), np.float16))


def test_memory_of_another_layout_is_refused_before_shapes_are_known(engine: Engine) -> None:
    context = engine.create_execution_context()
    with pytest.raises(ValueError, match=r"'x': the memory has shape 2x3x8x6 and strides 144x48x6x1"):
        context.set_tensor_address("x", X.astype(np.float16))
    context.set_tensor_address("x", np.zeros((2, 8, 6, 8), np.float16))


def test_views_of_no_elements_are_taken() -> None:
    given = np.zeros((0, 8, 6, 3), np.float16).transpose(0, 3, 1, 2)
    memory, shape = as_in_memory("x", foreign(given, strided=True), Format("hwc"), (symbol("n"), 8, 6, 3), (0, 3, 8, 6))
    assert memory.shape == shape == (0, 8, 6, 3)


def test_output_allocators_hear_of_the_model_s_shape(engine: Engine) -> None:
    context, told = engine.create_execution_context(), []
    context.set_input_shape("x", X.shape)
    memory = np.zeros(4096, np.float32)
    context.set_output_allocator("y", lambda name, size, shape: told.append((name, size, shape)) or memory)  # type: ignore[func-returns-value]
    context.set_tensor_address("x", np.zeros((2, 8, 6, 8), np.float16))
    context.set_tensor_address("z", np.empty((2, 5, 1, 1), np.float32))
    context.execute_async_v3(open_device("cpu").stream())
    assert told == [("y", 2 * 8 * 6 * 8 * 4, (2, 5, 8, 6))]


def test_new_weights_keep_the_formats(engine: Engine) -> None:
    changed = trtcli.refit(engine, model(seed=1))
    found = changed.create_execution_context().execute({"x": X.astype(np.float16)})["y"]
    np.testing.assert_allclose(found, wanted(X.astype(np.float16), seed=1)[0], rtol=1e-5, atol=1e-5)


def test_of_several_layouts_those_that_a_tensor_cannot_have_are_passed_over() -> None:
    flat = helper.make_model(helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 48))],
    ), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip

    def built(formats: str) -> Engine:
        return trtcli.build(flat, trtcli.BuildConfig(optimization_level=0, output_io_formats=(formats,)), device="cpu")

    assert built("fp16:hwc8+chw").network.formats == {}
    with pytest.raises(ValueError, match="output 'y' has 2 dimensions, hwc8 needs 4"):
        built("hwc8+hwc")


def test_of_several_layouts_the_one_that_moves_least_is_taken() -> None:
    def formats(built: Engine) -> dict[str, str]:
        return {name: one.name for name, one in built.network.formats.items()}

    # The CPU's convolutions run channels-first; of one pixel both layouts are the same, and the first one named is taken.
    assert formats(build(input_io_formats=("hwc+chw",), output_io_formats=("hwc+chw",))) == {"z": "hwc"}
    assert formats(build(input_io_formats=("hwc8+hwc",))) == {"x": "hwc"}
    assert build(input_io_formats=("fp16:hwc+chw",)).record["options"]["input_io_formats"] == ["fp16:chw"]  # type: ignore[index]


def test_a_network_in_which_the_host_steps_in() -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "relu"), helper.make_node("NonZero", ["y"], ["i"], "find")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 2]), helper.make_tensor_value_info("i", TensorProto.INT64, [4, "count"])],
    )  # fmt: skip
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    engine = trtcli.build(data, trtcli.BuildConfig(optimization_level=0, input_io_formats=("hwc8",), output_io_formats=("hwc", "chw")), device="cpu")
    x = X[:1, :, :4, :2]
    found = engine.create_execution_context().execute({"x": x})
    np.testing.assert_array_equal(found["y"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["i"], np.nonzero(np.maximum(x, 0)))


def test_files_hold_memory_and_reports_hold_the_model_s_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.onnx").write_bytes(model().SerializeToString())
    held = np.zeros((2, 8, 6, 8), np.float16)
    held[..., :3] = X.astype(np.float16).transpose(0, 2, 3, 1)
    held.tofile("x.raw")
    y, z = wanted(X.astype(np.float16))
    y.transpose(0, 2, 3, 1).tofile("y.raw")
    code = main(
        ["--onnx=m.onnx", *RUN, "--shapes=x:2x3x8x6", "--inputIOFormats=fp16:hwc8", "--outputIOFormats=hwc,chw", "--loadInputs=x:x.raw",
         "--includeDataTransfers", "--exportOutput=o.json", "--exportLayerInfo=l.json", "--dumpRawBindingsToFile", "--dumpOptimizationProfile",
         "--profilingVerbosity=detailed", "--loadRefOutputs=y:y.raw", "--accuracyThreshold=0.01", "--saveEngine=e.engine", "--exportReport=r.html"]
    )  # fmt: skip
    text = capsys.readouterr().out
    assert code == 0, text
    assert "Input x: FP16 2x3x8x6, Channels last, padded to a multiple of 8 (hwc8): 2x8x6x8 in memory" in text
    assert "Output y: FP32 2x5x8x6, Channels last (hwc): 2x8x6x5 in memory" in text
    assert "Model input x (profile 0): min=2x3x8x6" in text and "Accuracy of y: l0 loss 0" in text
    first = json.loads(Path("o.json").read_text())[0]
    assert first["dimensions"] == "2x5x8x6"
    np.testing.assert_allclose(first["values"], y.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.fromfile("x.input.2.3.8.6.FP16.raw", np.float16), held.ravel())
    np.testing.assert_allclose(np.fromfile("y.output.2.5.8.6.FP32.raw", np.float32), y.transpose(0, 2, 3, 1).ravel(), rtol=1e-4, atol=1e-5)
    layers = json.loads(Path("l.json").read_text())
    assert [one["Format"] for one in layers["I/O Tensors"]][1:] == ["Channels last (hwc)", "Row major linear"]
    assert "x: FP16 2x3x8x6, Channels last, padded to a multiple of 8 (hwc8)" in Path("r.html").read_text()
    x = layers["I/O Tensors"][0]
    assert (x["Dimensions"], x["DataType"]) == ([2, 3, 8, 6], "FP16")
    assert x["ProfileInfo"][0]["Format"] == "Channels last, padded to a multiple of 8 (hwc8)" and x["ProfileInfo"][0]["OptShape"] == [2, 3, 8, 6]
    first = layers["Layers"][0]
    assert first["Inputs"][0]["Format"] == x["ProfileInfo"][0]["Format"] and first["Inputs"][0]["Dimensions"] == [2, 3, 8, 6]
    assert first["Reformat"] == "x is hwc8: asked for by --inputIOFormats"
    assert main(["verify", "e.engine", "--device=cpu"]) == 0
    assert main(["inspect", "e.engine"]) == 0 and "FP16 2x3x8x6, Channels last, padded" in capsys.readouterr().out


def test_requests_of_changing_batch(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    code = main(
        [f"--onnx={tmp_path / 'm.onnx'}", "--device=cpu", "--builderOptimizationLevel=0", "--shapes=x:1x3x8x6", "--inputIOFormats=hwc8",
         "--outputIOFormats=hwc8,chw", "--requestRate=2000", "--maxBatch=4", "--duration=0.05", "--warmUp=0", "--iterations=5", "--includeDataTransfers"]
    )  # fmt: skip
    assert code == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "text"),
    [(("--inputIOFormats=fp16:chw32",), "Invalid TensorFormat chw32: vectors of channels and DLA's formats are not done; it can be chw, hwc, hwc8, hwc16, dhwc, dhwc8"),
     (("--inputIOFormats=hwc9",), "Invalid TensorFormat hwc9: it can be"), (("--inputIOFormats=fp17:chw",), "Invalid data type fp17 in 'fp17:chw': it can be fp32"),
     (("--outputIOFormats=chw,chw,chw",), "--outputIOFormats names 3 formats: give 2, for y, z, or one for all"),
     (("--outputIOFormats=fp16:chw+fp32:hwc",), "names 2 types: a tensor has one"),
     (("--inputIOFormats=int32:chw",), "--inputIOFormats: input 'x' is FP32 in the model and cannot be INT32")],
)  # fmt: skip
def test_what_is_not_done_is_refused(tmp_path: Path, capsys: Captured, flags: tuple[str, ...], text: str) -> None:
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    assert main([f"--onnx={tmp_path / 'm.onnx'}", *RUN, *flags]) != 0
    assert text in "".join(capsys.readouterr())


def test_a_file_with_an_impossible_format_is_refused(engine: Engine) -> None:
    for formats in ({"w": Format("hwc")}, {"x": Format("hwc7")}, {"x": Format("dhwc")}):
        bad = replace(engine, network=replace(engine.network, formats=formats))
        with pytest.raises(EngineError, match="cannot have format"):
            Engine.deserialize(bad.serialize())


def test_a_text_is_no_tuple() -> None:
    with pytest.raises(ValueError, match="input_io_formats='fp16:hwc8': give a tuple with a text per tensor"):
        build(input_io_formats="fp16:hwc8")
    with pytest.raises(ValueError, match="give a tuple with a text per tensor"):
        build(output_io_formats=(16,))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["hwc", "hwc8", "hwc16"])
def test_formats_on_a_gpu(layout: str) -> None:
    engine = build("0", 1, fp16=True, input_io_formats=(f"fp16:{layout}",), output_io_formats=(f"fp16:{layout}", "chw"))
    context = engine.create_execution_context()
    half = X.astype(np.float16)
    for name, value in zip(("y", "z"), wanted(half), strict=True):
        np.testing.assert_allclose(context.execute({"x": half})[name].astype(np.float32), value, rtol=1e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(("layout", "held"), [("hwc", (3, 5)), ("hwc8", (8, 8))])
def test_torch_s_channels_last_tensors_are_taken_as_they_are(layout: str, held: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    engine = build("0", 1, fp16=True, input_io_formats=(f"fp16:{layout}",), output_io_formats=(f"fp16:{layout}", "chw"))
    context = engine.create_execution_context()
    memory = [torch.full((2, 8, 6, channels), float("nan"), device="cuda", dtype=torch.half) for channels in held]
    x, y = (one[..., :channels].permute(0, 3, 1, 2) for one, channels in zip(memory, (3, 5), strict=True))
    x.copy_(torch.from_numpy(X))
    z = torch.empty((2, 5, 1, 1), device="cuda")
    context.set_input_shape("x", X.shape)
    for name, tensor in (("x", x), ("y", y), ("z", z)):
        context.set_tensor_address(name, tensor)
    torch.cuda.synchronize()
    context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    np.testing.assert_allclose(y.float().cpu().numpy(), wanted(X.astype(np.float16))[0], rtol=1e-2, atol=2e-2)
    assert not memory[1][..., 5:].any()
