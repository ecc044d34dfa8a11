import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Convert, Literal, Operand, apply
from fusion.network import TensorType
from fusion.ops import Gather, GatherND, MatrixMultiply, Pointwise, ScatterElements, ScatterND
from runtime.compare import difference, relative_error
from runtime.cpu import CpuDevice
from runtime.device import DeviceLostError
from runtime.random_data import network_inputs, random_array, workload_inputs
from runtime.timer import Bench, Candidate, measure, rounds
from tactics.tactic import CpuCall, Plan, Workload

FLOAT = DataType.FLOAT


def workload(function: str, *shapes: tuple[int, ...], dtype=FLOAT) -> Workload:
    op = Pointwise(apply(function, *(Operand(i) for i in range(len(shapes)))))
    inputs = tuple(TensorType(dtype, shape) for shape in shapes)
    return Workload(op, inputs, op.infer(inputs), (False,) * len(shapes))


def candidate(function, workspace=0, packed=()) -> Candidate:
    return Candidate(Plan((CpuCall(function),), workspace), packed)


def sleeper(seconds):
    def run(inputs, outputs, packed, workspace):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        np.negative(inputs[0], out=outputs[0])

    return candidate(run)


def test_times_are_right_and_ordered(cpu):
    seconds = measure(cpu, workload("neg", (64,)), [sleeper(2e-3), sleeper(5e-4), sleeper(20e-6), sleeper(7e-4)])
    for found, real in zip(seconds, (2e-3, 5e-4, 20e-6, 7e-4), strict=True):
        assert real <= found < 3 * real + 1e-4
    assert min(seconds) == seconds[2]


def test_a_failure_is_a_value(cpu):
    def broken(inputs, outputs, packed, workspace):
        raise FloatingPointError("no such tile")

    results = measure(cpu, workload("neg", (64,)), [candidate(broken), sleeper(1e-5)])
    assert isinstance(results[0], FloatingPointError) and isinstance(results[1], float)
    assert all(
        isinstance(result, FloatingPointError) for result in measure(cpu, workload("neg", (4,)), [candidate(broken)])
    )


def test_a_lost_device_is_no_value(cpu):
    def broken(inputs, outputs, packed, workspace):
        raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError, match="candidate 1 broke the device: gone"):
        measure(cpu, workload("neg", (64,)), [sleeper(1e-5), candidate(broken)])


def test_slow_candidates_are_not_run_often(cpu):
    calls = []

    def slow(inputs, outputs, packed, workspace):
        calls.append(1)
        time.sleep(0.03)

    measure(cpu, workload("neg", (64,)), [candidate(slow), sleeper(1e-5)])
    assert len(calls) == 2


def test_data_rotates_beyond_the_cache():
    import dataclasses

    device = CpuDevice()
    device.spec = dataclasses.replace(device.spec, l2_bytes=1 << 20)
    seen = set()

    def run(inputs, outputs, packed, workspace):
        seen.add((inputs[0].ctypes.data, outputs[0].ctypes.data, packed[0].ctypes.data))
        np.copyto(outputs[0], packed[0])

    weights = np.arange(1024, dtype=np.float32)
    bench = Bench(device, workload("neg", (16384,)))
    one = candidate(lambda i, o, p, w: run(i, o, p, w), packed=(weights,))
    bench = Bench(device, workload("neg", (1024,)))
    bench.time([one])
    assert len(seen) == 64  # 12 KiB each: as many copies as are allowed
    assert all(len({addresses[i] for addresses in seen}) == 64 for i in range(3))
    np.testing.assert_array_equal(bench.output(one)[0], weights)


def test_check_finds_what_is_wrong(cpu):
    bench = Bench(cpu, workload("neg", (100,)))
    right = candidate(lambda i, o, p, w: np.negative(i[0], out=o[0]))
    wanted = bench.reference(right)
    assert np.isfinite(wanted[0]).all() and bench.check(right, wanted, 1e-6) is None

    def partly(inputs, outputs, packed, workspace):
        np.negative(inputs[0][:99], out=outputs[0][:99])

    def off(inputs, outputs, packed, workspace):
        outputs[0][:] = -inputs[0] * 1.01

    def dirty(inputs, outputs, packed, workspace):
        outputs[0][:] = -inputs[0] + workspace.view(np.float32)[:100]

    def crash(inputs, outputs, packed, workspace):
        raise ValueError("bad tile")

    assert "1 of 100 elements are not written" in bench.check(candidate(partly), wanted, 1e-3)
    assert "relative error 0.01" in bench.check(candidate(off), wanted, 1e-3)
    assert bench.check(candidate(off), wanted, 2e-2) is None
    assert bench.check(candidate(dirty, 400), wanted, 1e-3) is not None
    assert "bad tile" in bench.check(candidate(crash), wanted, 1e-3)


def test_quantising_expressions_are_known():
    scaled = apply("div", Operand(0), Literal(0.1, FLOAT))
    tensor = TensorType(FLOAT, (4,))
    for expression, found in ((scaled, False), (Convert(DataType.INT8, apply("round", scaled)), True)):
        assert rounds(Workload(Pointwise(expression), (tensor,), (tensor,), (False,))) == found


def test_reference_avoids_nan(cpu):
    bench = Bench(cpu, workload("log", (1000,)))
    with np.errstate(invalid="ignore"):
        found = bench.reference(candidate(lambda i, o, p, w: np.log(i[0], out=o[0])))
    assert np.isfinite(found[0]).all()


def test_integers_and_bools_not_written(cpu):
    for dtype in (DataType.INT64, DataType.INT8, DataType.BOOL, DataType.HALF, DataType.BF16, DataType.FP8):
        array = np.ones(10, dtype.numpy)
        holes = array.copy()
        holes.view(np.uint8)[-dtype.itemsize :] = 0xFF
        assert difference(array, array, 1e-3, 0xFF) is None
        assert "1 of 10 elements" in difference(holes, array, 0.5, 0xFF), dtype


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-4, 0.5))
def test_relative_error(seed, scale):
    random = np.random.default_rng(seed)
    wanted = random.standard_normal(50)
    noise = random.standard_normal(50)
    expected = np.linalg.norm(scale * noise) / np.linalg.norm(wanted)
    assert relative_error(wanted + scale * noise, wanted) == pytest.approx(expected)


def test_special_values():
    x = np.array([1.0, np.nan, np.inf, -np.inf], np.float32)
    assert relative_error(x, x) == 0
    assert relative_error(np.array([1, np.nan, np.inf, np.inf], np.float32), x) == np.inf
    assert relative_error(np.array([1, 0, np.inf, -np.inf], np.float32), x) == np.inf
    assert relative_error(np.array([np.nan, np.nan, np.inf, -np.inf], np.float32), x) == np.inf
    assert relative_error(np.zeros(4), np.zeros(4)) == 0
    assert difference(np.zeros(4, np.int64), np.ones(4, np.int64), 0.0) == "4 of 4 elements differ"
    assert "instead of" in difference(np.zeros(4), np.zeros(5), 0)
    assert difference(np.zeros(4, ml_dtypes.bfloat16), np.zeros(4, ml_dtypes.bfloat16), 0) is None


@pytest.mark.parametrize("scale", [1, 0.03])
def test_ties_of_quantised_results_may_go_either_way(scale):
    """One step off in up to a third of the elements is what the last bit decides; more, or two steps, is a fault."""
    dtype = np.int8 if scale == 1 else np.float32
    wanted = (np.random.default_rng(0).integers(-40, 40, 300) * scale).astype(dtype)

    def off(count: int, steps: int) -> np.ndarray:
        found = wanted.copy()
        found[:count] += np.asarray(steps * scale, dtype)
        return found

    assert difference(off(80, 1), wanted, 1e-4, rounded=True) is None
    assert difference(off(80, -1), wanted, 1e-4, rounded=True) is None
    assert "relative error" in difference(off(80, 1), wanted, 1e-4)
    assert "relative error" in difference(off(150, -1), wanted, 1e-4, rounded=True)
    assert "relative error" in difference(off(1, 2), wanted, 1e-4, rounded=True)


def test_continuous_results_have_no_ties():
    wanted = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    found = wanted.copy()
    found[:9] *= 1.01
    assert "relative error" in difference(found, wanted, 1e-4, rounded=True)


@pytest.mark.parametrize("dtype", [DataType.INT32, DataType.INT64])
def test_indices_stay_inside(dtype):
    cases = [
        (Gather(1), ((3, 5), FLOAT), ((100,), dtype)),
        (GatherND(1), ((4, 3, 5), FLOAT), ((4, 50, 2), dtype)),
        (ScatterND(), ((6, 7, 2), FLOAT), ((20, 2), dtype), ((20, 2), FLOAT)),
        (ScatterElements(1), ((6, 7), FLOAT), ((6, 5), dtype), ((6, 5), FLOAT)),
    ]
    for op, *inputs in cases:
        types = tuple(TensorType(kind, shape) for shape, kind in inputs)
        arrays = workload_inputs(Workload(op, types, op.infer(types)))
        for result, kind in zip(op.evaluate(arrays), op.infer(types), strict=True):
            assert result.shape == kind.shape
        assert arrays[1].min() >= 0 and arrays[1].dtype == dtype.numpy
        if isinstance(op, ScatterND):
            assert len(np.unique(arrays[1], axis=0)) == 20
        if isinstance(op, ScatterElements):
            assert all(len(set(row)) == 5 for row in arrays[1].tolist())


def test_large_arrays_repeat():
    array = random_array(np.random.default_rng(0), DataType.HALF, (3000, 1000))
    assert array.shape == (3000, 1000) and array.dtype == np.float16
    assert len(np.unique(array)) > 10_000 and abs(array.astype(np.float32).mean()) < 0.01


def test_network_inputs(graph):
    ids = graph.input("ids", (2, 50), DataType.INT64)
    for name, dtype in (("b", DataType.BOOL), ("i", DataType.INT32), ("u", DataType.UINT8), ("h", DataType.HALF)):
        graph.input(name, (1000,), dtype)
    table = graph.constant("table", np.zeros((3, 4), np.float32))
    out = graph.layer(Gather(0), table, graph.layer(Pointwise(apply("neg", apply("neg", Operand(0)))), ids))
    network = graph.network(out)
    arrays = network_inputs(network, network.tensors)
    assert set(np.unique(arrays["ids"])) == {0, 1, 2}
    assert set(np.unique(arrays["b"])) == {False, True}
    assert arrays["i"].min() < -100 and arrays["i"].max() <= 127
    assert arrays["u"].max() > 200
    assert -1 <= arrays["h"].min() < -0.9 and 0.9 < arrays["h"].max() <= 1
    again = network_inputs(network, network.tensors)
    assert all(np.array_equal(arrays[name], again[name]) for name in arrays)


def test_constants_are_used(cpu):
    op = MatrixMultiply()
    types = (TensorType(FLOAT, (2, 3)), TensorType(FLOAT, (3, 4)))
    bench = Bench(cpu, Workload(op, types, op.infer(types), (False, True)), {1: np.zeros((3, 4), np.float32)})
    found = bench.output(candidate(lambda i, o, p, w: np.matmul(i[0], i[1], out=o[0])))
    np.testing.assert_array_equal(found[0], np.zeros((2, 4)))
