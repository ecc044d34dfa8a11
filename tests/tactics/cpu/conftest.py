"""Every CPU tactic against the NumPy meaning of its operation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest

from fusion.dtypes import DataType
from fusion.network import Op, TensorType
from tactics.registry import tactics
from tactics.tactic import CpuCall, DeviceSpec, Workload

DEVICE = DeviceSpec(kind="cpu", name="test", multiprocessors=3)
TOLERANCE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 2e-5, np.dtype(np.float16): 2e-3}


def poisoned(array: TensorType) -> np.ndarray:
    """Memory full of NaN (integers: minus one, bool: a byte that is neither)."""
    result = np.empty(tuple(array.shape), array.dtype.numpy)
    result.reshape(-1).view(np.uint8)[...] = 0xFF if array.dtype is not DataType.BOOL else 1
    return result


def workload_of(op: Op, inputs: Sequence[np.ndarray], constants: Collection[int] = ()) -> Workload:
    types = tuple(TensorType(DataType(array.dtype.name), array.shape) for array in inputs)
    return Workload(op, types, op.infer(types), tuple(number in constants for number in range(len(inputs))))


def check_all(
    op: Op,
    inputs: Sequence[np.ndarray],
    constants: Collection[int] = (),
    least: int = 1,
    built: tuple[Op, Sequence[np.ndarray]] | None = None,
) -> set[str]:
    """Run every configuration of every tactic that takes this operation (``least`` at the least, besides the reference)
    twice on the same memory, and once in that of each input that it may overwrite; the ids that ran. ``built``: the sizes that tactics and configurations were chosen for."""
    workload = workload_of(op, inputs, constants)
    chosen = workload_of(*built, constants) if built else workload
    outputs = workload.outputs
    want = op.evaluate(inputs)
    given = [array.copy() for array in inputs]
    for array in given:
        array.flags.writeable = False
    ran = set()
    for tactic in tactics("cpu"):
        if not isinstance(op, tactic.ops) or tactic.supports(chosen, DEVICE) is not None:
            continue
        configs = tactic.configs(chosen, DEVICE)
        assert len(configs) == len(set(configs)) >= 1
        for config in configs:
            plan = tactic.plan(workload, config, DEVICE)
            packed = tactic.prepare(workload, config, {number: given[number] for number in constants})
            # What is packed has no memory of its own at run time.
            shown = [np.empty(0, a.dtype) if packed and i in constants and i < 3 and _gone(op, i, packed) else a
                     for i, a in enumerate(given)]  # fmt: skip
            results = [poisoned(tensor) for tensor in outputs]
            raw = np.full(plan.workspace + 64, 0xFF, np.uint8)
            start = -raw.ctypes.data % 64
            workspace = raw[start : start + plan.workspace]
            calls = []
            for step in plan.steps:
                assert isinstance(step, CpuCall)
                calls.append(step.bound(shown, results, packed, workspace))
            for turn in range(2):
                for result in results:
                    result.reshape(-1).view(np.uint8)[...] = 0xFF if result.dtype != np.bool_ else 1
                workspace[...] = 0xFF
                for call in calls:
                    call()
                for got, expected in zip(results, want, strict=True):
                    compare(got, expected, f"{tactic.id} {dict(config)} call {turn + 1}")
            for number in plan.in_place:
                own = [array.copy() for array in shown]
                memory = own[number].reshape(-1).view(want[0].dtype).reshape(want[0].shape)
                for step in plan.steps:
                    assert isinstance(step, CpuCall)
                    step.bound(own, [memory, *results[1:]], packed, workspace)()
                compare(memory, want[0], f"{tactic.id} {dict(config)} in the memory of input {number}")
        ran.add(tactic.id)
    assert len(ran - {"cpu.reference.numpy"}) >= least, f"only {ran} take {op}"
    for array, before in zip(given, inputs, strict=True):
        assert array.tobytes() == before.tobytes()
    return ran


def _gone(op: Op, number: int, packed: Sequence[np.ndarray]) -> bool:
    """Weights of windowed layers are always packed; matrices only when they are converted."""
    return number in {"Convolution": (1,), "ConvolutionPooling": (1,), "Deconvolution": (1,), "SeparableConvolution": (1, 2)}.get(type(op).__name__, ())


def compare(got: np.ndarray, expected: np.ndarray, label: str) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape, label
    if expected.dtype.kind in "iub":
        assert np.array_equal(got, expected), label
        return
    tolerance = TOLERANCE.get(expected.dtype, 1e-2)
    left, right = got.astype(np.float64), expected.astype(np.float64)
    scale = max(1.0, float(np.max(np.abs(right[np.isfinite(right)]), initial=0)))
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance * scale, err_msg=label)


@pytest.fixture(scope="session")
def check() -> Callable[..., set[str]]:
    return check_all
