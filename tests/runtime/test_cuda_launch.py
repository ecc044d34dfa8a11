"""Packing of launches, without a GPU: layouts are compared with C's rules and with cuda.bindings."""

import ctypes
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.network import TensorType
from runtime.cuda_driver import LaunchAttribute, LaunchConfig, failure
from runtime.cuda_launch import launch_config, pack_arguments
from runtime.cuda_spec import architecture, peak_rates
from runtime.device import Binding, CaptureError, DeviceError, DeviceLostError, DeviceMemoryError, Tensor
from runtime.tensor_map import invalid
from tactics.tactic import Buffer, Im2col, Kernel, Launch, Scalar, Struct, TensorMap

KERNEL = Kernel("", "k")
CTYPES = {
    "i32": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64,
    "u64": ctypes.c_uint64,
    "f32": ctypes.c_float,
    "f64": ctypes.c_double,
}


def address(buffer: Buffer) -> int:
    return {"input": 0x1000, "output": 0x2000}[buffer.kind] + 0x100 * buffer.index + buffer.offset


def encode(tensor_map: TensorMap, at: int) -> bytes:
    return struct.pack("<Q", at) * 16


scalars = st.sampled_from(sorted(CTYPES)).flatmap(
    lambda kind: st.builds(
        Scalar,
        st.floats(-1e9, 1e9, width=32, allow_subnormal=False) if kind[0] == "f" else st.integers(0, 2**31 - 1),
        st.just(kind),
    )
)
buffers = st.builds(Buffer, st.sampled_from(["input", "output"]), st.integers(0, 3), st.integers(0, 64))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(scalars, buffers), min_size=1, max_size=10))
def test_structs_are_laid_out_as_c_does(fields):
    kinds = [CTYPES[field.ctype] if isinstance(field, Scalar) else ctypes.c_uint64 for field in fields]
    layout = type("S", (ctypes.Structure,), {"_fields_": [(f"f{i}", kind) for i, kind in enumerate(kinds)]})
    values = [field.value if isinstance(field, Scalar) else address(field) for field in fields]
    packed = pack_arguments([Scalar(1), Struct(tuple(fields))], address, encode)
    raw = packed.value(1, ctypes.sizeof(layout))
    found = layout.from_buffer_copy(raw)
    for i, value in enumerate(values):
        assert getattr(found, f"f{i}") == kinds[i](value).value
    assert packed.pointers[1] % ctypes.alignment(layout) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(scalars, buffers), max_size=20))
def test_parameters_are_aligned_and_whole(arguments):
    packed = pack_arguments(arguments, address, encode)
    for i, argument in enumerate(arguments):
        kind = CTYPES[argument.ctype] if isinstance(argument, Scalar) else ctypes.c_uint64
        value = argument.value if isinstance(argument, Scalar) else address(argument)
        assert packed.pointers[i] % ctypes.sizeof(kind) == 0
        assert kind.from_buffer_copy(packed.value(i, ctypes.sizeof(kind))).value == kind(value).value


def test_tensor_maps_are_passed_by_value_at_64_bytes():
    tensor_map = TensorMap(Buffer("output", 1, 32), DataType.HALF, (64, 8), (128,), (64, 8))
    packed = pack_arguments([Scalar(1), tensor_map, Scalar(2), tensor_map], address, encode)
    for i in (1, 3):
        assert packed.pointers[i] % 64 == 0
        assert packed.value(i, 128) == struct.pack("<Q", 0x2120) * 16
    assert packed.value(2, 4) == struct.pack("<i", 2)


@pytest.mark.parametrize(
    "scalar", [Scalar(2**31), Scalar(-1, "u32"), Scalar(1.5), Scalar(2**64, "u64"), Scalar(1, "i7")]
)
def test_numbers_that_do_not_fit_are_refused(scalar):
    with pytest.raises(DeviceError, match="kernel argument"):
        pack_arguments([scalar], address, encode)


def test_no_arguments():
    assert len(pack_arguments([], address, encode).pointers) == 1


@pytest.mark.parametrize("cluster", [(1, 1, 1), (2, 1, 1), (1, 4, 2)])
@pytest.mark.parametrize("dependent", [False, True])
def test_launch_configuration_matches_cuda_bindings(cluster, dependent):
    driver = pytest.importorskip("cuda.bindings.driver")
    launch = Launch(KERNEL, (8, 4, 2), (32, 2, 1), (), 70000, cluster, dependent)
    config, attributes = launch_config(launch)
    config.stream = 0x1234

    wanted = driver.CUlaunchConfig()
    wanted.gridDimX, wanted.gridDimY, wanted.gridDimZ = launch.grid
    wanted.blockDimX, wanted.blockDimY, wanted.blockDimZ = launch.block
    wanted.sharedMemBytes = launch.shared_memory
    wanted.hStream = driver.CUstream(0x1234)
    expected = []
    if cluster != (1, 1, 1):
        one = driver.CUlaunchAttribute()
        one.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        one.value.clusterDim.x, one.value.clusterDim.y, one.value.clusterDim.z = cluster
        expected.append(one)
    if dependent:
        one = driver.CUlaunchAttribute()
        one.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        one.value.programmaticStreamSerializationAllowed = 1
        expected.append(one)
    wanted.numAttrs = len(expected)

    size = ctypes.sizeof(LaunchConfig)
    theirs = LaunchConfig.from_buffer_copy(ctypes.string_at(int(wanted.getPtr()), size))
    for name in ("grid", "block"):
        assert list(getattr(config, name)) == list(getattr(theirs, name))
    for name in ("shared_memory", "stream", "attribute_count"):
        assert getattr(config, name) == getattr(theirs, name)
    assert size == 56 and ctypes.sizeof(LaunchAttribute) == 72
    for number, one in enumerate(expected):
        there = LaunchAttribute.from_buffer_copy(ctypes.string_at(int(one.getPtr()), 72))
        assert attributes[number].id == there.id and list(attributes[number].value)[:3] == list(there.value)[:3]
    assert bool(config.attributes) == bool(expected)


@pytest.mark.parametrize(
    ("grid", "block", "cluster"),
    [
        ((1, 70000, 1), (32, 1, 1), (1, 1, 1)),
        ((2**31, 1, 1), (32, 1, 1), (1, 1, 1)),
        ((1, 1, 1), (2048, 1, 1), (1, 1, 1)),
        ((1, 1, 1), (64, 64, 1), (1, 1, 1)),
        ((1, 1, 1), (0, 1, 1), (1, 1, 1)),
        ((3, 1, 1), (32, 1, 1), (2, 1, 1)),
    ],
)
def test_impossible_geometry_is_refused(grid, block, cluster):
    with pytest.raises(DeviceError, match="kernel 'k'"):
        launch_config(Launch(KERNEL, grid, block, (), 0, cluster))


def tiled(**changes) -> TensorMap:
    values = {"buffer": Buffer("input"), "dtype": DataType.HALF, "dims": (64, 32), "strides": (128,), "box": (64, 8)}
    return TensorMap(**{**values, **changes})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"dims": (64, 0)}, "dimensions"),
        ({"dims": (), "strides": (), "box": ()}, "rank"),
        ({"strides": (130,)}, "strides"),
        ({"strides": ()}, "strides"),
        ({"box": (64, 512)}, "box"),
        ({"box": (64,)}, "box"),
        ({"box": (128, 8)}, "swizzle spans"),
        ({"box": (4, 8)}, "innermost"),
        ({"swizzle": 256}, "swizzle"),
        ({"element_strides": (1, 9)}, "element strides"),
        ({"im2col": Im2col((0,), (0,), 64, 8)}, "rank"),
    ],
)
def test_tensor_map_rules(change, word):
    assert invalid(tiled(), 0x1000) == ""
    assert word in invalid(tiled(**change), 0x1000)
    assert "address" in invalid(tiled(), 0x1008)


def test_im2col_rules():
    good = tiled(dims=(64, 8, 8, 2), strides=(128, 1024, 8192), box=(), im2col=Im2col((-1, -1), (-1, -1), 64, 128))
    assert invalid(good, 0x1000) == ""
    assert "corners" in invalid(tiled(dims=(64, 8, 8), strides=(128, 1024), im2col=Im2col((0, 0), (0,), 64, 8)), 0)
    assert "channels" in invalid(tiled(dims=(64, 8, 8), strides=(128, 1024), im2col=Im2col((0,), (0,), 512, 8)), 0)


def test_tensor_map_values_exist_in_cuda_bindings():
    driver = pytest.importorskip("cuda.bindings.driver")
    from runtime.tensor_map import _TYPES

    assert all((dtype.itemsize == 1) == (name == "UINT8") for dtype, name in _TYPES.items()) and set(_TYPES) == set(DataType)
    for name in _TYPES.values():
        assert hasattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{name}")
    for name in ("NONE", "32B", "64B", "128B"):
        assert hasattr(driver.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{name}")
    for name in ("NONE", "L2_64B", "L2_128B", "L2_256B"):
        assert hasattr(driver.CUtensorMapL2promotion, f"CU_TENSOR_MAP_L2_PROMOTION_{name}")


def test_bindings_resolve_buffers():
    kind = TensorType(DataType.FLOAT, (4,))
    empty = TensorType(DataType.FLOAT, (0, 4))
    binding = Binding((Tensor(256, kind), Tensor(0, kind), Tensor(0, empty)), (Tensor(512, kind),), (), 4096, 100)
    assert binding.address(Buffer("input", 0, 8)) == 264
    assert binding.address(Buffer("workspace", 0, 16)) == 4112
    assert binding.address(Buffer("input", 2)) == 0
    for buffer in (Buffer("input", 1), Buffer("output", 1), Buffer("packed"), Buffer("nonsense")):
        with pytest.raises(DeviceError, match="has no memory"):
            binding.address(buffer)


def test_error_codes():
    assert isinstance(failure(700, "x"), DeviceLostError) and "start it again" in str(failure(719, "x"))
    assert isinstance(failure(2, "x"), DeviceMemoryError)
    assert isinstance(failure(901, "x"), CaptureError)
    assert type(failure(1, "x")) is DeviceError


def test_architecture_names_and_rates():
    assert [architecture(c) for c in (75, 89, 90, 100, 120)] == ["sm_75", "sm_89", "sm_90a", "sm_100a", "sm_120a"]
    h100 = peak_rates(90, 132, 1.83e9)
    assert h100["float16"] == pytest.approx(989e12, rel=0.01)  # NVIDIA's data sheet
    assert h100["tf32"] == pytest.approx(494e12, rel=0.01) and h100["float32"] == pytest.approx(62e12, rel=0.08)
    assert peak_rates(89, 142, 2.52e9)["float16"] == pytest.approx(362e12, rel=0.02)  # L40S
    assert peak_rates(75, 40, 1.59e9)["float16"] == pytest.approx(65e12, rel=0.01)  # T4
    assert peak_rates(87, 1, 1.0) == peak_rates(86, 1, 1.0)


def test_attribute_numbers_are_cuda_bindings():
    driver = pytest.importorskip("cuda.bindings.driver")
    from runtime import cuda, cuda_spec

    names = {
        "_SMS": "MULTIPROCESSOR_COUNT",
        "_CLOCK_KHZ": "CLOCK_RATE",
        "_MAJOR": "COMPUTE_CAPABILITY_MAJOR",
        "_MINOR": "COMPUTE_CAPABILITY_MINOR",
        "_L2": "L2_CACHE_SIZE",
        "_MEMORY_CLOCK_KHZ": "MEMORY_CLOCK_RATE",
        "_BUS_BITS": "GLOBAL_MEMORY_BUS_WIDTH",
        "_SHARED_PER_SM": "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR",
        "_SHARED_OPTIN": "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
        "_ECC": "ECC_ENABLED",
    }
    for ours, theirs in names.items():
        assert getattr(cuda_spec, ours) == int(getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{theirs}"))
    attributes = driver.CUfunction_attribute
    assert int(attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) == cuda._MAX_DYNAMIC_SHARED
    assert int(attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) == cuda._NON_PORTABLE_CLUSTER
    sizes = (f"CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_{name}" for name in ("WIDTH", "HEIGHT", "DEPTH"))
    assert tuple(int(getattr(attributes, name)) for name in sizes) == cuda._REQUIRED_CLUSTER
    assert int(driver.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL) == cuda._EVENT_RECORD_EXTERNAL


def test_cupy_has_what_the_device_uses():
    cupy = pytest.importorskip("cupy")
    for name in ("Stream", "Event", "Device", "alloc", "malloc_managed", "alloc_pinned_memory", "get_elapsed_time"):
        assert hasattr(cupy.cuda, name)
    for name in (
        "memcpyAsync",
        "memsetAsync",
        "deviceSynchronize",
        "memGetInfo",
        "profilerStart",
        "profilerStop",
        "free",
    ):
        assert hasattr(cupy.cuda.runtime, name)
    assert hasattr(cupy.cuda.runtime, "memcpyDefault") and hasattr(cupy.cuda.runtime, "streamCaptureModeThreadLocal")
    for name in ("begin_capture", "end_capture", "is_capturing", "wait_event", "launch_host_func", "synchronize"):
        assert hasattr(cupy.cuda.Stream, name)
    assert hasattr(cupy.cuda.Stream, "from_external") or hasattr(cupy.cuda, "ExternalStream")
    from cupy.cuda.function import Function, Module

    assert hasattr(Module, "load") and hasattr(Module, "get_function") and hasattr(Function, "ptr")
    assert cupy.cuda.runtime.CUDARuntimeError(700).status == 700
    assert issubclass(cupy.cuda.driver.CUDADriverError, RuntimeError)


class Driver:
    """Records what a program calls; the launch's stream is read from its configuration, as the driver would."""

    def __init__(self):
        self.calls, self.code = [], 0

    def cuGetErrorName(self, code, text):
        return 1

    cuGetErrorString = cuGetErrorName

    def cuLaunchKernelEx(self, config, function, parameters, extra):
        self.calls.append(("kernel", config._obj.stream, config._obj.grid[0]))
        return self.code

    def cuMemsetD8Async(self, target, byte, size, stream):
        self.calls.append(("memset", stream.value, size.value))
        return 0

    def cuMemcpyDtoDAsync_v2(self, target, source, size, stream):
        self.calls.append(("copy", stream.value, size.value))
        return 0


def test_a_program_follows_its_stream(monkeypatch):
    from runtime import cuda_driver
    from runtime.cuda import CudaProgram
    from runtime.device import Stream

    class Fake(Stream):
        synchronize = wait = call = None

        def __init__(self, handle):
            self.handle = handle

    Fake.__abstractmethods__ = frozenset()
    driver = Driver()
    monkeypatch.setattr(cuda_driver, "library", lambda: driver)
    kind = TensorType(DataType.FLOAT, (4,))
    binding = Binding((Tensor(256, kind),), (Tensor(512, kind),))

    class Modules:
        def function(self, step):
            return type("Function", (), {"handle": ctypes.c_void_p(7)})()

    program = CudaProgram()
    program.launch(Launch(KERNEL, (3, 1, 1), (32, 1, 1), (Buffer("input"), Scalar(1))), binding, Modules())
    program.memset(512, 16)
    program.copy(512, 256, 8)
    for handle in (11, 11, 22):
        driver.calls.clear()
        program.run(Fake(handle))
        assert driver.calls == [("kernel", handle, 3), ("memset", handle, 16), ("copy", handle, 8)]
    driver.code = 1
    with pytest.raises(DeviceError, match="launching kernel 'k'"):
        program.run(Fake(22))


def test_a_share_is_a_count_or_a_percentage():
    from runtime.cuda_green import wanted_multiprocessors

    assert [wanted_multiprocessors(text, 132) for text in ("1", "64", "132", "50%", "100%", "12.5%")] == [1, 64, 132, 66, 132, 16]
    for text in ("0", "133", "0%", "101%", "many"):
        with pytest.raises(DeviceError, match="the GPU has 132 SMs"):
            wanted_multiprocessors(text, 132)


def test_green_contexts_come_from_cuda_python(monkeypatch):
    """The calls and the shapes of their answers are those of cuda.bindings (which runs here only with a driver)."""
    driver = pytest.importorskip("cuda.bindings.driver")
    from runtime import cuda_green

    resource = driver.CUdevResource()
    seen = []
    answers = {
        "cuDeviceGetDevResource": lambda device, kind: (0, resource),
        "cuDevSmResourceSplitByCount": lambda groups, whole, flags, least: (0, [resource], 1, resource),
        "cuDevResourceGenerateDesc": lambda resources, count: (0, "described"),
        "cuGreenCtxCreate": lambda described, device, flags: (0, "green"),
        "cuCtxFromGreenCtx": lambda green: (0, 99),
    }
    for name, answer in answers.items():
        assert callable(getattr(driver, name))

        def called(*arguments, name=name, answer=answer):
            seen.append(name)
            return answer(*arguments)

        called.__name__ = name
        monkeypatch.setattr(driver, name, called)
    monkeypatch.setattr(cuda_green, "wanted_multiprocessors", lambda text, total: 8)
    found = cuda_green.green_context(0, "8")
    assert (found.handle, found.multiprocessors, found.total) == (99, resource.sm.smCount, resource.sm.smCount)
    assert seen == list(answers)
    monkeypatch.setattr(driver, "cuGreenCtxCreate", lambda *_: (801, None))
    with pytest.raises(DeviceError, match="--limitSMs"):
        cuda_green.green_context(0, "8")
