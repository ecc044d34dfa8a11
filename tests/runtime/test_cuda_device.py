"""The CUDA device on a GPU: memory, launches with every kind of argument, graphs, events, streams."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.network import TensorType
from runtime.device import Binding, CaptureError, DeviceError, DeviceMemoryError, Tensor
from runtime.devices import open_device
from tactics.compiler import compile_cubin
from tactics.tactic import (
    Buffer,
    Copy,
    Launch,
    Memset,
    Plan,
    Scalar,
    Struct,
    TensorMap,
)
from tests.runtime.cuda_kernels import SOURCE, SOURCE_90, branches, kernel, scale_step


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
def test_the_kernels_of_these_tests_compile(arch):
    pytest.importorskip("cuda.bindings.nvrtc")
    assert compile_cubin(SOURCE, (), arch).image.startswith(b"\x7fELF")
    if arch == "sm_90a":
        assert compile_cubin(SOURCE_90, (), arch).image.startswith(b"\x7fELF")


class Arrays:
    """Device arrays with host values, for one plan."""

    def __init__(self, gpu, images, inputs, outputs, workspace=0):
        self.gpu, self.stream = gpu, gpu.stream()
        self.memory = [gpu.allocate(array.nbytes) for array in (*inputs, *outputs)]
        self.outputs = [np.zeros_like(array) for array in outputs]
        self.places = self.memory[len(inputs) :]
        tensors = []
        for array, memory in zip((*inputs, *outputs), self.memory, strict=True):
            gpu.upload(memory.address, array)
            tensors.append(Tensor(memory.address, TensorType(DataType(array.dtype.name), array.shape)))
        self.scratch = gpu.allocate(workspace)
        self.binding = Binding(
            tuple(tensors[: len(inputs)]), tuple(tensors[len(inputs) :]), (), self.scratch.address, workspace
        )
        self.modules = gpu.load(images)

    def program(self, *steps):
        return self.gpu.program(Plan(steps, self.scratch.size), self.binding, self.modules)

    def read(self):
        self.stream.synchronize()
        for array, memory in zip(self.outputs, self.places, strict=True):
            self.gpu.download(array, memory.address)
        return self.outputs

    def run(self, *steps):
        self.program(*steps).run(self.stream)
        return self.read()


@pytest.mark.gpu
def test_specification(gpu):
    spec = gpu.spec
    assert spec.kind == "cuda" and spec.capability >= 75 and str(spec.capability) in spec.arch
    assert spec.multiprocessors > 1 and spec.memory_bytes > 1 << 30 and spec.shared_memory >= 48 << 10
    assert 1e11 < spec.bandwidth < 2e13 and spec.flops["float16"] > 1e13 and spec.l2_bytes > 1 << 20
    properties = gpu.properties()
    assert properties["uuid"].startswith("GPU-") and properties["cuda_version"] >= "12"
    assert open_device("auto") is gpu is open_device("0")
    assert 0 < gpu.free_memory() <= spec.memory_bytes


@pytest.mark.gpu
def test_memory(gpu):
    data = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    memory, stream = gpu.allocate(data.nbytes), gpu.stream()
    assert memory.address % 256 == 0
    gpu.upload(memory.address, data)
    gpu.fill(memory.address + 16, 7, 16, stream)
    gpu.copy(memory.address + 100, memory.address, 10, stream)
    pinned = gpu.host_array(data.shape, data.dtype)
    gpu.download(pinned, memory.address, stream)
    stream.synchronize()
    expected = data.copy()
    expected[16:32] = 7
    expected[100:110] = data[:10]
    np.testing.assert_array_equal(pinned, expected)
    managed = gpu.allocate(256, managed=True)
    gpu.upload(managed.address, data[:256])
    assert gpu.host_array((0, 3), np.dtype("f4")).shape == (0, 3)
    with pytest.raises(DeviceMemoryError, match="cannot allocate"):
        gpu.allocate(1 << 50)


@pytest.mark.gpu
def test_arguments(gpu, images):
    random = np.random.default_rng(1)
    left, right = (random.standard_normal(1000).astype(np.float32) for _ in range(2))
    arrays = Arrays(gpu, images, [left, right], [np.zeros(1000, np.float32)])
    pair = Struct((Buffer("input", 0), Scalar(3), Buffer("input", 1), Scalar(0.5, "f64")))
    arguments = (Scalar(1), pair, Buffer("output"), Scalar(1000, "i64"), Scalar(2))
    (found,) = arrays.run(Launch(kernel("combine"), (2, 1, 1), (256, 1, 1), arguments))
    np.testing.assert_allclose(found, left + 3 + right * np.float32(0.5) + 2, rtol=1e-6)


@pytest.mark.gpu
def test_memset_copy_workspace_and_empty_grids(gpu, images):
    x = np.arange(512, dtype=np.float32)
    arrays = Arrays(gpu, images, [x], [np.ones(512, np.float32)], workspace=2048)
    (found,) = arrays.run(
        scale_step(512, 2.0, target=Buffer("workspace")),
        Memset(Buffer("output"), 1024),
        Copy(Buffer("workspace", 0, 1024), Buffer("output", 0, 1024), 1024),
        replace(scale_step(512, 9.0), grid=(0, 1, 1)),
        Memset(Buffer("output"), 0),
    )
    np.testing.assert_array_equal(found, np.concatenate([np.zeros(256), 2 * x[256:]]))


@pytest.mark.gpu
def test_large_shared_memory(gpu, images):
    size = gpu.spec.shared_memory - 1024
    arrays = Arrays(gpu, images, [], [np.zeros(1, np.float32)])
    arguments = (Buffer("output"), Scalar(size // 4))
    small = Launch(kernel("shared_memory"), (1, 1, 1), (256, 1, 1), (Buffer("output"), Scalar(100)), 400)
    (found,) = arrays.run(small, Launch(kernel("shared_memory"), (1, 1, 1), (256, 1, 1), arguments, size), small)
    assert found[0] == size // 4 + 200
    too_much = Launch(kernel("shared_memory"), (1, 1, 1), (256, 1, 1), arguments, 1 << 20)
    with pytest.raises(DeviceError, match="1048576 bytes of dynamic shared memory"):
        arrays.program(too_much)


@pytest.mark.gpu
@pytest.mark.parametrize("blocks", [2, 8, 16])
def test_clusters(gpu, images, blocks):
    if gpu.spec.capability < 90:
        pytest.skip("clusters need 9.0")
    arrays = Arrays(gpu, images, [], [np.zeros(32, np.float32)])
    step = Launch(kernel("cluster_size", SOURCE_90), (32, 1, 1), (32, 1, 1), (Buffer("output"),), 0, (blocks, 1, 1))
    (found,) = arrays.run(step)
    np.testing.assert_array_equal(found, blocks * 100 + np.arange(32) % blocks)


@pytest.mark.gpu
def test_tensor_maps(gpu, images):
    if gpu.spec.capability < 90:
        pytest.skip("tensor maps need 9.0")
    x = np.random.default_rng(2).standard_normal((32, 128)).astype(np.float16)
    arrays = Arrays(gpu, images, [x], [np.zeros((8, 64), np.float16)])
    described = TensorMap(Buffer("input"), DataType.HALF, (128, 32), (256,), (64, 8), swizzle=0)
    # The innermost coordinate stays a multiple of 16 bytes: an H200 (driver 580) traps at column 100 with "illegal instruction".
    for column, row in ((0, 0), (64, 8), (64, 28)):
        arguments = (Scalar(1), described, Buffer("output"), Scalar(column), Scalar(row))
        (found,) = arrays.run(Launch(kernel("tile", SOURCE_90), (1, 1, 1), (64, 1, 1), arguments))
        padded = np.zeros((64, 256), np.float16)
        padded[:32, :128] = x
        np.testing.assert_array_equal(found, padded[row : row + 8, column : column + 64])


@pytest.mark.gpu
@pytest.mark.parametrize("captured", [False, True])
def test_dependent_launches_keep_their_order(gpu, images, captured):
    n = 1 << 16
    arrays = Arrays(gpu, images, [], [np.zeros(n, np.float32)])
    step = Launch(kernel("add_one"), (n // 128, 1, 1), (128, 1, 1), (Buffer("output"), Scalar(n)))
    program = arrays.program(step, *[replace(step, dependent=gpu.spec.capability >= 90)] * 15)
    if captured:
        graph = gpu.capture(arrays.stream, lambda: program.run(arrays.stream))
        assert graph.nodes == 16
        graph.launch(arrays.stream)
    else:
        program.run(arrays.stream)
    np.testing.assert_array_equal(arrays.read()[0], np.full(n, 2.0**16 - 1))


@pytest.mark.gpu
def test_graphs_replay_and_fail_cleanly(gpu, images):
    x = np.arange(256, dtype=np.float32)
    arrays = Arrays(gpu, images, [x], [np.zeros(256, np.float32)])
    program = arrays.program(scale_step(256, 3.0))
    program.run(arrays.stream)
    graph = gpu.capture(arrays.stream, lambda: program.run(arrays.stream))
    gpu.upload(arrays.memory[0].address, x + 1)
    graph.launch(arrays.stream)
    np.testing.assert_array_equal(arrays.read()[0], 3 * (x + 1))
    with pytest.raises(CaptureError):
        gpu.capture(arrays.stream, arrays.stream.synchronize)
    with pytest.raises(ZeroDivisionError):
        gpu.capture(arrays.stream, lambda: 1 / 0)
    program.run(arrays.stream)  # the stream is usable again
    np.testing.assert_array_equal(arrays.read()[0], 3 * (x + 1))


@pytest.mark.gpu
def test_the_legacy_default_stream_is_refused(gpu, images, graph, on_gpu):
    arrays = Arrays(gpu, images, [], [np.zeros(1, np.float32)])
    program = arrays.program(Memset(Buffer("output"), 4))
    for handle in (0, 1):
        legacy = gpu.external_stream(handle)
        with pytest.raises(CaptureError, match="legacy default stream"):
            gpu.capture(legacy, lambda legacy=legacy: program.run(legacy))
    context = on_gpu(branches(graph, True)[0]).create_execution_context(gpu)
    with pytest.raises(ValueError, match="legacy default stream"):
        context.set_aux_streams([0, 0])
    context.set_aux_streams([gpu.stream(), gpu.stream()])


@pytest.mark.gpu
def test_a_share_of_the_gpu(gpu):
    """A process of its own, since it makes a green context: blocks run on no more multiprocessors than the share has, also in a graph."""
    program = """
import sys; sys.path.insert(0, ".")
import numpy as np
from fusion.dtypes import DataType
from fusion.network import TensorType
from runtime.device import Binding, DeviceError, Tensor
from runtime.devices import open_device
from tactics.compiler import compile_cubin
from tactics.tactic import Buffer, Kernel, Launch, Plan
SOURCE = r'extern "C" __global__ void where(int* y) { unsigned s; asm volatile("mov.u32 %0, %%smid;" : "=r"(s)); ' \
         r'long long start = clock64(); while (clock64() - start < 20000) {} if (!threadIdx.x) y[blockIdx.x] = s; }'
whole = open_device("0")
try: open_device("0", "100000")
except DeviceError as error: assert "give 1 to" in str(error)
for text, least in (("16", 16), ("50%", whole.spec.multiprocessors // 2)):
    gpu = open_device("0", text)
    gpu.activate()
    count = gpu.spec.multiprocessors
    assert least <= count < min(least + 16, whole.spec.multiprocessors), (text, count)
    assert gpu.spec.share == f"{count} of {whole.spec.multiprocessors} SMs", gpu.spec.share
    blocks, kernel = 4 * whole.spec.multiprocessors, Kernel("", "where", (), SOURCE)
    memory, stream = gpu.allocate(4 * blocks), gpu.stream()
    binding = Binding((), (Tensor(memory.address, TensorType(DataType.INT32, (blocks,))),))
    images = {kernel.key(gpu.spec.arch): compile_cubin(SOURCE, (), gpu.spec.arch).image}
    plan = Plan((Launch(kernel, (blocks, 1, 1), (1024, 1, 1), (Buffer("output"),)),))
    done = gpu.program(plan, binding, gpu.load(images))
    found = np.zeros(blocks, np.int32)
    for launch in (lambda: done.run(stream), gpu.capture(stream, lambda: done.run(stream)).launch):
        gpu.fill(memory.address, 0xFF, 4 * blocks, stream)
        launch(stream) if launch.__name__ == "launch" else launch()
        stream.synchronize()
        gpu.download(found, memory.address)
        used = len(np.unique(found))
        print(text, count, used)
        assert found.min() >= 0 and used <= count, (text, used, count)
whole.activate()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
def test_event_times(gpu, images):
    arrays = Arrays(gpu, images, [], [np.zeros(1, np.float32)])
    step = Launch(kernel("spin"), (1, 1, 1), (32, 1, 1), (Buffer("output"), Scalar(2_000_000, "i64")))
    program = arrays.program(step)
    program.run(arrays.stream)
    marks = [gpu.event() for _ in range(3)]

    def enqueue():
        marks[0].mark(arrays.stream)
        program.run(arrays.stream)
        marks[1].mark(arrays.stream)
        program.run(arrays.stream)
        program.run(arrays.stream)
        marks[2].mark(arrays.stream)

    graph = gpu.capture(arrays.stream, enqueue)
    assert graph.nodes == 6
    for launch in (enqueue, lambda: graph.launch(arrays.stream)):
        samples = []
        for _ in range(8):
            launch()
            arrays.stream.synchronize()
            samples.append((marks[1].seconds_since(marks[0]), marks[2].seconds_since(marks[1])))
        one, two = map(min, zip(*samples, strict=True))  # other processes on the GPU only make times longer
        assert 5e-4 < one < 4e-3 and 1.5 * one < two < 2.6 * one  # 2 M clocks at 1 to 2.5 GHz


@pytest.mark.gpu
def test_a_broken_kernel_is_reported_as_such():
    program = """
import sys; sys.path.insert(0, ".")
import importlib.util
spec = importlib.util.spec_from_file_location("t", sys.argv[1]); t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)
gpu = t.open_device("0")
image = t.compile_cubin(t.SOURCE, (), gpu.spec.arch).image
arrays = t.Arrays(gpu, {t.kernel("wild").key(gpu.spec.arch): image}, [], [t.np.zeros(1, "f")])
try:
    arrays.run(t.Launch(t.kernel("wild"), (1, 1, 1), (1, 1, 1), (t.Buffer("output"),)))
except Exception as error:
    print(type(error).__name__, error)
    from trtcli.errors import report
    from trtcli.log import Log
    report(error, Log())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, __file__], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("DeviceLostError") and "start it again" in done.stdout, done.stdout + done.stderr
    assert done.stderr.count("[E]") == len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.gpu
def test_missing_kernels_are_named(gpu):
    arrays = Arrays(gpu, {}, [np.zeros(4, np.float32)], [np.zeros(4, np.float32)])
    with pytest.raises(DeviceError, match=r"kernel 'scale'.*build again"):
        arrays.program(scale_step(4, 1.0))
