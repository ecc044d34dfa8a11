"""The CUDA device on a GPU: memory, launches with every kind of argument, graphs, events, streams, timing, whole engines."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import TensorType
from fusion.ops import Pointwise, Shuffle
from runtime import resolution
from runtime.benchmark import BenchmarkOptions, run_benchmark
from runtime.cuda_driver import device_count
from runtime.device import Binding, CaptureError, DeviceError, DeviceMemoryError, Tensor
from runtime.devices import open_device
from runtime.engine import LayerPlan
from runtime.graph import GraphRunner, compare_replay
from runtime.nvtx import layer_ranges
from runtime.profiler import profile_layers
from runtime.streams import event_cost, with_streams
from runtime.timer import Bench, Candidate
from tactics.compiler import compile_cubin
from tactics.tactic import (
    Buffer,
    Copy,
    Kernel,
    Launch,
    Memset,
    Plan,
    Scalar,
    Struct,
    Tactic,
    TensorMap,
    Workload,
)

SOURCE = r"""
typedef unsigned long long u64;
extern "C" __global__ void scale(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i];
}
struct Pair { const float* left; int add; const float* right; double factor; };
extern "C" __global__ void combine(char shift, Pair p, float* y, long long n, unsigned char last) {
    for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        y[i] = p.left[i] + p.add + p.right[i] * (float)p.factor + last;
}
extern "C" __global__ void spin(float* y, long long clocks) {
    long long start = clock64();
    while (clock64() - start < clocks) {}
    if (threadIdx.x == 0) y[blockIdx.x] = 1.0f;
}
extern "C" __global__ void shared_memory(float* y, int n) {
    extern __shared__ float memory[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) memory[i] = i;
    __syncthreads();
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += memory[n - 1 - i] == n - 1 - i;
    atomicAdd(y, sum);
}
extern "C" __global__ void add_one(float* y, int n) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = y[i] * 2.0f + 1.0f;
}
extern "C" __global__ void wild(float* y) { y[1ull << 45] = 1.0f; }
"""
SOURCE_90 = r"""
typedef unsigned u32;
extern "C" __global__ void cluster_size(float* y) {
    u32 size, rank;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    if (threadIdx.x == 0) y[blockIdx.x] = size * 100 + rank;
}
struct alignas(64) Map { char bytes[128]; };
// Copies a 64 x 8 tile of halves at column x, row y of a map without swizzle.
extern "C" __global__ void tile(int before, const __grid_constant__ Map map, void* out, int x, int y) {
    __shared__ alignas(128) char memory[64 * 8 * 2];
    __shared__ alignas(8) unsigned long long barrier;
    u32 target = __cvta_generic_to_shared(memory), bar = __cvta_generic_to_shared(&barrier);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(bar));
        asm volatile("fence.proxy.async;" ::: "memory");
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(bar), "r"(64 * 8 * 2) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                     :: "r"(target), "l"(&map), "r"(bar), "r"(x), "r"(y) : "memory");
    }
    __syncthreads();
    asm volatile("{ .reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @!p bra WAIT; }" :: "r"(bar) : "memory");
    for (int i = threadIdx.x; i < 64 * 8 * 2 / 4; i += blockDim.x) ((u32*)out)[i] = ((u32*)memory)[i];
}
"""
FLOAT = DataType.FLOAT


def kernel(entry: str, source: str = SOURCE) -> Kernel:
    return Kernel("", entry, (), source)


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
def test_the_kernels_of_these_tests_compile(arch):
    pytest.importorskip("cuda.bindings.nvrtc")
    assert compile_cubin(SOURCE, (), arch).image.startswith(b"\x7fELF")
    if arch == "sm_90a":
        assert compile_cubin(SOURCE_90, (), arch).image.startswith(b"\x7fELF")


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


def scale_step(n, factor, source=None, target=None):
    arguments = (source or Buffer("input"), target or Buffer("output"), Scalar(factor, "f32"), Scalar(n))
    return Launch(kernel("scale"), (-(-n // 128), 1, 1), (128, 1, 1), arguments)


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
def test_managed_memory(gpu, graph, on_gpu):
    engine, _ = branches(graph, False)
    x = {"x": np.random.default_rng(5).standard_normal((64, 100)).astype(np.float32)}
    options = BenchmarkOptions(5, 0.0, 0.0, managed=True, transfers=True)
    result = run_benchmark([on_gpu(engine).create_execution_context(gpu)], x, options)
    for found in result.outputs.values():
        np.testing.assert_array_equal(found, x["x"].reshape(100, 64))


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


# --- timing, engines -------------------------------------------------------------------------------------------------


def neg_workload(n):
    op = Pointwise(apply("neg", Operand(0)))
    types = (TensorType(FLOAT, (n,)),)
    return Workload(op, types, op.infer(types), (False,))


@pytest.mark.gpu
def test_timer(gpu, images):
    n = 1 << 16
    bench = Bench(gpu, neg_workload(n))
    spins = [
        Candidate(
            Plan((Launch(kernel("spin"), (1, 1, 1), (32, 1, 1), (Buffer("output"), Scalar(clocks, "i64"))),)),
            (),
            images,
        )
        for clocks in (20_000, 4_000, 400_000, 40_000)
    ]
    right = Candidate(Plan((scale_step(n, -1.0),)), (), images)
    impossible = Candidate(Plan((replace(scale_step(n, -1.0), shared_memory=1 << 24),)), (), images)
    seconds = bench.time([*spins, right, impossible])
    assert isinstance(seconds[-1], DeviceError)
    assert seconds[1] < seconds[0] < seconds[3] < seconds[2]
    assert 0.3e-6 < seconds[4] < 20e-6  # half a megabyte: a few microseconds, not the 8 of a lone event pair
    wanted = bench.reference(right)
    assert bench.check(right, wanted, 1e-6) is None
    assert "not written" in bench.check(spins[0], wanted, 1e-6)
    partly = Candidate(Plan((scale_step(n - 3, -1.0),)), (), images)
    assert "3 of 65536 elements are not written" in bench.check(partly, wanted, 1e-6)


@pytest.mark.gpu
def test_a_large_copy_runs_at_memory_speed(gpu, images):
    n = 1 << 26
    seconds = Bench(gpu, neg_workload(n)).time([Candidate(Plan((scale_step(n, -1.0),)), (), images)])[0]
    # One float a thread reaches a third of an H200's bandwidth; far less, or more than all of it, is a wrong time.
    assert 0.25 * gpu.spec.bandwidth < 8 * n / seconds < 1.05 * gpu.spec.bandwidth


class Scale(Tactic):
    """y = -x by the kernel above, slowly when the configuration says so."""

    id = "test.gpu"
    device = "cuda"

    def plan(self, workload, config, device):
        n = int(np.prod(workload.outputs[0].shape))
        clocks = dict(config).get("clocks", 0)
        busy = (
            (Launch(kernel("spin"), (1, 1, 1), (32, 1, 1), (Buffer("workspace"), Scalar(clocks, "i64"))),)
            if clocks
            else ()
        )
        return Plan((*busy, scale_step(n, -1.0)), 256 if clocks else 0)


@pytest.fixture
def on_gpu(gpu, images, monkeypatch):
    """(engine made for the CPU) -> the same with this file's tactic on the GPU."""
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


NEG = Pointwise(apply("neg", Operand(0)))


def branches(graph, streams):
    x = graph.input("x", (64, 100))
    outputs = []
    for branch in range(3):
        y = x
        for depth in range(4):
            y = graph.layer(NEG, y, name=f"b{branch}d{depth}")
            if depth == 1:
                y = graph.layer(Shuffle(reshape=(100, 64)), y, name=f"view{branch}")
        outputs.append(y)
    return graph.engine(
        *outputs, streams={f"b{b}d{d}": b for b in range(3) for d in range(4)} if streams else {}
    ), outputs


@pytest.mark.gpu
@pytest.mark.parametrize("streams", [False, True])
def test_engines_streams_and_graphs(gpu, graph, on_gpu, streams):
    engine, outputs = branches(graph, streams)
    engine = on_gpu(engine, slow=("b1d0", "b2d2"))
    context = engine.create_execution_context(gpu)
    x = {"x": np.random.default_rng(3).standard_normal((64, 100)).astype(np.float32)}
    for name, found in context.execute(x).items():
        assert name in outputs
        np.testing.assert_array_equal(found, x["x"].reshape(100, 64))
    replay = compare_replay(context, x)
    assert replay.nodes == 14 and not replay.differing and not replay.warnings
    import cupy

    mine = cupy.asarray(-x["x"])
    context.set_tensor_address("x", mine)
    other = cupy.zeros((100, 64), cupy.float32)
    context.set_tensor_address(outputs[0], other)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    context.execute_async_v3(stream.ptr)
    stream.synchronize()
    np.testing.assert_array_equal(other.get(), -x["x"].reshape(100, 64))
    with pytest.raises(ValueError, match="memory is on cpu"):
        context.set_tensor_address("x", x["x"])
    with pytest.raises(ValueError, match="float64"):
        context.set_tensor_address("x", cupy.zeros((64, 100)))


@pytest.mark.gpu
def test_parallel_branches_overlap(gpu, graph, on_gpu):
    engine, _ = branches(graph, True)
    context = on_gpu(engine, slow=("b0d1", "b1d1", "b2d1")).create_execution_context(gpu)
    x = {"x": np.zeros((64, 100), np.float32)}
    result = run_benchmark([context], x, BenchmarkOptions(20, 0.0, 5.0))
    profile = profile_layers(context, x, BenchmarkOptions(20, 0.0, 5.0))
    slow = [layer.median for layer in profile.layers if layer.name.endswith("d1")]
    latency = float(np.median([query.compute for query in result.queries]))
    assert latency < 0.6 * sum(slow)


@pytest.mark.gpu
def test_streams_are_chosen_by_measurement(gpu, graph, on_gpu):
    """Three branches, each with a layer that keeps one block busy for long: side by side they take a third of the time."""
    assert 0 <= event_cost(gpu) < 2e-5
    engine = on_gpu(branches(graph, False)[0], slow=("b0d1", "b1d1", "b2d1"))
    seconds = {layer.name: 2e-4 if layer.name.endswith("d1") else 2e-6 for layer in engine.network.layers}
    plans = [replace(plan, seconds=seconds[layer.name]) for layer, plan in zip(engine.network.layers, engine.layers, strict=True)]
    found, record = with_streams(replace(engine, layers=tuple(plans)), gpu)
    assert found.num_aux_streams == record["used"] == 2, record
    assert record["measuredMs"] < 0.7 * record["measuredSerialMs"], record
    x = {"x": np.random.default_rng(6).standard_normal((64, 100)).astype(np.float32)}
    replay = compare_replay(found.create_execution_context(gpu), x)
    assert replay.nodes and not replay.differing


@pytest.mark.gpu
@pytest.mark.parametrize("transfers", [False, True])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("use_graph", [False, True])
def test_benchmark(gpu, graph, on_gpu, transfers, threads, use_graph):
    engine, _ = branches(graph, False)
    engine = on_gpu(engine)
    contexts = [engine.create_execution_context(gpu) for _ in range(2)]
    x = {"x": np.random.default_rng(4).standard_normal((64, 100)).astype(np.float32)}
    options = BenchmarkOptions(20, 0.02, 5.0, threads=threads, transfers=transfers, graph=use_graph, spin=not threads)
    result = run_benchmark(contexts, x, options)
    assert (result.graph_nodes == 12) == use_graph and len(result.queries) >= 40
    for query in result.queries:
        assert query.compute > 0 and (query.h2d > 0) == (query.d2h > 0) == transfers
        assert query.start_compute >= 5.0 and query.enqueue > 0
    for found in result.outputs.values():
        np.testing.assert_array_equal(found, x["x"].reshape(100, 64))


@pytest.mark.gpu
def test_ranges_can_be_written(gpu, graph, on_gpu):
    context = on_gpu(branches(graph, False)[0]).create_execution_context(gpu)
    ranges = layer_ranges(tuple(layer.name for layer in context.engine.network.layers))
    assert ranges is not None
    for use_graph in (False, True):
        result = run_benchmark([context], {"x": np.zeros((64, 100), np.float32)}, BenchmarkOptions(3, 0.0, 0.0, graph=use_graph, ranges=ranges))
        assert len(result.queries) == 3


@pytest.mark.gpu
def test_exposed_copies_take_turns_with_the_computation(gpu, graph, on_gpu):
    context = on_gpu(branches(graph, False)[0]).create_execution_context(gpu)
    x = {"x": np.zeros((64, 100), np.float32)}
    result = run_benchmark([context], x, BenchmarkOptions(30, 0.0, 0.0, transfers=True, expose_dma=True))
    for one, other in zip(result.queries, result.queries[1:], strict=False):
        assert other.start_h2d > one.end_d2h - 1e-3  # an event's resolution


@pytest.mark.gpu
def test_profile_adds_up(gpu, graph, on_gpu):
    engine, _ = branches(graph, False)
    context = on_gpu(engine, slow=("b1d2",)).create_execution_context(gpu)
    x = {"x": np.zeros((64, 100), np.float32)}
    result = run_benchmark([context], x, BenchmarkOptions(50, 0.0, 5.0))
    profile = profile_layers(context, x, BenchmarkOptions(50, 0.0, 5.0))
    assert profile.in_graph and profile.count >= 50
    slowest = max(profile.layers, key=lambda layer: layer.median)
    assert slowest.name == "b1d2"
    latency = float(np.median([query.compute for query in result.queries]))
    assert 0.8 * latency < float(np.median(profile.iteration_totals)) < 1.5 * latency
    assert 0 < profile.event_overhead < 0.01


@pytest.mark.gpu
def test_torch_tensors(gpu, graph, on_gpu):
    torch = pytest.importorskip("torch")
    engine, outputs = branches(graph, False)
    context = on_gpu(engine).create_execution_context(gpu)
    x = torch.randn(64, 100, device="cuda")
    found = {name: torch.empty(100, 64, device="cuda") for name in outputs}
    for name, tensor in {"x": x, **found}.items():
        context.set_tensor_address(name, tensor)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    context.execute_async_v3(stream)
    stream.synchronize()
    for tensor in found.values():
        assert torch.equal(tensor, x.reshape(100, 64))
    runner = GraphRunner(context)
    assert runner.prepare()
