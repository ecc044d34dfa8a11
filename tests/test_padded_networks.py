"""Networks with odd channel counts whose channels are padded in memory: CUDA kernels in the planned memory, builds that measure, reports, refits."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import Concatenation, Convolution, Slice
from fusion.padded_channels import RULE, pad_channels, paddable
from fusion.passes import OPTIONAL, FusionOptions, FusionResult, optimize
from fusion.reference import run
from fusion.validation import validate
from runtime import resolution
from runtime.columns import TYPICAL, ask_kind
from runtime.cpu import CpuDevice
from runtime.engine import Engine, InputRange
from runtime.views import share_memory
from runtime.workloads import workload_of
from tactics.registry import tactic
from tactics.tactic import DeviceSpec, refusal
from tests.catalogue import Row, model
from tests.fusion.networks import random_inputs
from tests.harness.fiber import available
from tests.harness.log import Lines
from tests.harness.network import TACTICS, fiber_engine
from tests.harness.poisoned import compare_poisoned
from tests.quantized import mobilenet, quantized
from trtcli import builder
from trtcli.builder import fuse as fusing
from trtcli.builder import padding as deciding
from trtcli.builder import pipeline
from trtcli.builder.choose import choose
from trtcli.builder.measured import Chosen
from trtcli.builder.padding import PaddedChannels, measured_padding
from trtcli.builder.setting import new_setting
from trtcli.config import BuildConfig
from trtcli.log import Log
from trtcli.refitting import refit
from trtcli.report.inspection import engine_lines
from trtcli.report.layers import layer_objects

IMAGE = {"x": (1, 16, 6, 4)}
W3 = "<pads=[1,1,1,1]>"

NETWORKS = {
    one.name: one
    for one in (
        # A detection head: 255 would be large for this test, 21 is as odd.
        Row("head", f"a = Conv{W3}(x, w0, b0)\nar = Sigmoid(a)\nb = Conv{W3}(ar, w1)\nbr = Relu(b)\ny = Conv(br, w2)", "",
            inputs=IMAGE, values={"w0": (37, 16, 3, 3), "b0": (37,), "w1": (53, 37, 3, 3), "w2": (21, 53, 1, 1)}),
        # A pruned bottleneck: the sum, a scale per channel that is computed, a depthwise convolution, pooling.
        Row("pruned", f"a = Conv(x, w0)\nar = Relu(a)\nb = Conv<group=37,pads=[1,1,1,1]>(ar, w1)\ng = GlobalAveragePool(b)\nh = Conv(g, w2)\ns = Sigmoid(h)\n"
            f"m = Mul(b, s)\nc = Conv(m, w3)\nd = Add(c, ar)\ndr = Relu(d)\np = MaxPool<kernel_shape=[2,2],strides=[2,2]>(dr)\ny = Conv{W3}(p, w4)", "",
            inputs=IMAGE, values={"w0": (37, 16, 1, 1), "w1": (37, 1, 3, 3), "w2": (37, 37, 1, 1), "w3": (37, 37, 1, 1), "w4": (8, 37, 3, 3)}),
        # What YOLO's heads do: three anchors of seven numbers each, which become the last axis.
        Row("anchors", f"a = Conv{W3}(x, w0)\nar = Relu(a)\nb = Conv(ar, w1)\nr = Reshape(b, s)\nt = Transpose<perm=[0,1,3,4,2]>(r)\ny = Sigmoid(t)", "",
            inputs=IMAGE, values={"w0": (37, 16, 3, 3), "w1": (21, 37, 1, 1), "s": np.array([1, 3, 7, 6, 4])}),
        # Half of 42 channels goes through a convolution, and all are joined with what it makes.
        Row("split", f"a = Conv(x, w0)\nar = Sigmoid(a)\np, q = Split<axis=1,num_outputs=2>(ar)\nb = Conv{W3}(q, w1)\nbr = Relu(b)\n"
            "j = Concat<axis=1>(p, q, br)\ny = Conv(j, w2)", "",
            inputs=IMAGE, values={"w0": (42, 16, 1, 1), "w1": (21, 21, 3, 3), "w2": (8, 63, 1, 1)}),
        # Rows of odd lengths: matrix products, with a sum and a normalisation between.
        Row("mlp", "a = MatMul(x, w0)\nar = Relu(a)\nb = MatMul(ar, w1)\ns = Add(b, ar)\nn = LayerNormalization<axis=-1>(s, g, h)\nc = MatMul(n, w2)\ny = Tanh(c)", "",
            inputs={"x": (9, 13)}, values={"w0": (13, 37), "w1": (37, 37), "g": (37,), "h": (37,), "w2": (37, 21)}),
        # Parts of 13 and 21 channels joined, and read by a softmax over the channels too.
        Row("joined", f"a = Conv{W3}(x, w0)\nar = Relu(a)\nb = Conv(x, w1)\nbr = Tanh(b)\nj = Concat<axis=1>(ar, br)\nc = Conv{W3}(j, w2)\nt = Softmax<axis=1>(j)\n"
            "d = Conv(t, w3)\ny = Add(c, d)", "",
            inputs=IMAGE, values={"w0": (13, 16, 3, 3), "w1": (21, 16, 1, 1), "w2": (8, 34, 3, 3), "w3": (8, 34, 1, 1)}),
    )
}  # fmt: skip


def fused(network: Network, precision: DataType | None = None) -> FusionResult:
    return optimize(network, FusionOptions(device="cuda", precision=precision))


@pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_kernels_in_the_memory_of_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution.registry, "tactic", lambda one: TACTICS.get(one) or tactic(one))
    row = NETWORKS[name]
    network = fused(import_onnx(model(row))).network
    found = pad_channels(network, paddable(network))
    assert found.held and any(RULE in layer.fusions for layer in found.network.layers)
    compare_poisoned(row, fiber_engine(found.network), CpuDevice(), 1e-5)


@pytest.mark.parametrize("precision", [None, DataType.HALF])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_pads_or_cuts_channels_where_kernels_take_columns(name: str, precision: DataType | None) -> None:
    network = fused(import_onnx(model(NETWORKS[name])), precision).network
    found = pad_channels(network, paddable(network))
    sharing = share_memory(found.network, ask=ask_kind(found.network, TYPICAL["cuda"]))
    moving = [layer.name for layer in found.network.layers if isinstance(layer.op, Concatenation | Slice) and layer.name not in sharing.views]
    copied = [layer.name for layer in found.network.layers if layer.name.startswith("pad ")]
    if name == "joined":  # the softmax reads all channels: gaps are closed for it, and its result, which is dense, is copied for a convolution
        assert moving == ["unpad j for Softmax6"] and copied == ["pad t for Conv7 + Add8"], (moving, copied)
    elif name == "mlp":  # neither the input nor the normalisation's result is made by a product
        assert not moving and len(copied) == 2, (moving, copied)
    else:
        assert not moving and not copied


def test_hopper_takes_what_it_refused() -> None:
    """TMA wants rows of 16 bytes: 37 channels of float16 are none, the 40 that they are held as are."""
    spec = DeviceSpec("cuda", "GPU", "sm_90a", 90, multiprocessors=132, shared_memory=227 << 10, l2_bytes=50 << 20, bandwidth=3e12, flops={"float16": 8e14})
    network = fused(import_onnx(model(NETWORKS["head"])), DataType.HALF).network
    after = pad_channels(network, paddable(network)).network

    def refused(one: Network) -> list[str]:
        works = (workload_of(one, layer, {}, one.constants) for layer in one.layers if isinstance(layer.op, Convolution))
        return [found.reason for work in works if (found := refusal(tactic("cuda.conv.sm90"), work, spec))]

    assert len(refused(network)) == 2 and "37 input channels" in refused(network)[0]
    assert not refused(after)


@functools.cache
def eight_bits() -> bytes:
    """MobileNetV2's first blocks with activations of 8 bits and zero points: 8 channels of them are 8 bytes."""
    return quantized(mobilenet(4), (1, 3, 32, 32), "uint8").SerializeToString()


def test_eight_bits_are_padded_to_sixteen_channels_and_nothing_changes() -> None:
    network = fused(import_onnx(eight_bits())).network
    found = pad_channels(network, paddable(network))
    validate(found.network)
    assert {(len(one.places), one.size) for one in found.held.values()} == {(8, 16)} and any(any(one.fill) for one in found.held.values())
    inputs = random_inputs(network)
    for name, wanted in run(network, inputs).items():
        np.testing.assert_array_equal(run(found.network, inputs)[name], wanted)


@pytest.fixture
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """These networks are small."""
    monkeypatch.setattr(deciding, "LEAST_BYTES", 0)


# --- the builder's choice --------------------------------------------------------------------------------------------


def decided(row: Row, seconds, monkeypatch: pytest.MonkeyPatch, config: BuildConfig | None = None) -> tuple[Chosen, Chosen, PaddedChannels, Lines]:  # noqa: ANN001
    """What the builder makes of ``seconds`` (of a layer's name and whether padding changed it): the choice before and after, and the log."""
    network, log, device = import_onnx(model(row)), Lines(), CpuDevice()
    setting = new_setting(config or BuildConfig(avg_timing=1), device, log, lambda _: None)
    profiles = [{name: InputRange(*[tuple(network.tensors[name].shape)] * 3) for name in network.inputs}]
    first = fused(network)
    now = Chosen(first, (), choose(first.network, profiles, setting))

    def told(chosen: Chosen) -> dict[str, float]:
        return {layer.name: seconds(layer.name, RULE in layer.fusions) for layer in chosen.network.layers}

    monkeypatch.setattr(deciding, "_layer_seconds", told)
    return now, *measured_padding(now, profiles, setting), log


@pytest.mark.usefixtures("small_ones_too")
def test_what_pays_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    now, after, found, log = decided(NETWORKS["head"], lambda name, padded: 0 if name.startswith("unpad") else 2e-6 if padded else 3e-6, monkeypatch)
    assert found.channels == {"ar": (37, 40), "br": (53, 56), "y.last": (21, 24)} and not found.slower
    assert found.seconds == pytest.approx((12e-6, 9e-6))  # with the reformat that reads real channels of the last one
    assert log[-1] == "Padded channels: 37 as 40, 53 as 56, 21 as 24: 3.0 us of 12.0 us saved"
    assert len(after.choices.decisions[0]) == len(after.network.layers) and after.network is not now.network


def test_small_layers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the convolution from 37 to 53 channels moves 32 KB, weights included."""
    row = NETWORKS["head"]
    _, _, found, _ = decided(row, lambda name, padded: 0 if name.startswith("unpad") else 2e-6 if padded else 3e-6, monkeypatch)
    assert found.channels == {"ar": (37, 40), "br": (53, 56)}
    thin = replace(row, values={**row.values, "w1": (53, 37, 1, 1)}, nodes=row.nodes.replace(f"b = Conv{W3}", "b = Conv"))
    assert decided(thin, lambda name, padded: 1.0, monkeypatch)[2] == PaddedChannels()


@pytest.mark.usefixtures("small_ones_too")
def test_what_does_not_pay_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now, after, found, log = decided(NETWORKS["head"], lambda name, padded: 3e-6, monkeypatch)
    assert after is now and not found.channels and set(found.slower) == {"ar", "br", "y.last"}
    assert log[-1] == "Padded channels: none; 3 tensors tried, no faster"


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_layers_around_a_tensor(name: str) -> None:
    """Found by walking over all layers, for each tensor that is padded."""
    network = fused(import_onnx(model(NETWORKS[name]))).network
    padded = pad_channels(network, paddable(network))
    around = deciding._Surroundings(padded)
    for tensor in padded.held:
        reached, wanted = {tensor}, []
        for layer in padded.network.layers:
            inherits = all(one in padded.held and one not in padded.born for one in layer.outputs)
            if not reached.isdisjoint(layer.inputs) and (inherits or {"reformat", RULE} <= set(layer.fusions)):
                reached.update(layer.outputs)
            wanted += [layer.name] if not reached.isdisjoint((*layer.inputs, *layer.outputs)) else []
        assert around.layers((tensor,)) == tuple(wanted)


@pytest.mark.usefixtures("small_ones_too")
def test_costs_are_looked_up_once_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def seconds(name: str, padded: bool) -> float:
        asked.append(name)
        return 0 if name.startswith("unpad") else 2e-6 if padded else 3e-6

    now, after, _, _ = decided(NETWORKS["head"], seconds, monkeypatch)
    assert len(asked) == len(now.network.layers) + len(after.network.layers)


@pytest.mark.usefixtures("small_ones_too")
def test_a_single_tensor_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(name: str, padded: bool) -> float:
        return {"Conv0 + Sigmoid1": 1e-6 if padded else 9e-6, "Conv2 + Relu3": 2e-6, "Conv4": 4e-6 if padded else 2e-6}.get(name, 0.0)

    _, after, found, _ = decided(NETWORKS["head"], seconds, monkeypatch)
    assert found.channels == {"ar": (37, 40)} and set(found.slower) == {"br", "y.last"}, found
    (miss,) = found.misses(after.network)["Conv2 + Relu3"]
    assert (miss.rule, miss.condition, miss.layers) == (RULE, "measured", ("Conv2 + Relu3",))
    assert miss.detail == "br: the layers around it take 4.0 us, 6.0 us with padded channels"
    assert after.network.tensors["br"].shape[-1] == 53


@pytest.mark.usefixtures("small_ones_too")
@pytest.mark.parametrize("config", [BuildConfig(optimization_level=2), BuildConfig(disable_fusion=((RULE, ""),)), BuildConfig(builder_cache=False)])
def test_when_nothing_is_tried(config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    now, after, found, _ = decided(NETWORKS["head"], lambda name, padded: 1e-6, monkeypatch, replace(config, avg_timing=1))
    assert after is now and found == PaddedChannels()


@pytest.mark.usefixtures("small_ones_too")
def test_the_rule_can_be_switched_off_at_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = BuildConfig(avg_timing=1, disable_fusion=((RULE, "Conv4"),))
    _, _, found, _ = decided(NETWORKS["head"], lambda name, padded: 2e-6 if padded else 3e-6, monkeypatch, config)
    assert found.channels == {"ar": (37, 40)}


@pytest.fixture
def padding_build(monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201
    """A build on the CPU that fuses for a GPU, and pads whatever it can."""
    monkeypatch.setattr(pipeline, "PADDING_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(fusing, "optimize", lambda imported, options: optimize(imported, replace(options, device="cuda")))
    monkeypatch.setattr(deciding, "pays", lambda before, after: True)
    monkeypatch.setattr(deciding, "ROUNDS", 0)
    monkeypatch.setattr(deciding, "LEAST_BYTES", 0)

    def build(row: Row, data: bytes = b"", **options) -> Engine:  # noqa: ANN003
        config = BuildConfig(avg_timing=1, profiling_verbosity="detailed", **options)
        return builder.build(data or model(row), config, CpuDevice(), log=Log(to_stderr=True))

    return build


def test_a_build_its_reports_and_its_refit(padding_build, tmp_path) -> None:  # noqa: ANN001
    row = NETWORKS["head"]
    engine = padding_build(row)
    record = engine.record["paddedChannels"]
    assert record["channels"] == {"ar": [37, 40], "br": [53, 56], "y.last": [21, 24]} and record["beforeMs"] > 0
    path = tmp_path / "padded.engine"
    engine.save(path)
    again = Engine.load(path)
    compare_poisoned(row, again, CpuDevice(), 1e-5)

    formats = {one["Name"]: one["Format"] for layer in layer_objects(again) for one in (*layer["Inputs"], *layer["Outputs"])}
    assert formats["ar"] == "Row major linear, 37 channels padded to 40" and formats["y"] == "Row major linear"
    assert {tuple(one["Dimensions"]) for layer in layer_objects(again) for one in layer["Outputs"] if one["Name"] == "ar"} == {(1, 6, 4, 37)}
    reasons = [layer["Reformat"] for layer in layer_objects(again) if "Reformat" in layer]
    assert any(one.startswith("24 to 21 channels for reformat y") and "padded channels" in one for one in reasons), reasons
    lines = engine_lines(again)
    assert any("3 tensors are held with padded channels; the layers around them take" in line for line in lines), lines

    other = replace(row, values={**row.values, "w1": np.full((53, 37, 3, 3), 0.01), "b0": np.linspace(-1, 1, 37)})
    refitted = refit(again, model(other), Log(to_stderr=True))
    assert refitted.network.tensors["ar"].shape[-1] == 40
    compare_poisoned(other, refitted, CpuDevice(), 1e-5)


def dynamic(row: Row) -> bytes:
    """``row`` for any batch and height."""
    proto = onnx.load_from_string(model(row))
    for axis, name in ((0, "n"), (2, "h")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del proto.graph.value_info[:]
    for axis, name in ((0, "n"), (2, "h")):
        proto.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = f"out_{name}"
    return proto.SerializeToString()


MEASURED = tuple((rule.name, "") for rule in OPTIONAL)  # other rules that would be timed
RANGE = {f"{which}_shapes": {"x": (n, 16, h, 4)} for which, n, h in (("min", 1, 4), ("opt", 2, 6), ("max", 3, 10))}


def test_any_batch_and_height(padding_build) -> None:  # noqa: ANN001
    row = NETWORKS["pruned"]
    engine = padding_build(row, dynamic(row), **RANGE)
    assert {tuple(pair) for pair in engine.record["paddedChannels"]["channels"].values()} == {(37, 40)}
    for n, h in ((1, 4), (3, 10)):
        compare_poisoned(replace(row, inputs={"x": (n, 16, h, 4)}), engine, CpuDevice(), 1e-5, dynamic(row))


def test_a_second_build_times_nothing_and_decides_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # noqa: ANN001
    """By real times, whatever they are."""
    monkeypatch.setattr(pipeline, "PADDING_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(fusing, "optimize", lambda imported, options: optimize(imported, replace(options, device="cuda")))
    monkeypatch.setattr(deciding, "LEAST_BYTES", 0)
    config = BuildConfig(avg_timing=1, timing_cache_file=str(tmp_path / "t.cache"))
    first, again = (
        builder.build(model(NETWORKS["split"]), replace(config, error_on_timing_cache_miss=strict), CpuDevice(), log=Log(to_stderr=True)) for strict in (False, True)
    )
    assert first.record["paddedChannels"] == again.record["paddedChannels"] and again.record["cacheMisses"] == 0
    assert first.network.layers == again.network.layers


def test_debug_tensors_keep_their_channels(padding_build) -> None:  # noqa: ANN001
    engine = padding_build(NETWORKS["head"], mark_debug=("ar",))
    assert not engine.record["paddedChannels"]["channels"]


@pytest.mark.gpu
@pytest.mark.usefixtures("small_ones_too")
@pytest.mark.parametrize(("name", "precision"), [("pruned", "fp16"), ("joined", "fp16"), ("anchors", "fp32")])
def test_padded_networks_on_the_gpu(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything padded, whether it pays or not, in memory that was NaN."""
    from runtime.devices import open_device

    monkeypatch.setattr(deciding, "pays", lambda before, after: True)
    monkeypatch.setattr(deciding, "ROUNDS", 0)
    row, device = NETWORKS[name], open_device("0")
    data = dynamic(row) if name == "pruned" else model(row)
    config = BuildConfig(fp16=precision == "fp16", tf32=False, disable_fusion=MEASURED, max_tactics=1, **(RANGE if name == "pruned" else {}))  # type: ignore[arg-type]
    engine = builder.build(data, config, device, log=Log(to_stderr=True))
    assert engine.record["paddedChannels"]["channels"]
    for n in (1, 2):
        compare_poisoned(replace(row, inputs={"x": (n, 16, 6, 4)}) if name == "pruned" else row, engine, device, 5e-3 if precision == "fp16" else 1e-4, data)


@pytest.mark.gpu
@pytest.mark.usefixtures("small_ones_too")
def test_eight_bits_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.devices import open_device

    monkeypatch.setattr(deciding, "pays", lambda before, after: True)
    monkeypatch.setattr(deciding, "ROUNDS", 0)
    device, data = open_device("0"), eight_bits()
    engine = builder.build(data, BuildConfig(disable_fusion=MEASURED, max_tactics=1), device, log=Log(to_stderr=True))
    assert engine.record["paddedChannels"]["channels"]
    network = import_onnx(data)
    inputs = random_inputs(network)
    found = engine.create_execution_context(device).execute(inputs)
    for name, wanted in run(network, inputs).items():
        assert np.linalg.norm(found[name].astype(np.float64) - wanted) <= 2e-2 * np.linalg.norm(wanted)


@pytest.mark.gpu
def test_a_build_on_the_gpu_says_what_it_measured() -> None:
    """91 channels and windows of 3 x 3 over many pixels: whatever the times say, the record and the network agree."""
    from runtime.devices import open_device

    row = replace(NETWORKS["head"], inputs={"x": (8, 16, 56, 56)}, values={"w0": (91, 16, 3, 3), "b0": (91,), "w1": (91, 91, 3, 3), "w2": (21, 91, 1, 1)})
    device = open_device("0")
    engine = builder.build(model(row), BuildConfig(fp16=True, disable_fusion=MEASURED, max_tactics=2), device, log=Log(to_stderr=True))
    record = engine.record["paddedChannels"]
    assert record["channels"] or record["slower"]
    for tensor, (real, held) in record["channels"].items():
        assert (real, held) in ((91, 96), (21, 24)) and engine.network.tensors[tensor].shape[-1] == held
    assert not record["channels"] or record["afterMs"] < record["beforeMs"]
    compare_poisoned(row, engine, device, 5e-3)
