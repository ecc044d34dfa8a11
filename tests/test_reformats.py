"""Casts and changes of layout in one layer (transpose-pointwise, transpose-epilogue), in whole networks of narrow types on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import pytest

from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import Reformat
from fusion.passes import FusionOptions, FusionResult, optimize
from fusion.precision import LayerTypes
from fusion.serial import from_json, to_json
from runtime.devices import open_device
from runtime.engine import Engine
from tests.catalogue import Row, model
from tests.fusion.networks import assert_same
from tests.models import onnxruntime_outputs, random_inputs
from trtcli.builder import build
from trtcli.config import BuildConfig
from trtcli.log import Silent
from trtcli.report.reformats import reformat_reason

CONV = "c = Conv<pads=[1,1,1,1]>(x, w)\ny = Relu(c)"


def _model(nodes: str = CONV, **options: object) -> bytes:
    return model(Row("reformat", nodes, "", values={"w": (16, 8, 3, 3)}, **options))  # type: ignore[arg-type]


def _narrow(data: bytes, disabled: tuple[str, ...] = (), precision: DataType = DataType.HALF) -> tuple[Network, FusionResult]:
    network = import_onnx(data)
    return network, optimize(network, FusionOptions(device="cuda", precision=precision, disabled=disabled))


@pytest.mark.parametrize("precision", [DataType.HALF, DataType.BF16])
def test_the_image_is_read_once(precision: DataType) -> None:
    _, result = _narrow(_model(), precision=precision)
    layer = result.network.layers[0]
    label = precision.label
    assert layer.name == f"x to {label} + reformat x.{precision.value} for Conv0 + Relu1" and layer.fusions == ("precision", "reformat", "transpose-pointwise")
    assert isinstance(layer.op, Reformat) and result.network.tensors[layer.outputs[0]].dtype is precision
    plain = _narrow(_model(), ("transpose-pointwise",), precision)[1].network
    assert [one.name for one in plain.layers[:2]] == [f"x to {label}", f"reformat x.{precision.value} for Conv0 + Relu1"]
    assert len(plain.layers) == len(result.network.layers) + 1
    assert_same(plain, result.network)
    assert from_json(to_json(layer.op)) == layer.op
    assert reformat_reason(cast(Engine, SimpleNamespace(network=result.network, record={})), layer).startswith(f"FP32 to {label}, to channels-last for Conv0 + Relu1: ")


def test_what_others_read_between_stays() -> None:
    _, result = _narrow(_model("c = Conv<pads=[1,1,1,1]>(x, w)\nt = Concat<axis=1>(c, x)\ny = Softmax<axis=2>(t)"))
    assert not any(isinstance(layer.op, Reformat) for layer in result.network.layers)
    assert any(miss.rule == "transpose-pointwise" and miss.condition == "shared" for misses in result.misses.values() for miss in misses)


def test_stems_read_planes_themselves() -> None:
    _, result = _narrow(model(Row("stem", CONV, "", inputs={"x": (2, 3, 8, 8)}, values={"w": (16, 3, 3, 3)})))
    assert result.network.layers[0].name == "x to FP16" and not any(isinstance(layer.op, Reformat) for layer in result.network.layers[:-1])


@pytest.mark.parametrize("precision", [DataType.HALF, DataType.BF16])
def test_a_float32_output_is_stored_narrow_and_cast_as_it_is_transposed(precision: DataType) -> None:
    _, result = _narrow(_model(), precision=precision)
    *_, conv, last = result.network.layers
    assert isinstance(last.op, Reformat) and last.name == "reformat y for the network output" and last.fusions == ("reformat", "transpose-epilogue")
    kinds = [result.network.tensors[name].dtype for name in (*last.inputs, *last.outputs)]
    assert kinds == [precision, DataType.FLOAT] and last.inputs == conv.outputs
    plain = _narrow(_model(), ("transpose-epilogue",), precision)[1].network
    assert plain.tensors[plain.layers[-1].inputs[0]].dtype is DataType.FLOAT and len(plain.layers) == len(result.network.layers)
    assert_same(plain, result.network, 1e-3 if precision is DataType.HALF else 1e-2)  # rounded to what the network computes in
    reason = reformat_reason(cast(Engine, SimpleNamespace(network=result.network, record={})), last)
    assert reason.startswith(f"{precision.label} to FP32, to channels-first for the network output: ")


def test_a_result_that_shall_be_float32_is_not_rounded_on_its_way() -> None:
    types = LayerTypes(outputs=(("Conv0", DataType.FLOAT),))
    options = FusionOptions(device="cuda", precision=DataType.HALF, layer_types=types)
    network = optimize(import_onnx(_model("y = Conv<pads=[1,1,1,1]>(x, w)")), options).network
    assert [network.tensors[name].dtype for name in (*network.layers[-1].inputs, *network.layers[-1].outputs)] == [DataType.FLOAT] * 2


def test_where_nothing_moves_the_wide_type_is_stored_at_once() -> None:
    misses = _narrow(_model("c = Conv(x, w)\ny = GlobalAveragePool(c)"))[1].misses
    assert any(miss.rule == "transpose-epilogue" and miss.condition == "no gain" for found in misses.values() for miss in found), misses


@pytest.mark.gpu
@pytest.mark.parametrize("flag", ["fp16", "bf16"])
def test_engines_convert_and_transpose_at_once(flag: str) -> None:
    device, data = open_device("0"), _model(inputs={"x": (3, 8, 13, 9)})
    engine = build(data, BuildConfig(optimization_level=1, **{flag: True}), device, log=Silent())  # type: ignore[arg-type]
    found = [number for number, layer in enumerate(engine.network.layers) if isinstance(layer.op, Reformat)]
    assert found and all(engine.layers[number].tactic.startswith("cuda.reformat.") for number in found)
    assert "FP32 to" in reformat_reason(engine, engine.network.layers[found[0]])
    inputs = random_inputs(import_onnx(data))
    result = engine.create_execution_context(device).execute(inputs)["y"]
    wanted = onnxruntime_outputs(onnx.load_from_string(data), inputs)["y"]
    assert np.linalg.norm(result - wanted) < (2e-3 if flag == "fp16" else 1.6e-2) * np.linalg.norm(wanted)
