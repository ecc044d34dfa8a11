"""Tensors that are columns of wider ones, for tests: what lies beside them is poison, which nobody may read or write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from fusion.network import TensorType
from tactics.tactic import Config, DeviceSpec, Tactic, Workload, refusal
from tests.harness.fiber import close

Run = Callable[..., tuple[np.ndarray, ...]]


def apart(workload: Workload, numbers: Collection[int], more: int = 24) -> Workload:
    """``workload`` with the tensors ``numbers`` (inputs first, then outputs) in rows of ``more`` elements more than they have."""
    types = [
        replace(kind, pitch=-(-int(kind.shape[-1]) // 8) * 8 + more) if number in numbers else kind  # type: ignore[arg-type]
        for number, kind in enumerate((*workload.inputs, *workload.outputs))
    ]
    count = len(workload.inputs)
    return replace(workload, inputs=tuple(types[:count]), outputs=tuple(types[count:]))


def check_columns(
    tactic: Tactic, workload: Workload, numbers: Collection[int], inputs: Sequence[np.ndarray], run: Run, device: DeviceSpec,
    configs: int = 2, tolerance: dict[str, float] | None = None,
) -> None:  # fmt: skip
    """Runs ``tactic`` with the tensors ``numbers`` as columns and compares with the operation's NumPy meaning.

    ``run(plan, inputs, outputs, packed)`` is ``run_plan`` or ``run_on_gpu``; both poison outputs.
    """
    workload = apart(workload, numbers)
    reason = refusal(tactic, workload, device)
    assert reason is None, f"{tactic.id}: {reason.reason}"
    truths = workload.op.evaluate(inputs)
    constants = {index: array for index, array in enumerate(inputs) if workload.constant and workload.constant[index]}
    memories = [_memory(array, kind) for array, kind in zip(inputs, workload.inputs, strict=True)]
    found: Sequence[Config] = tactic.configs(workload, device)
    for one in found[:configs]:
        plan = tactic.plan(workload, one, device)
        results = run(plan, memories, [_type(kind) for kind in workload.outputs], tactic.prepare(workload, one, constants))
        for kind, result, truth in zip(workload.outputs, results, truths, strict=True):
            shape = tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]
            if kind.pitch:
                beside = np.ascontiguousarray(result[:, shape[-1] :]).view(np.uint8)
                poison = 0xFF if kind.dtype.is_float else beside.flat[0]
                assert (beside == poison).all(), f"{tactic.id} {dict(one)} writes beside its columns"
                result = np.ascontiguousarray(result[:, : shape[-1]])
            close(result.reshape(shape), truth, f"{tactic.id} {dict(one)}", tolerance)


def _type(kind: TensorType) -> TensorType:
    rows = int(np.prod([int(dim) for dim in kind.shape[:-1]], dtype=np.int64))  # type: ignore[arg-type]
    return TensorType(kind.dtype, (rows, kind.pitch)) if kind.pitch else kind


def _memory(array: np.ndarray, kind: TensorType) -> np.ndarray:
    if not kind.pitch:
        return np.ascontiguousarray(array)
    memory = np.full(tuple(map(int, _type(kind).shape)), np.nan if array.dtype.kind == "f" else -1, array.dtype)  # type: ignore[arg-type]
    memory[:, : array.shape[-1]] = array.reshape(-1, array.shape[-1])
    return memory
