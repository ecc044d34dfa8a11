"""Hand-made networks with a reference tactic that calls ``Op.evaluate``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest

from fusion.dims import Dim, symbol
from fusion.dtypes import DataType, data_type
from fusion.expression import Operand, apply
from fusion.network import Layer, Network, Op, TensorType
from fusion.ops import MatrixMultiply, Pointwise, Reduce, Shuffle
from runtime import resolution
from runtime.cpu import CpuDevice
from runtime.cuda_driver import device_count
from runtime.devices import open_device
from runtime.engine import Engine, InputRange, LayerPlan
from runtime.views import VIEW, share_memory
from runtime.workloads import workload_of
from tactics.compiler import compile_cubin
from tactics.tactic import CpuCall, Plan, Tactic, aligned_inputs
from tests.runtime.cuda_kernels import SOURCE, SOURCE_90, Scale, kernel

ADD = Pointwise(apply("add", Operand(0), Operand(1)))
RELU = Pointwise(apply("relu", Operand(0)))
MATMUL = MatrixMultiply()


class Reference(Tactic):
    """Any operation, by its NumPy meaning; the workspace is filled with garbage to show that nothing else lives there."""

    id = "test.reference"
    device = "cpu"

    def plan(self, workload, config, device):
        def run(inputs, outputs, packed, workspace):
            results = workload.op.evaluate([np.array(array) for array in inputs])
            workspace[:] = 0xA5
            for output, result in zip(outputs, results, strict=True):
                np.copyto(output, result)

        return Plan((CpuCall(run, "reference"),), dict(config).get("workspace", 0))


class PackedMatmul(Tactic):
    """A product whose weights were transposed at build."""

    id = "test.packed"
    device = "cpu"

    def prepare(self, workload, config, constants):
        return (np.ascontiguousarray(constants[1].T),)

    def plan(self, workload, config, device):
        def run(inputs, outputs, packed, workspace):
            np.matmul(inputs[0], packed[0].T, out=outputs[0])

        return Plan((CpuCall(run, "packed"),))


class InPlace(Reference):
    """The reference, which may write over inputs of the output's shape."""

    id = "test.in_place"

    def plan(self, workload, config, device):
        return replace(super().plan(workload, config, device), in_place=aligned_inputs(workload))


TACTICS = {tactic.id: tactic for tactic in (Reference(), PackedMatmul(), InPlace())}


@pytest.fixture(autouse=True)
def test_tactics(monkeypatch):
    real = resolution.registry.tactic
    monkeypatch.setattr(resolution.registry, "tactic", lambda name: TACTICS[name] if name in TACTICS else real(name))


@pytest.fixture(scope="session")
def cpu():
    return CpuDevice()


@dataclass
class Graph:
    """Builds a network layer by layer, inferring types."""

    def __post_init__(self):
        self.tensors: dict[str, TensorType] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[str] = []
        self.layers: list[Layer] = []

    def input(self, name: str, shape: tuple[Dim, ...], dtype: DataType = DataType.FLOAT) -> str:
        self.inputs.append(name)
        self.tensors[name] = TensorType(dtype, shape)
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = np.ascontiguousarray(value)
        self.tensors[name] = TensorType(data_type(value.dtype), value.shape)
        return name

    def layer(self, op: Op, *inputs: str, name: str = "", outputs: tuple[str, ...] = ()) -> str:
        name = name or f"layer{len(self.layers)}"
        types = op.infer([self.tensors[one] for one in inputs])
        outputs = outputs or tuple(f"{name}_out{i}" for i in range(len(types)))
        self.tensors.update(zip(outputs, types, strict=True))
        self.layers.append(Layer(name, op, inputs, outputs))
        return outputs[0]

    def network(self, *outputs: str) -> Network:
        return Network("test", tuple(self.inputs), outputs, tuple(self.layers), self.tensors, self.constants)

    def engine(self, *outputs: str, sizes=None, streams=None, workspace=0, tactics=None, ranges=None, ask=None) -> Engine:
        """An engine with the reference tactic; ``sizes`` gives (min, opt, max) of each named size, ``ask`` is what ``share_memory`` asks."""
        return make_engine(self.network(*outputs), sizes or {}, streams or {}, workspace, tactics or {}, ask)


def make_engine(network: Network, sizes, streams, workspace, tactics, ask=None) -> Engine:
    weights = dict(network.constants)
    opt = {name: values[1] for name, values in sizes.items()}
    plans = []
    views = share_memory(network, ask=ask).views
    for layer in network.layers:
        stream = streams.get(layer.name, 0)
        if layer.name in views:
            plans.append(LayerPlan(VIEW, stream=stream))
            continue
        tactic, packed = tactics.get(layer.name, "test.reference"), ()
        config = (("workspace", workspace),) if workspace else ()
        if tactic == "test.packed":
            workload = workload_of(network, layer, opt, network.constants)
            constants = {i: network.constants[name] for i, name in enumerate(layer.inputs) if name in network.constants}
            arrays = TACTICS[tactic].prepare(workload, (), constants)
            packed = tuple(f"{layer.name}.packed{i}" for i in range(len(arrays)))
            weights.update(zip(packed, arrays, strict=True))
            for i in constants:
                weights.pop(layer.inputs[i])
        plans.append(LayerPlan(tactic, config, packed, stream=stream, workspace=workspace))

    def shape(name, which):
        return tuple(dim if isinstance(dim, int) else sizes[str(dim)][which] for dim in network.tensors[name].shape)

    profile = {name: InputRange(shape(name, 0), shape(name, 1), shape(name, 2)) for name in network.inputs}
    bare = Network(network.name, network.inputs, network.outputs, network.layers, network.tensors, {}, network.fates)
    return Engine(bare, tuple(plans), weights, {}, (profile,), CpuDevice().spec, {"note": "a test"})


@pytest.fixture
def graph():
    return Graph()


@pytest.fixture
def mlp():
    """A two-layer perceptron of dynamic batch with a residual branch, a reshape and an unused-by-others output."""
    build = Graph()
    random = np.random.default_rng(0)
    x = build.input("x", (symbol("batch"), 8))
    w1 = build.constant("w1", random.standard_normal((8, 16)).astype(np.float32))
    w2 = build.constant("w2", random.standard_normal((16, 8)).astype(np.float32))
    hidden = build.layer(RELU, build.layer(MATMUL, x, w1, name="fc1"), name="relu1")
    folded = build.layer(Shuffle(reshape=(symbol("batch"), 2, 8)), hidden, name="fold")
    unfolded = build.layer(
        Shuffle(reshape=(symbol("batch"), 16)), build.layer(RELU, folded, name="relu2"), name="unfold"
    )
    y = build.layer(MATMUL, unfolded, w2, name="fc2")
    out = build.layer(ADD, y, x, name="residual", outputs=("y",))
    mean = build.layer(Reduce("mean", (1,), False), out, name="mean", outputs=("m",))
    return build, (out, mean)


@pytest.fixture(scope="session")
def small_engine_bytes(tmp_path_factory):
    build = Graph()
    w = build.constant("w", np.eye(4, dtype=np.float32))
    out = build.layer(RELU, build.layer(MATMUL, build.input("x", (symbol("n"), 4)), w))
    path = tmp_path_factory.mktemp("engine") / "small"
    build.engine(out, sizes={"n": (1, 2, 3)}).save(path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def same_engine():
    def check(a: Engine, b: Engine) -> None:
        for item in fields(Engine):
            if item.name not in ("weights", "network", "layers", "record"):
                assert getattr(a, item.name) == getattr(b, item.name), item.name
        for name in ("name", "inputs", "outputs", "layers", "tensors", "fates"):
            assert getattr(a.network, name) == getattr(b.network, name), name
        assert repr(a.layers) == repr(b.layers)  # NaN is not equal to itself
        assert repr(dict(sorted(a.record.items()))) == repr(dict(sorted(b.record.items())))
        assert set(a.weights) == set(b.weights)
        for name in a.weights:
            assert a.weights[name].dtype == b.weights[name].dtype
            assert a.weights[name].shape == b.weights[name].shape
            assert a.weights[name].tobytes() == b.weights[name].tobytes()

    return check


@pytest.fixture(scope="module")
def gpu():
    if not device_count():
        pytest.skip("no GPU here")
    return open_device("0")


@pytest.fixture(scope="module")
def images(gpu):
    """Cubins of all kernels by key."""
    arch = gpu.spec.arch
    first = compile_cubin(SOURCE, (), arch).image
    found = {kernel(name).key(arch): first for name in ("scale", "combine", "spin", "shared_memory", "add_one", "wild")}
    if gpu.spec.capability >= 90:
        second = compile_cubin(SOURCE_90, (), arch).image
        found |= {kernel(name, SOURCE_90).key(arch): second for name in ("cluster_size", "tile")}
    return found


@pytest.fixture
def on_gpu(gpu, images, monkeypatch):
    """(engine made for the CPU) -> the same with the tactic of cuda_kernels on the GPU."""
    monkeypatch.setattr(resolution.registry, "tactic", lambda name: Scale())

    def convert(engine, slow=()):
        plans = tuple(
            plan
            if plan.tactic == "view"
            else LayerPlan("test.gpu", (("clocks", 300_000),) if layer.name in slow else (), stream=plan.stream)
            for layer, plan in zip(engine.network.layers, engine.layers, strict=True)
        )
        return replace(engine, layers=plans, kernels=images, device=gpu.spec)

    return convert
