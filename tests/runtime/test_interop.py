from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from fusion.dtypes import DataType
from runtime import devices
from runtime.addresses import check_place
from runtime.device import DeviceError
from runtime.devices import open_device
from runtime.interop import Foreign, foreign, stream_handle


class Cuda:
    """What a GPU library's tensor looks like."""

    def __init__(self, **interface):
        self.__cuda_array_interface__ = {
            "shape": (2, 3),
            "typestr": "<f4",
            "data": (4096, False),
            "version": 3,
            **interface,
        }


class Exporter:
    """A tensor that offers DLPack only."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self):
        return self.array.__dlpack__()


def test_addresses_and_arrays():
    assert foreign(4096).address == 4096 and foreign(np.int64(5)).kind is None
    array = np.zeros((2, 3), ml_dtypes.bfloat16)
    found = foreign(array)
    assert (found.address, found.kind, found.shape, found.dtype) == (array.ctypes.data, "cpu", (2, 3), DataType.BF16)


def test_cuda_array_interface():
    found = foreign(Cuda())
    assert (found.address, found.kind, found.shape, found.dtype) == (4096, "cuda", (2, 3), DataType.FLOAT)
    assert foreign(Cuda(strides=(12, 4))).shape == (2, 3)
    assert foreign(Cuda(shape=(1, 3), strides=(99, 4))).shape == (1, 3)
    with pytest.raises(ValueError, match="not contiguous"):
        foreign(Cuda(strides=(4, 8)))
    with pytest.raises(ValueError, match="complex"):
        foreign(Cuda(typestr="<c8"))


@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "u1", "?", "f8", "i4"])
def test_dlpack(dtype):
    array = np.ones((4, 5), dtype)
    found = foreign(Exporter(array[1:]))
    assert found.address == array[1:].ctypes.data and found.kind == "cpu" and found.shape == (3, 5)
    assert found.dtype.numpy == array.dtype
    with pytest.raises(ValueError, match="not contiguous"):
        foreign(Exporter(array[:, ::2]))
    with pytest.raises(ValueError, match="DLPack"):
        foreign(Exporter(np.zeros(3, np.complex64)))


def test_streams():
    assert stream_handle(7) == 7
    assert stream_handle(type("T", (), {"cuda_stream": 8})()) == 8
    assert stream_handle(type("P", (), {"__cuda_stream__": lambda self: (0, 9)})()) == 9
    with pytest.raises(TypeError, match="no stream"):
        stream_handle("fast")


def test_opening_devices(monkeypatch):
    assert open_device("cpu") is open_device("CPU")
    monkeypatch.setattr(devices, "device_count", lambda: 0)
    assert open_device().name == "cpu" and open_device("auto").spec.kind == "cpu"
    with pytest.raises(DeviceError, match="Cannot find any available devices"):
        open_device("0")
    monkeypatch.setattr(devices, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="Cannot find device ID 2! There are 2 GPUs, 0 to 1"):
        open_device("2")
    for name in ("gpu", "-1", "1.5", "²"):
        with pytest.raises(DeviceError, match="not a device"):
            open_device(name)


def test_the_cpu_says_what_it_is():
    cpu = open_device("cpu")
    assert cpu.spec.kind == "cpu" and cpu.spec.name and cpu.spec.multiprocessors >= 1
    assert cpu.spec.memory_bytes > cpu.free_memory() > 0
    memory = cpu.allocate(1000)
    assert memory.address % 256 == 0
    with pytest.raises(DeviceError, match="streams of other libraries"):
        cpu.external_stream(5)


def test_buffers_of_python():
    from array import array

    values = array("f", [1.0, 2.0, 3.0])
    found = foreign(values)
    assert (found.kind, found.shape, found.dtype, found.writable) == ("cpu", (3,), DataType.FLOAT, True)
    assert found.address == values.buffer_info()[0]
    assert foreign(memoryview(values).cast("B").cast("f", (1, 3))).shape == (1, 3)
    assert foreign(bytearray(8)).dtype is DataType.UINT8
    assert not foreign(b"12345678").writable
    with pytest.raises(ValueError, match="not contiguous"):
        foreign(memoryview(values)[::2])


def test_memory_of_another_device():
    gpu = SimpleNamespace(name="0", spec=SimpleNamespace(kind="cuda"))
    for fine in (Foreign(4096), Foreign(4096, "cuda"), Foreign(4096, "cuda", gpu=0)):
        check_place("it", fine, gpu)
    with pytest.raises(ValueError, match="it is on cpu, the engine runs on cuda"):
        check_place("it", foreign(np.zeros(4, np.float32)), gpu)
    second = Cuda()
    second.__dlpack_device__ = lambda: (2, 1)
    assert foreign(second).gpu == 1
    with pytest.raises(ValueError, match="it is on GPU 1, the context on GPU 0"):
        check_place("it", foreign(second), gpu)
    second.__dlpack_device__ = lambda: (13, 1)  # managed memory: every GPU's
    assert foreign(second).gpu is None


def test_read_only_memory():
    fixed = np.zeros(4, np.float32)
    fixed.flags.writeable = False
    assert not foreign(fixed).writable
    assert not foreign(Cuda(data=(4096, True))).writable and foreign(Cuda()).writable


def test_a_gpu_is_not_made_to_wait():
    """DLPack's stream=-1: the consumer orders the work itself."""
    asked = []

    class OnGpu:
        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, stream=None):
            asked.append(stream)
            return np.zeros(3, np.float32).__dlpack__()

    foreign(OnGpu())
    assert asked == [-1]
