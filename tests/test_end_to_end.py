"""Whole models from the ONNX file through an engine file to results, on both devices, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.device import Device
from runtime.devices import open_device
from runtime.engine import Engine
from tests.models import WHEEL_MODELS, light, onnxruntime_outputs, wheel_model
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent
from trtcli.zoo import LIGHT_MODELS

LARGE = ("bvlc_alexnet", "vgg19", "zfnet512")  # hundreds of megabytes of weights
# Per trained model: smallest, optimal and largest shape of its input, and one more that must work.
SHAPES = {
    "text_detection": ((1, 3, 32, 32), (1, 3, 96, 128), (1, 3, 160, 160), (1, 3, 128, 64)),
    "text_recognition": ((1, 3, 48, 32), (1, 3, 48, 96), (2, 3, 48, 160), (2, 3, 48, 64)),
    "text_orientation": ((1, 3, 48, 192), (2, 3, 48, 192), (4, 3, 48, 192), (3, 3, 48, 192)),
    "page_orientation": ((1, 3, 224, 224), (1, 3, 224, 224), (2, 3, 224, 224), (2, 3, 224, 224)),
    "file_type": ((1, 2048), (2, 2048), (4, 2048), (3, 2048)),
    "captcha": ((1, 3, 60, 160), (2, 3, 60, 160), (4, 3, 60, 160), (3, 3, 60, 160)),
}
DEVICES = ["cpu", pytest.param("0", marks=pytest.mark.gpu)]
BRIEF = {"tf32": False, "avg_timing": 2}  # results are looked at here, not times


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache") / "timings.json")


def _engine(model: Path | bytes, config: BuildConfig, device: Device, folder: Path) -> Engine:
    build(model, config, device, log=Silent()).save(folder / "model.engine")
    return Engine.load(folder / "model.engine")


def _compare(engine: Engine, device: Device, model: object, inputs: dict[str, np.ndarray], tolerance: float) -> None:
    context = engine.create_execution_context(device)
    for name, array in inputs.items():
        context.set_input_shape(name, array.shape)
    found = context.execute(inputs)
    for name, wanted in onnxruntime_outputs(model, inputs).items():  # type: ignore[arg-type]
        assert found[name].shape == wanted.shape
        assert found[name].dtype == wanted.dtype
        if wanted.dtype.kind == "f":
            assert np.ptp(wanted) > 0, "a constant output proves nothing"
            # Beside the relative error, one of single precision at 1: probabilities near 0 come from sums of larger terms.
            allowed = tolerance * np.linalg.norm(wanted) + 2.0**-22 * np.sqrt(wanted.size)
            error = np.linalg.norm(found[name].astype(np.float64) - wanted)
            assert error <= allowed, f"{name}: error {error:.2e}, {allowed:.2e} allowed"
        else:
            assert np.array_equal(found[name], wanted)


def _light(without_on_the_cpu: tuple[str, ...]) -> list[Any]:
    """(model, device) pairs."""
    pairs = [(name, device) for device in ("cpu", "0") for name in LIGHT_MODELS if device != "cpu" or name not in without_on_the_cpu]
    marks = {"cpu": [], "0": [pytest.mark.gpu]}
    return [pytest.param(name, device, marks=[*marks[device], *([pytest.mark.slow] if name in LARGE else [])]) for name, device in pairs]


@pytest.mark.parametrize(("name", "device_name"), _light(("vgg19",)))
def test_light_models(name: str, device_name: str, cache: str, tmp_path: Path) -> None:
    """VGG-19 on a GPU only: its file of 570 MB takes two cores as long as six other networks, and it has no layer that AlexNet has not."""
    device = open_device(device_name)
    model = light(name)
    # Timing the tactics of 500 MB of weights on two cores takes a minute and shows nothing that the smaller models do not.
    level = 0 if name in LARGE and device_name == "cpu" else 1
    config = BuildConfig(timing_cache_file=cache, optimization_level=level, **BRIEF)
    engine = _engine(model.SerializeToString(), config, device, tmp_path)
    shape = engine.profiles[0][engine.network.inputs[0]].opt
    inputs = {engine.network.inputs[0]: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    _compare(engine, device, model, inputs, 2e-5)


@pytest.mark.parametrize(("name", "device_name"), _light(("vgg19", "zfnet512")))
def test_light_models_without_any_fusion(name: str, device_name: str, cache: str, tmp_path: Path) -> None:
    """ZFNet on a GPU only, too: unfused it has the layers of AlexNet."""
    device = open_device(device_name)
    model = light(name)
    config = BuildConfig(timing_cache_file=cache, optimization_level=0, **BRIEF, disable_fusion=(("all", ""),))
    engine = _engine(model.SerializeToString(), config, device, tmp_path)
    assert not any(layer.fusions for layer in engine.network.layers if set(layer.fusions) != {"reformat"})
    shape = engine.profiles[0][engine.network.inputs[0]].opt
    inputs = {engine.network.inputs[0]: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    _compare(engine, device, model, inputs, 2e-5)


@pytest.mark.parametrize("fusions", ["all", "none"])
@pytest.mark.parametrize("device_name", DEVICES)
@pytest.mark.parametrize("name", WHEEL_MODELS)
def test_trained_models_with_dynamic_shapes(name: str, device_name: str, fusions: str, cache: str, tmp_path: Path) -> None:
    device = open_device(device_name)
    path = wheel_model(name)
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {one.name for one in graph.initializer}
    (given,) = (one for one in graph.input if one.name not in weights)
    small, optimal, large, other = SHAPES[name]
    static = all(dim.dim_value for dim in given.type.tensor_type.shape.dim)
    shapes = {} if static else dict(
        min_shapes={given.name: small}, opt_shapes={given.name: optimal}, max_shapes={given.name: large}
    )  # fmt: skip
    disabled, level = ((("all", ""),), 0) if fusions == "none" else ((), 1)
    config = BuildConfig(timing_cache_file=cache, optimization_level=level, disable_fusion=disabled, **BRIEF, **shapes)  # type: ignore[arg-type]
    engine = _engine(path, config, device, tmp_path)
    rng = np.random.default_rng(0)
    integer = engine.network.tensors[given.name].dtype.is_integer
    dtype = engine.network.tensors[given.name].dtype.numpy
    fixed = tuple(dim.dim_value for dim in given.type.tensor_type.shape.dim)
    for shape in dict.fromkeys([fixed] if static else [optimal, other, small][: 1 if fusions == "none" else 3]):
        values = rng.integers(0, 256, shape) if integer else rng.standard_normal(shape)
        _compare(engine, device, path, {given.name: values.astype(dtype)}, 1e-4)
