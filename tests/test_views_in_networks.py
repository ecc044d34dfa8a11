"""Dense, inception, fire and U-Net blocks, channel splits and shuffles: no layer joins or cuts channels on a GPU, and results stay right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from fusion.dtypes import DataType
from fusion.importer import import_onnx
from fusion.network import Network
from fusion.ops import Concatenation, Convolution, Slice
from fusion.passes import FusionOptions, optimize
from fusion.validation import validate
from runtime import resolution
from runtime.columns import TYPICAL, ask_kind, ask_tactics, copy_parts, parts_to_copy
from runtime.cpu import CpuDevice
from runtime.devices import open_device
from runtime.engine import Engine
from runtime.views import VIEW, Sharing, intermediate_bytes, share_memory, with_missed_views
from runtime.workloads import workload_of
from tests.catalogue import Row, model
from tests.harness.fiber import available
from tests.harness.network import TACTICS, fiber_engine
from tests.harness.poisoned import compare_poisoned
from tests.models import light
from trtcli import builder
from trtcli.config import BuildConfig
from trtcli.log import Log
from trtcli.refitting import refit
from trtcli.report.layers import layer_objects

IMAGE = {"x": (2, 16, 10, 12)}
W3 = "<pads=[1,1,1,1]>"

NETWORKS = {
    one.name: one
    for one in (
        Row("dense", f"a0 = Conv{W3}(x, w0)\n"
            f"n1 = BatchNormalization(a0, g1, h1, m1, v1)\nr1 = Relu(n1)\nc1 = Conv{W3}(r1, w1)\na1 = Concat<axis=1>(a0, c1)\n"
            f"n2 = BatchNormalization(a1, g2, h2, m2, v2)\nr2 = Relu(n2)\nc2 = Conv{W3}(r2, w2)\na2 = Concat<axis=1>(a1, c2)\n"
            "n3 = BatchNormalization(a2, g3, h3, m3, v3)\nr3 = Relu(n3)\nc3 = Conv(r3, w3)\ny = AveragePool<kernel_shape=[2,2],strides=[2,2]>(c3)",
            "", inputs=IMAGE, values={
                "w0": (24, 16, 3, 3), "w1": (8, 24, 3, 3), "w2": (16, 32, 3, 3), "w3": (8, 48, 1, 1),
                **{f"{name}{k}": np.full(size, 1.25) if name == "v" else np.linspace(-1, 1, size) for k, size in ((1, 24), (2, 32), (3, 48)) for name in "ghmv"},
            }),
        Row("inception", f"a = Conv(x, w1)\nar = Relu(a)\nb = Conv(x, w2)\nbr = Relu(b)\nc = Conv{W3}(br, w3)\ncr = Relu(c)\n"
            f"d = Conv(x, w4)\ndr = Relu(d)\ne = Conv<pads=[2,2,2,2]>(dr, w5)\ner = Relu(e)\np = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(x)\n"
            "f = Conv(p, w6)\nfr = Relu(f)\nj = Concat<axis=1>(ar, cr, er, fr)\nq = MaxPool<kernel_shape=[3,3],strides=[2,2]>(j)\n"
            "k = Conv(j, w7)\ng = GlobalAveragePool(k)\nz = GlobalAveragePool(q)\ny = Add(g, z)",
            "", inputs=IMAGE, values={"w1": (16, 16, 1, 1), "w2": (24, 16, 1, 1), "w3": (32, 24, 3, 3), "w4": (8, 16, 1, 1), "w5": (8, 8, 5, 5),
                                      "w6": (8, 16, 1, 1), "w7": (64, 64, 1, 1)}),
        Row("fire", f"s = Conv(x, w1)\nsr = Relu(s)\na = Conv(sr, w2)\nar = Relu(a)\nb = Conv{W3}(sr, w3)\nbr = Relu(b)\nj = Concat<axis=1>(ar, br)\n"
            "t = Conv(j, w4)\ny = Relu(t)",
            "", inputs=IMAGE, values={"w1": (8, 16, 1, 1), "w2": (16, 8, 1, 1), "w3": (16, 8, 3, 3), "w4": (8, 32, 1, 1)}),
        Row("unet", f"a = Conv{W3}(x, w1)\nar = Relu(a)\nd = MaxPool<kernel_shape=[2,2],strides=[2,2]>(ar)\nb = Conv{W3}(d, w2)\nbr = Relu(b)\n"
            "u = ConvTranspose<strides=[2,2]>(br, w3)\nj = Concat<axis=1>(u, ar)\n"
            f"c = Conv{W3}(j, w4)\ncr = Relu(c)\nv = Resize<mode=\"linear\">(br, none, scales)\nk = Concat<axis=1>(cr, v)\ny = Conv(k, w5)",
            "", inputs=IMAGE, values={"w1": (16, 16, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, 16, 2, 2), "w4": (16, 32, 3, 3), "w5": (8, 48, 1, 1),
                                      "none": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}),
        Row("shuffle", f"a = Conv{W3}(x, w0)\np, q = Split<axis=1,num_outputs=2>(a)\nb = Conv(q, w1)\nbr = Relu(b)\nd = Conv<group=16,pads=[1,1,1,1]>(br, w2)\n"
            "e = Conv(d, w3)\ner = Relu(e)\npn = Tanh(p)\nj = Concat<axis=1>(pn, er)\nr1 = Reshape(j, s1)\nt = Transpose<perm=[0,2,1,3,4]>(r1)\nr2 = Reshape(t, s2)\n"
            "y = Conv(r2, w4)",
            "", inputs=IMAGE, values={"w0": (32, 16, 3, 3), "w1": (16, 16, 1, 1), "w2": (16, 1, 3, 3), "w3": (16, 16, 1, 1), "w4": (8, 32, 1, 1),
                                      "s1": np.array([2, 2, 16, 10, 12]), "s2": np.array([2, 32, 10, 12])}),
    )
}  # fmt: skip


def fused(network: Network, precision: DataType | None = None, device: str = "cuda") -> Network:
    return optimize(network, FusionOptions(device=device, precision=precision)).network


def on_a_gpu(network: Network, **options: object) -> Sharing:
    return share_memory(network, ask=ask_kind(network, TYPICAL["cuda"]), **options)  # type: ignore[arg-type]


def moving(network: Network, sharing: Sharing) -> list[str]:
    """The concatenations and slices that are layers."""
    return [layer.name for layer in network.layers if isinstance(layer.op, Concatenation | Slice) and layer.name not in sharing.views]


@pytest.mark.parametrize("precision", [None, DataType.HALF])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_layer_joins_or_cuts_channels(name, precision):
    network = fused(import_onnx(model(NETWORKS[name])), precision)
    sharing = on_a_gpu(network)
    assert moving(network, share_memory(network)), "without tactics for columns they would be copies"
    assert not moving(network, sharing), sharing.refusals
    assert intermediate_bytes(network, {}, sharing) < intermediate_bytes(network, {})


@pytest.mark.parametrize("name", ["squeezenet", "densenet121", "inception_v1", "shufflenet"])
def test_light_networks_have_no_concatenations_left(name):
    network = fused(import_onnx(light(name).SerializeToString()), DataType.HALF)
    assert not moving(network, on_a_gpu(network))


PARTIAL = {
    "a skip that two levels read": (replace(NETWORKS["unet"], nodes=NETWORKS["unet"].nodes.replace("(cr, v)", "(cr, v, ar)"),
                                            values={**NETWORKS["unet"].values, "w5": (8, 64, 1, 1)}), 1),
    "a half that passes by": (Row("half", f"a = Conv{W3}(x, w0)\np, q = Split<axis=1,num_outputs=2>(a)\nb = Conv(q, w1)\nbr = Relu(b)\n"
                                  "j = Concat<axis=1>(p, br)\ny = Conv(j, w2)", "", inputs=IMAGE,
                                  values={"w0": (32, 16, 3, 3), "w1": (16, 16, 1, 1), "w2": (8, 32, 1, 1)}), 1),
    "two that pass by": (Row("two", f"a = Conv{W3}(x, w0)\np, q, r = Split<axis=1,num_outputs=3>(a)\nb = Conv(q, w1)\nbr = Relu(b)\n"
                             "j = Concat<axis=1>(p, br, r)\ny = Conv(j, w2)", "", inputs=IMAGE,
                             values={"w0": (48, 16, 3, 3), "w1": (16, 16, 1, 1), "w2": (8, 48, 1, 1)}), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTIAL)
def test_one_part_is_copied_where_it_must_be(name):
    row, copies = PARTIAL[name]
    network = fused(import_onnx(model(row)), DataType.HALF)
    parts = parts_to_copy(network, on_a_gpu)
    assert len(parts) == copies
    changed = copy_parts(network, parts)
    validate(changed)
    ((missed,),) = with_missed_views({}, network, on_a_gpu(network)).values()
    assert (missed.rule, missed.condition) == ("concatenation-view", "two places")
    assert len(moving(changed, on_a_gpu(changed))) == 1 - copies


def test_neighbouring_slices_are_one_part():
    """What YOLO's blocks do: both halves of a tensor, and what is made of one, joined."""
    row = Row("elan", f"a = Conv{W3}(x, w0)\np, q = Split<axis=1,num_outputs=2>(a)\nb = Conv{W3}(q, w1)\nbr = Relu(b)\nj = Concat<axis=1>(p, q, br)\n"
              "y = Conv(j, w2)", "", inputs=IMAGE, values={"w0": (32, 16, 3, 3), "w1": (16, 16, 3, 3), "w2": (8, 48, 1, 1)})  # fmt: skip
    network = fused(import_onnx(model(row)), DataType.HALF)
    assert not moving(network, on_a_gpu(network)) and not parts_to_copy(network, on_a_gpu)


def test_a_dense_block_as_torch_exports_it():
    """Every layer joins all before it anew."""
    row = Row("torch", f"a = Conv{W3}(x, w0)\nr1 = Relu(a)\nb = Conv{W3}(r1, w1)\nj1 = Concat<axis=1>(a, b)\nr2 = Tanh(j1)\nc = Conv{W3}(r2, w2)\n"
              f"j2 = Concat<axis=1>(a, b, c)\nr3 = Tanh(j2)\nd = Conv{W3}(r3, w3)\nj3 = Concat<axis=1>(a, b, c, d)\nr4 = Tanh(j3)\ny = Conv(r4, w4)", "",
              inputs=IMAGE, values={"w0": (16, 16, 3, 3), **{f"w{k}": (8, 8 + 8 * k, 3, 3) for k in (1, 2, 3)}, "w4": (8, 40, 1, 1)})  # fmt: skip
    for precision in (None, DataType.HALF):
        network = fused(import_onnx(model(row)), precision)
        assert not moving(network, on_a_gpu(network)), on_a_gpu(network).refusals


NEAR = {
    "channels": (("w2", (12, 8, 1, 1)), ("w4", (8, 28, 1, 1))),  # 12 channels of float16 are 24 bytes
    "another reader": "z = ReduceMax(ar, one)",  # a maximum over the channels reads whole rows
    "network output": "",
}


@pytest.mark.parametrize("case", NEAR)
def test_near_misses_of_a_fire_block(case):
    row = NETWORKS["fire"]
    if case == "channels":
        row = replace(row, values={**row.values, **dict(NEAR[case])})
    elif case == "another reader":
        row = replace(row, nodes=f"{row.nodes}\n{NEAR[case]}", outputs=("z",), values={**row.values, "one": np.array([1])})
    else:
        row = replace(row, nodes=row.nodes.replace("y = Relu(t)", "v = Relu(t)\ny = Transpose<perm=[0,2,3,1]>(j)"), outputs=("v",))
    network = fused(import_onnx(model(row)), DataType.HALF)
    found = on_a_gpu(network).refusals
    (name,) = moving(network, on_a_gpu(network)) or [""]
    expected = {"channels": "alignment", "another reader": "kernel"}
    if case == "network output":  # it is transposed for the caller, so its parts lie in memory of ours
        assert not name
    else:
        assert found[name][1] == expected[case], found
    if case == "channels":
        wide = fused(import_onnx(model(row)))
        assert not moving(wide, on_a_gpu(wide)), "12 channels of float32 are three times 16 bytes"
    if case == "another reader":
        assert "ReduceMax" in found[name][2] and "dense" in found[name][2]


def test_switched_off():
    network = fused(import_onnx(model(NETWORKS["fire"])))
    (name,) = moving(network, on_a_gpu(network, disabled=["concatenation-view"]))
    assert name == moving(network, on_a_gpu(network, disabled=[f"concatenation-view@{name}"]))[0]
    assert on_a_gpu(network, disabled=["all"]).views == frozenset()


def test_a_pinned_tactic_decides():
    network = fused(import_onnx(model(NETWORKS["fire"])))
    workloads = [workload_of(network, layer, {}, network.constants) for layer in network.layers]
    (name,) = [layer.name for layer in network.layers if isinstance(layer.op, Concatenation)]
    for tactic, view in (("cuda.conv.simt", True), ("cuda.plain.convolution", False)):
        pins = {layer.name: tactic for layer in network.layers if isinstance(layer.op, Convolution)}
        sharing = share_memory(network, ask=ask_tactics(network, [workloads], TYPICAL["cuda"], pins))
        assert (name in sharing.views) == view


def test_the_batch_may_vary():
    row = NETWORKS["inception"]
    proto = onnx.load_from_string(model(row))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.graph.value_info[:]
    network = fused(import_onnx(proto.SerializeToString()), DataType.HALF)
    assert not moving(network, on_a_gpu(network))


MLP = Row("mlp", "a = MatMul(x, w1)\nar = Relu(a)\nb = MatMul(x, w2)\nbs = Sigmoid(b)\nj = Concat<axis=-1>(ar, bs)\np, q = Split<axis=-1,num_outputs=2>(j)\n"
          "c = Mul(p, q)\nd = MatMul(c, w3)\nt = Tanh(d)\nk = Concat<axis=-1>(t, j)\ny = Neg(k)", "",
          inputs={"x": (6, 16)}, values={"w1": (16, 8), "w2": (16, 24), "w3": (16, 16)})  # fmt: skip


def check(row: Row, device_name: str, config: BuildConfig, tolerance: float) -> tuple[Network, list[str]]:
    """Builds and runs ``row`` with a poisoned arena and outputs; the network and the layers that are views."""
    device, data = open_device(device_name), model(row)
    engine = builder.build(data, config, device, log=Log(to_stderr=True))
    compare_poisoned(row, engine, device, tolerance)
    views = [layer.name for layer, plan in zip(engine.network.layers, engine.layers, strict=True) if plan.tactic == VIEW]
    return engine.network, views


@pytest.mark.skipif(not available(), reason="needs g++ and the CUDA headers")
@pytest.mark.parametrize("name", [*NETWORKS, "a half that passes by"])
def test_cuda_kernels_in_the_memory_of_the_network(name, monkeypatch):
    """All of it without a GPU: the kernels that have no PTX, run where the memory plan puts the tensors."""
    real = resolution.registry.tactic
    monkeypatch.setattr(resolution.registry, "tactic", lambda one: TACTICS[one] if one in TACTICS else real(one))
    row = {**NETWORKS, **{key: row for key, (row, _) in PARTIAL.items()}}[name]
    network = fused(import_onnx(model(row)))
    engine = fiber_engine(copy_parts(network, parts_to_copy(network, on_a_gpu)))
    assert all(plan.tactic == VIEW for layer, plan in zip(engine.network.layers, engine.layers, strict=True) if isinstance(layer.op, Concatenation))
    compare_poisoned(row, engine, CpuDevice(), 1e-5)


def test_a_part_that_is_copied_and_refitted(tmp_path):
    row = Row("part", "a = MatMul(x, w1)\nj = Concat<axis=-1>(x, a)\nb = MatMul(j, w2)\ny = Relu(b)", "", inputs={"x": (6, 16)},
              values={"w1": (16, 8), "w2": (24, 8)})  # fmt: skip
    network, views = check(row, "cpu", BuildConfig(avg_timing=1), 1e-5)
    assert [layer.name for layer in network.layers if layer.name.startswith("copy")] == ["copy x for Concat1"] and views == ["Concat1"]
    device, log = open_device("cpu"), Log(to_stderr=True)
    engine = builder.build(model(row), BuildConfig(avg_timing=1), device, log=log)
    formats = {one["Name"]: one["Format"] for layer in layer_objects(engine) for one in layer["Outputs"]}
    assert formats["a"] == "Row major linear, columns of j from 16 on, rows 24 apart" and formats["j"] == "Row major linear"
    other = replace(row, values={"w1": np.ones((16, 8)), "w2": np.ones((24, 8))})
    found = refit(Engine.deserialize(engine.serialize()), model(other), log).create_execution_context(device).execute({"x": np.ones((6, 16), np.float32)})
    np.testing.assert_allclose(found["y"], np.full((6, 8), 16 + 8 * 16), rtol=1e-5)


@pytest.mark.parametrize("disabled", [(), (("concatenation-view", ""), ("slice-view", "")), (("all", ""),)])
def test_features_of_rows_on_the_cpu(disabled):
    network, views = check(MLP, "cpu", BuildConfig(avg_timing=1, disable_fusion=disabled), 1e-5)
    joined = {layer.name for layer in network.layers if isinstance(layer.op, Concatenation | Slice)}
    assert bool(joined) and (not joined & set(views)) == bool(disabled)


@pytest.mark.gpu
@pytest.mark.parametrize(("config", "tolerance"), [(BuildConfig(tf32=False), 1e-5), (BuildConfig(fp16=True), 1e-2)], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", [*NETWORKS, "a half that passes by", "mlp"])
def test_blocks_on_the_gpu(name, config, tolerance):
    row = {**NETWORKS, **{key: row for key, (row, _) in PARTIAL.items()}, "mlp": MLP}[name]
    network, views = check(row, "0", replace(config, avg_timing=1, optimization_level=1), tolerance)
    assert all(layer.name in views for layer in network.layers if isinstance(layer.op, Concatenation))


@pytest.mark.gpu
def test_without_views_on_the_gpu():
    _, views = check(NETWORKS["inception"], "0", BuildConfig(fp16=True, avg_timing=1, optimization_level=1, disable_fusion=(("all", ""),)), 1e-2)
    assert not views
