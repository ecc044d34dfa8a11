"""Optional fusions stay where a measurement says so."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fusion.importer import import_onnx
from fusion.ops import Convolution, SeparableConvolution
from fusion.passes import FusionOptions, optimize
from runtime.devices import open_device
from runtime.engine import ON_HOST, InputRange
from runtime.views import Sharing
from tactics.select import Decision
from tactics.tactic import DeviceSpec
from tests.catalogue import Row, model
from tests.harness.log import Lines
from tests.models import onnxruntime_outputs
from tests.quantized import last_scale, mobilenet, quantized
from trtcli.builder import build, measured
from trtcli.builder.choose import Choices
from trtcli.builder.measured import Chosen
from trtcli.builder.workloads import workloads_at
from trtcli.config import BuildConfig

SIBLINGS = Row(
    "siblings", "a = Conv(x, w1)\nb = Conv(x, w2)\nc = Relu(a)\nd = Relu(b)\ne = GlobalMaxPool(c)\nf = GlobalMaxPool(d)\ny = Add(e, f)", "",
    inputs={"x": (1, 8, 6, 6)}, values={"w1": (8, 8, 1, 1), "w2": (8, 8, 1, 1)},
)  # fmt: skip


@pytest.mark.parametrize(("gain", "disabled", "joined"), [(-1e6, (), True), (2.0, (), False), (-1e6, (("sibling-convolutions", ""),), False)])
def test_siblings(gain: float, disabled: tuple, joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MIN_GAIN", gain)
    device, log, data = open_device("cpu"), Lines(), model(SIBLINGS)
    engine = build(data, BuildConfig(avg_timing=1, disable_fusion=disabled), device, log=log)
    names = [layer.name for layer in engine.network.layers]
    assert ("Conv0 + Relu2 + Conv1 + Relu3" in names) == joined
    assert any(line.startswith("Measured fusions: 1 sibling-convolutions: ") for line in log) == joined
    assert not any(plan.cached for plan in engine.layers), "all was timed in this build"
    assert any("sibling-convolutions: Conv0 + Relu2, Conv1 + Relu3 -> Conv0" in one for one in engine.record["fusions"]) == joined
    if not joined:
        misses = [miss for one in engine.record["misses"].values() for miss in one if miss["rule"] == "sibling-convolutions"]
        why = {miss["condition"]: miss["detail"] for miss in misses}
        assert "us before" in why["measured"] if not disabled else "--disableFusion=sibling-convolutions" in why["disabled"]
    x = np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)
    found = engine.create_execution_context(device).execute({"x": x})
    expected = onnxruntime_outputs(onnx.load_from_string(data), {"x": x})
    np.testing.assert_allclose(found["y"], expected["y"], rtol=2e-5, atol=2e-5)


def test_what_costs_other_layers_more_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(chosen: Chosen, nodes: object = None, names: object = ()) -> float:
        joined = sum(isinstance(layer.op, Convolution) for layer in chosen.network.layers) == 1
        return float(joined if nodes is None else not joined) + 1

    monkeypatch.setattr(measured, "seconds_of", seconds)
    log = Lines()
    engine = build(model(SIBLINGS), BuildConfig(avg_timing=1), open_device("cpu"), log=log)
    assert "Measured fusions: none; what 1 would save, other layers lose" in log
    assert sum(isinstance(layer.op, Convolution) for layer in engine.network.layers) == 2 and engine.record["optionalFusions"] is None
    missed = [miss for misses in engine.record["misses"].values() for miss in misses if miss["rule"] == "sibling-convolutions"]
    assert {(miss["condition"], miss["detail"]) for miss in missed} == {
        ("measured", "all layers together 1000000.0 us before, 2000000.0 us after")
    }


SEPARABLE = Row(
    "separable", "a = Conv<group=8, pads=[1,1,1,1]>(x, f)\nb = Relu(a)\nc = Conv(b, w)\ny = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)", "",
    values={"f": (8, 1, 3, 3), "w": (8, 8, 1, 1)},
)  # fmt: skip


def test_what_takes_the_place_of_a_fusion_that_lost_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MIN_GAIN", 2.0)
    log = Lines()
    engine = build(model(SEPARABLE), BuildConfig(avg_timing=1), open_device("cpu"), log=log)
    assert [layer.op.layer_type for layer in engine.network.layers] == ["Convolution", "Convolution", "Pooling"]
    timed = [line for line in log if "us before" in line]
    assert [line.split(":")[0] for line in timed] == ["separable-convolution", "convolution-pooling"]
    assert "measured" in {miss["condition"] for misses in engine.record["misses"].values() for miss in misses}


def test_low_levels_try_nothing() -> None:
    log = Lines()
    build(model(SIBLINGS), BuildConfig(optimization_level=2, avg_timing=1), open_device("cpu"), log=log)
    assert not any("Measured" in line or "sibling" in line for line in log)


def test_layers_without_times_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where --buildBudget is used up, a changed network would seem to cost nothing."""
    monkeypatch.setattr(measured, "MIN_GAIN", -1e6)
    log = Lines()
    build(model(SIBLINGS), BuildConfig(avg_timing=1, build_budget=1e-9), open_device("cpu"), log=log)
    assert not any("Measured" in line or "sibling" in line for line in log)
    assert sum(line.startswith("--buildBudget=1e-09 was used up") for line in log) == 1


def test_what_falls_to_the_host_is_no_gain() -> None:
    fused = optimize(import_onnx(model(SIBLINGS)), FusionOptions(device="cpu"))
    count = len(fused.network.layers)
    quick, host = Decision("cuda.x", (), 1e-6, (), False, {}), Decision(ON_HOST, (), math.nan, (), False, {})
    workloads = workloads_at(fused.network, {"x": InputRange(*[(1, 8, 6, 6)] * 3)}, "opt", BuildConfig(), {})
    before, after = (Choices((workloads,), ((one, *[quick] * (count - 1)),), Sharing({}, {})) for one in (quick, host))
    nodes = fused.network.layers[0].origins
    assert math.isinf(measured.seconds_of(Chosen(fused, (), after), nodes)) and math.isfinite(measured.seconds_of(Chosen(fused, (), after)))
    other = replace(after, workloads=((replace(workloads[0], tf32=not workloads[0].tf32), *workloads[1:]),))
    assert measured.different_seconds(before, other) == (1e-6, math.inf)


def test_a_reformat_that_a_fusion_takes_away_counts() -> None:
    """It computes no ONNX node, so nodes alone do not tell."""
    data = model(Row("planes", "c = Conv<pads=[1,1,1,1]>(x, w)\ny = Relu(c)", "", values={"w": (8, 8, 3, 3)}))
    fused = optimize(import_onnx(data), FusionOptions(device="cuda"))
    changed = optimize(import_onnx(data), FusionOptions(device="cuda", enabled=("convolution-planes",)))
    site = changed.applied[-1]
    assert site.rule == "convolution-planes" and len(site.layers) == 2 and len(fused.network.layers) == 3
    profile = {"x": InputRange(*[(2, 8, 6, 6)] * 3)}
    before, after = (
        Chosen(one, (), Choices((workloads_at(one.network, profile, "opt", BuildConfig(), {}),), ([Decision("cuda.x", (), 1e-6, (), False, {})] * len(one.network.layers),), Sharing({}, {})))
        for one in (fused, changed)
    )  # fmt: skip
    nodes = fused.network.layers[1].origins
    assert measured.seconds_of(before, nodes) == 1e-6 and measured.seconds_of(before, nodes, site.layers) == 2e-6
    assert measured.seconds_of(after, nodes, site.layers) == 1e-6
    middle, device = 4 * 2 * 8 * 6 * 6, DeviceSpec("cuda", "test", l2_bytes=1 << 20, bandwidth=1e9)
    assert measured.cached_seconds(before, after, nodes, device) == 0 < measured.cached_seconds(before, after, nodes, device, site.layers) == middle / 1e9


INCEPTION = Row(
    "inception", "a = Conv(x, w1)\nb = Relu(a)\nc = Conv(x, w2)\nd = Relu(c)\ne = Conv<pads=[1,1,1,1]>(b, w3)\nf = Conv<pads=[2,2,2,2]>(d, w4)\n"
    "g = Conv(x, w5)\nh = Concat<axis=1>(e, f, g)\nk = Conv(h, w6)\ny = Relu(k)", "",
    inputs={"x": (2, 32, 9, 11)}, values={"w1": (24, 32, 1, 1), "w2": (16, 32, 1, 1), "w3": (32, 24, 3, 3), "w4": (16, 16, 5, 5), "w5": (16, 32, 1, 1),
                                          "w6": (32, 64, 1, 1)},
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize(("fp16", "tolerance"), [(False, 1e-5), (True, 1e-2)])
def test_siblings_of_channels_last_images(fp16: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MIN_GAIN", -1e6)
    device, log, data = open_device("0"), Lines(), model(INCEPTION)
    engine = build(data, BuildConfig(avg_timing=1, tf32=False, fp16=fp16), device, log=log)
    plans = {layer.name: plan.tactic for layer, plan in zip(engine.network.layers, engine.layers, strict=True)}
    joined = next(name for name in plans if "Conv0" in name and "Conv2" in name)
    assert "Conv6" not in joined, "a concatenation has that result in place"
    assert [plans[name] for name in plans if name.endswith(" part") or name.startswith("Concat")] == ["view"] * 3
    x = np.random.default_rng(0).standard_normal((2, 32, 9, 11)).astype(np.float32)
    found = engine.create_execution_context(device).execute({"x": x})["y"]
    expected = onnxruntime_outputs(onnx.load_from_string(data), {"x": x})["y"]
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


STEM = Row(
    "stem", "a = Conv<strides=[2,2], pads=[3,3,3,3]>(x, w1, b1)\nb = Relu(a)\nc = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(b)\n"
    "d = Conv<pads=[1,1,1,1]>(c, w2)\ne = Add(d, c)\nf = Relu(e)\ny = GlobalAveragePool(f)", "",
    inputs={"x": (2, 3, 27, 30)}, values={"w1": (24, 3, 7, 7), "b1": (24,), "w2": (24, 24, 3, 3)},
)  # fmt: skip


@pytest.mark.parametrize("device_name", ["cpu", pytest.param("0", marks=pytest.mark.gpu)])
def test_convolution_and_pooling(device_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MIN_GAIN", -1e6)
    device, log, data = open_device(device_name), Lines(), model(STEM)
    engine = build(data, BuildConfig(avg_timing=1, tf32=False), device, log=log)
    joined = [layer.name for layer in engine.network.layers if layer.op.layer_type == "ConvolutionPooling"]
    last = ["Conv3 + Add4 + Relu5 + GlobalAveragePool6"] if device.spec.kind == "cuda" else []  # a reduction on the CPU
    assert joined == ["Conv0 + Relu1 + MaxPool2", *last]
    x = np.random.default_rng(0).standard_normal((2, 3, 27, 30)).astype(np.float32)
    found = engine.create_execution_context(device).execute({"x": x})
    np.testing.assert_allclose(found["y"], onnxruntime_outputs(onnx.load_from_string(data), {"x": x})["y"], rtol=1e-4, atol=1e-4)


def test_a_pin_may_name_what_a_measured_fusion_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MIN_GAIN", -1e6)
    log = Lines()
    pins = (("Conv0 + Relu1 + MaxPool2", "cpu.conv.pool"), ("Conv7", "cpu.conv.im2col"))
    engine = build(model(STEM), BuildConfig(avg_timing=1, pin_tactic=pins, tf32=False), open_device("cpu"), log=log)
    assert "cpu.conv.pool" in [plan.tactic for plan in engine.layers]
    assert [line for line in log if "--pinTactic" in line] == ["--pinTactic: no layer is named 'Conv7' after fusion"]


@pytest.mark.parametrize("device_name", ["cpu", pytest.param("0", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("gain", [-1e6, 2.0])
def test_depthwise_separable_pairs(device_name: str, gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MIN_GAIN", gain)
    model = quantized(mobilenet(3), (1, 3, 32, 32), "int8")
    device, log = open_device(device_name), Lines()
    engine = build(model.SerializeToString(), BuildConfig(avg_timing=1, tf32=False), device, log=log)
    joined = [layer for layer in engine.network.layers if isinstance(layer.op, SeparableConvolution)]
    assert len(joined) == (3 if gain < 0 else 0)
    if gain > 0:
        why = [miss for misses in engine.record["misses"].values() for miss in misses if miss["rule"] == "separable-convolution"]
        assert len(why) >= 3 and all(miss["condition"] == "measured" and "us before" in miss["detail"] for miss in why)
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    found, expected = engine.create_execution_context(device).execute(x), onnxruntime_outputs(model, x)
    for name, wanted in expected.items():
        assert np.abs(found[name] - wanted).max() <= 2.01 * last_scale(model)  # a value between two steps may go to the other one in each layer


def test_what_the_next_layer_finds_in_the_cache_is_not_saved() -> None:
    before = optimize(import_onnx(model(SEPARABLE)), FusionOptions(device="cpu"))
    after = optimize(import_onnx(model(SEPARABLE)), FusionOptions(device="cpu", enabled=("separable-convolution",)))
    now, changed = (
        Chosen(fused, (), Choices((workloads_at(fused.network, {"x": InputRange(*[(2, 8, 6, 6)] * 3)}, "opt", BuildConfig(), {}),), ((),), Sharing({}, {})))
        for fused in (before, after)
    )
    middle, device = 4 * 2 * 8 * 6 * 6, DeviceSpec("cuda", "test", l2_bytes=1 << 20, bandwidth=1e9)
    nodes = after.network.layers[0].origins
    assert measured.cached_seconds(now, changed, nodes, device) == middle / 1e9
    assert measured.cached_seconds(now, changed, nodes, replace(device, l2_bytes=middle)) == 0, "half of the cache is for others"
    assert measured.cached_seconds(now, now, nodes, device) == 0


# Two layers of a dense block, each of which normalises all that came before, and a gate whose image others read; then a product behind a GELU.
PRE_ACTIVATION = Row(
    "pre-activation", "a = Concat<axis=1>(x, z)\nb = BatchNormalization(a, g1, b1, m1, v1)\nc = Relu(b)\nd = Conv(c, w1)\ne = Relu(d)\nf = Conv<pads=[1,1,1,1]>(e, w2)\n"
    "h = Concat<axis=1>(x, z, f)\ni = BatchNormalization(h, g2, b2, m2, v2)\nj = Relu(i)\nk = Conv(j, w3)\nl = GlobalAveragePool(k)\nm = Sigmoid(l)\nn = Mul(k, m)\n"
    "o = Conv(n, w4)\np = GlobalAveragePool(o)\nq = Flatten(p)\nr = Sin(q)\ns = Gelu(r)\nt = MatMul(s, w5)\ny = Concat<axis=1>(t, r)", "",
    inputs={"x": (2, 24, 9, 11), "z": (2, 8, 9, 11)}, opset=20,
    values={"g1": (32,), "b1": (32,), "m1": (32,), "v1": np.linspace(0.5, 2, 32), "w1": (16, 32, 1, 1), "w2": (8, 16, 3, 3), "g2": (40,), "b2": (40,), "m2": (40,),
            "v2": np.linspace(0.5, 2, 40), "w3": (24, 40, 1, 1), "w4": (32, 24, 1, 1), "w5": (32, 16)},
)  # fmt: skip


@pytest.mark.parametrize(("device_name", "fp16", "tolerance"), [("cpu", False, 1e-5)] + [pytest.param("0", *one, marks=pytest.mark.gpu) for one in ((False, 1e-5), (True, 2e-2))])
@pytest.mark.parametrize("gain", [-1e6, 2.0])
def test_prologues_of_products(device_name: str, fp16: bool, tolerance: float, gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MIN_GAIN", gain)
    device, log, data = open_device(device_name), Lines(), model(PRE_ACTIVATION)
    engine = build(data, BuildConfig(avg_timing=1, tf32=False, fp16=fp16), device, log=log)
    joined = [set(layer.origins) for layer in engine.network.layers if layer.op.layer_type == "PrologueProduct"]
    wanted = [{"BatchNormalization1", "Relu2", "Conv3", "Relu4"}, {"BatchNormalization7", "Relu8", "Conv9"}, {"Mul12", "Conv13"}, {"Gelu17", "MatMul18"}]
    assert len(joined) == (4 if gain < 0 else 0) and all(some <= found for some, found in zip(wanted, joined, strict=False))
    if gain > 0:
        why = [miss for misses in engine.record["misses"].values() for miss in misses if miss["rule"] in ("matmul-prologue", "convolution-prologue")]
        assert len(why) >= 4 and all(miss["condition"] == "measured" and "us before" in miss["detail"] for miss in why)
    random = np.random.default_rng(0)
    x = {name: random.standard_normal(shape).astype(np.float32) for name, shape in PRE_ACTIVATION.inputs.items()}
    found = engine.create_execution_context(device).execute(x)["y"]
    expected = onnxruntime_outputs(onnx.load_from_string(data), x)["y"]
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)
