"""Layouts by measurement through the builder, on the CPU device (its NumPy tactics compute either layout)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fusion.dtypes import DataType
from fusion.layout import estimated_layouts
from fusion.layout_choice import LayoutTimes
from fusion.network import Network
from fusion.ops import Convolution, Padding, Pooling
from fusion.passes import FusionOptions, FusionResult, optimize
from fusion.reference import run
from runtime.devices import open_device
from runtime.engine import Engine, InputRange, LayerPlan
from runtime.workloads import workload_of
from tests.fusion.networks import Build, assert_same, random_inputs
from tests.fusion.test_layout_choice import NETWORKS
from tests.harness.log import Lines
from trtcli.builder import measured as deciding
from trtcli.builder.choose import choose
from trtcli.builder.layouts import chosen_layouts, layout_record, measured_times
from trtcli.builder.measured import Chosen, measured_layouts
from trtcli.builder.search import Ask
from trtcli.builder.setting import Setting, new_setting
from trtcli.config import BuildConfig
from trtcli.report.layers import layer_info_lines
from trtcli.report.reformats import reformat_reason

DEVICE = open_device("cpu")


def fused(network: Network, channels_last: tuple[str, ...] | None = None) -> FusionResult:
    return optimize(network, FusionOptions(device="cuda", channels_last=channels_last, disabled=("convolution-pointwise", "pooling-pointwise")))


def profiles_of(network: Network) -> list[dict[str, InputRange]]:
    return [{name: InputRange(*[tuple(network.tensors[name].shape)] * 3) for name in network.inputs}]


def measured(network: Network, seconds, monkeypatch: pytest.MonkeyPatch, level: int = 3):  # noqa: ANN001
    """What the builder makes of times: ``seconds`` of (name, whether channels-last)."""
    log = Lines()
    setting = new_setting(BuildConfig(optimization_level=level, avg_timing=1), DEVICE, log, lambda _: None)
    first = fused(network)
    choices = choose(first.network, profiles_of(network), setting)
    turn: dict[str, int] = {}

    def alone(asks: Sequence[Ask], _: Setting) -> list[float]:
        found = []
        for one in asks:
            turn[one.layer] = turn.get(one.layer, 0) + 1
            found.append(seconds(one.layer, turn[one.layer] == 2))
        return found

    monkeypatch.setattr(deciding, "seconds_alone", alone)
    again = lambda log, last: (fused(network, last), ())
    return first, *measured_layouts(Chosen(first, (), choices), again, profiles_of(network), setting), log


def test_low_levels_keep_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    first, chosen, record, _ = measured(NETWORKS["branches"], lambda name, last: 1e-6, monkeypatch, level=2)
    assert chosen.fused is first and record == {"layers": {}, "tensors": {}, "channelsLast": None}


def test_another_choice_is_kept_only_where_the_network_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["branches"]
    slow_last = lambda name, last: 1e-3 if last and not name.startswith("reformat") else 1e-6
    for faster in (True, False):
        monkeypatch.setattr(deciding, "different_seconds", lambda a, b, faster=faster: (2.0, 1.0) if faster else (1.0, 2.0))
        first, chosen, record, log = measured(network, slow_last, monkeypatch)
        assert record["layers"]["exp"] == [pytest.approx(1e-3), pytest.approx(1.0)]
        if faster:
            assert record["channelsLast"] == ["conv", "conv2"]
            assert "measured times save 1000000.0 us" in log[-1]
            assert len(chosen.choices.decisions[0]) == len(chosen.network.layers)
            assert_same(first.network, chosen.network, 1e-4)
        else:
            assert chosen.fused is first and record["channelsLast"] is None and "was not" in log[-1]


def test_the_estimate_may_be_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NETWORKS["chain"]
    last_layers = estimated_layouts(fused(network).planar or network, True)
    first, chosen, record, log = measured(
        network, lambda name, last: 1e-6 if last == (name in last_layers) else 1.0, monkeypatch
    )
    assert chosen.fused is first and record["channelsLast"] is None and "the estimate is the fastest" in log[-1]


def test_real_times_and_a_second_build_that_times_nothing(tmp_path: Path) -> None:
    network = NETWORKS["branches"]
    profiles, config = profiles_of(network), BuildConfig(avg_timing=1, timing_cache_file=str(tmp_path / "t.cache"))
    again = lambda log, last: (fused(network, last), ())
    records = []
    for strict in (False, True):
        setting = new_setting(replace(config, error_on_timing_cache_miss=strict), DEVICE, Lines(), lambda _: None)
        first = fused(network)
        chosen, record = measured_layouts(Chosen(first, (), choose(first.network, profiles, setting)), again, profiles, setting)
        assert record["layers"] and set(record["layers"]) <= {one.name for one in (first.planar or network).layers}
        assert all(value is None or value > 0 for pair in record["layers"].values() for value in pair)
        assert_same(first.network, chosen.network, 1e-4)
        records.append(record)
    assert records[0]["layers"] == records[1]["layers"] and not setting.timings.misses


def test_no_kernel_in_one_layout() -> None:
    planar = fused(NETWORKS["chain"]).planar
    assert planar is not None
    names = []

    def seconds(layers: Sequence[Ask]) -> list[float]:
        names.extend(one.layer for one in layers)
        return [math.inf if n == 1 else 1e-6 for n, _ in enumerate(layers)]

    times = measured_times(planar, lambda network, layer: workload_of(network, layer, {}, network.constants), seconds)
    assert times is not None and names[0] == names[1]
    assert math.isinf(times.layers[names[0]][1]) and layout_record(times, None)["layers"][names[0]][1] is None
    chosen = chosen_layouts(planar, times)
    assert chosen is not None and names[0] not in chosen


def casting_network() -> Network:
    """In float16: image -> cast -> padding with its edges -> convolution, whose result a maximum pooling reads and stores as float32."""
    build = Build()
    x = build.input("x", 2, 8, 12, 12)
    two, none, one = (2, 2), (0, 0), (1, 1)
    a = build.layer("first", Padding((0, 0, 1, 1), (0, 0, 1, 1), "edge"), x)
    c = build.layer("conv", Convolution(one, none, none, one), a, build.constant("w", (16, 8, 3, 3)))
    return build.network(build.layer("last", Pooling("max", two, two, none, none, one), c))


@pytest.mark.parametrize("disabled", [(), ("transpose-pointwise", "transpose-epilogue")])
def test_a_reformat_is_priced_with_the_cast_that_joins_it(disabled: tuple[str, ...]) -> None:
    planar = optimize(casting_network(), FusionOptions(device="cuda", precision=DataType.HALF)).planar
    assert planar is not None
    asked: list[Ask] = []
    by_layer = {"x to FP16": 3e-6, "first": 5e-6, "last": 5e-6}

    def seconds(layers: Sequence[Ask]) -> list[float]:
        asked.extend(layers)
        return [by_layer.get(one.layer, 10e-6) for one in layers]

    times = measured_times(planar, lambda network, layer: workload_of(network, layer, {}, network.constants), seconds, disabled)
    assert times is not None
    found = {one.layer: [type(ask.workload.op).__name__ for ask in asked if ask.layer == one.layer] for one in asked}
    types = {one.layer: [ask.workload.inputs[0].dtype.label for ask in asked if ask.layer == one.layer] for one in asked}
    output = planar.outputs[0]
    if disabled:
        assert found["reformat x"] == found[f"reformat {output}"] == ["Shuffle", "Shuffle"]
        assert times.tensors["x"] == times.tensors["x.float16"] == times.tensors[output] == (10e-6, 10e-6)
        return
    assert {name: kinds for name, kinds in found.items() if not name.startswith("reformat")} == {
        "x to FP16": ["Pointwise"] * 2, "first": ["Padding"] * 2, "last": ["Pooling"] * 2,
    }  # fmt: skip
    assert len(found) == 3 + len(times.tensors), "every layer and every tensor by itself, in both layouts"
    # Whether the cast runs before or behind the change of layout, both together are the joined layer's 10 us.
    assert found["reformat x"] == found["reformat x.float16"] == ["Reformat", "Reformat"] and types["reformat x.float16"] == ["FP32", "FP32"]
    assert times.tensors["x"] == times.tensors["x.float16"] == pytest.approx((7e-6, 7e-6))
    # The output is stored narrow, and cast as it is transposed.
    assert found[f"reformat {output}"] == ["Reformat", "Reformat"] and types[f"reformat {output}"] == ["FP16", "FP16"]
    assert times.tensors[output] == (10e-6, 10e-6)


def test_reports_say_why_a_layout_changes() -> None:
    network = fused(NETWORKS["branches"]).network
    times = LayoutTimes({"pool": (3e-6, math.inf)})
    plans = tuple(LayerPlan("cuda.x", seconds=1e-6, floor=1e-6) for _ in network.layers)
    profile = {name: InputRange(*[tuple(network.tensors[name].shape)] * 3) for name in network.inputs}
    record = {"layouts": layout_record(times, None), "options": {"profiling_verbosity": "detailed"}}
    engine = Engine(replace(network, constants={}), plans, {}, {}, (profile,), replace(DEVICE.spec, kind="cuda"), record=record)
    reasons = {layer.name: reformat_reason(engine, layer) for layer in network.layers}
    found = [reason for reason in reasons.values() if reason]
    assert found and all(reason.startswith("to channels-") for reason in found)
    assert any("pool takes 3.0 us channels-first, no kernel channels-last (measured)" in reason for reason in found)
    assert any("(estimated)" in reason for reason in found)
    assert sum("Reformat: to channels-" in line for line in layer_info_lines(engine)) == len(found)
    assert run(network, random_inputs(network))


@pytest.mark.gpu
def test_layouts_and_libraries_through_a_build_on_a_gpu() -> None:
    """Softmax over channels between two convolutions and the output: timed in both layouts; libraries compete where they are installed."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    import trtcli
    from fusion.importer import import_onnx
    from runtime.device import DeviceError
    from trtcli.report.inspection import engine_lines

    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((64, 16, 3, 3)) / 12, "v": random.standard_normal((16, 64, 1, 1)) / 8}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]), helper.make_node("Softmax", ["a"], ["b"], "softmax", axis=1),
        helper.make_node("Conv", ["b", "v"], ["y"], "conv2"), helper.make_node("Exp", ["b"], ["z"], "exp"),
    ]  # fmt: skip
    shapes = {"x": [2, 16, 32, 32], "y": [2, 16, 32, 32], "z": [2, 64, 32, 32]}
    x, y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph(nodes, "layouts", [x], [y, z], [numpy_helper.from_array(one.astype(np.float32), name) for name, one in weights.items()])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    engine = trtcli.build(data, BuildConfig(fp16=True, tactic_sources=("CUBLAS_LT", "CUDNN"), profiling_verbosity="detailed"), device="0")
    measured = engine.record["layouts"]["layers"]
    assert any("softmax" in name for name in measured), measured
    assert any(reformat_reason(engine, layer) for layer in engine.network.layers)
    context = engine.create_execution_context()
    try:
        context.device.library("CUDNN")
        assert any(dict(plan.sources).keys() == {"own", "CUDNN"} for plan in engine.layers)
        assert any("libraries competed for" in line for line in engine_lines(engine))
    except DeviceError:
        assert not any(plan.sources for plan in engine.layers)
    given = random.standard_normal(shapes["x"]).astype(np.float32)
    wanted = run(import_onnx(data), {"x": given})
    context.use_own_memory()
    context.write_tensor("x", given)
    stream = context.device.stream()
    context.execute_async_v3(stream)
    stream.synchronize()
    for name in ("y", "z"):
        found = context.read_tensor(name)
        assert np.linalg.norm(found - wanted[name]) <= 2e-3 * np.linalg.norm(wanted[name])
