"""Packed weights dequantised at build: the tactics of ordinary products, at the size of ordinary weights.

They are the plainest way to compute a :class:`PackedMatrixMultiply`, and the fastest where arithmetic, not memory, is the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from fusion.dtypes import DataType
from fusion.network import TensorType
from fusion.ops import MatrixMultiply, PackedMatrixMultiply
from tactics.memo import LastResult
from tactics.tactic import (
    Argument,
    Buffer,
    Config,
    Copy,
    CpuCall,
    DeviceSpec,
    Launch,
    Plan,
    Refusal,
    Step,
    Struct,
    Tactic,
    TensorMap,
    Workload,
)

_EXTRA = 2  # inputs that a packed product has more than an ordinary one: scales and zero points
Value = TypeVar("Value")
Arrays = Sequence[np.ndarray]


class Dequantized(Tactic):
    """``inner`` on weights that ``prepare`` has dequantised."""

    ops = (PackedMatrixMultiply,)

    def __init__(self, inner: Tactic) -> None:
        self.id = f"{inner.id}.dequantized"  # type: ignore[misc]
        self.device, self.reference, self.source = inner.device, inner.reference, inner.source  # type: ignore[misc]
        self._inner = inner

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if not all(map(workload.is_constant, (1, 2, 3))):
            return Refusal("weights, scales or zero points are computed by the network")
        return self._inner.supports(product(workload), device)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return self._inner.configs(product(workload), device)

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        return self._inner.neighbours(product(workload), config, device)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return self._inner.estimate(product(workload), config, device)

    def tolerance(self, workload: Workload) -> float:
        return self._inner.tolerance(product(workload))

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        """What the inner tactic makes of the weights; the weights themselves where it reads them as they are."""
        op = workload.op
        assert isinstance(op, PackedMatrixMultiply)
        plain = _plain((constants[1], constants[2], constants[3]), op, workload.inputs[0].dtype)
        return self._inner.prepare(product(workload), config, {1: plain}) or (plain,)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        plan = self._inner.plan(product(workload), config, device)
        return replace(plan, steps=tuple(map(_moved, plan.steps)), in_place=tuple(map(_number, plan.in_place)))


@LastResult
def _plain(arrays: tuple[np.ndarray, ...], op: PackedMatrixMultiply, dtype: DataType) -> np.ndarray:
    return op.dequantized(*arrays).astype(dtype.numpy)


def product(workload: Workload) -> Workload:
    """The ordinary product: inputs a, weights ``[N, K]`` of a's type, epilogue operands."""
    op = workload.op
    assert isinstance(op, PackedMatrixMultiply)
    a, weights, _, _, *extras = workload.inputs
    plain = TensorType(a.dtype, (weights.shape[0], op.depth))

    def kept(values: Sequence[Value]) -> tuple[Value, ...]:
        return (*values[:2], *values[2 + _EXTRA :])

    return replace(
        workload, op=MatrixMultiply(False, True, op.epilogue), inputs=(a, plain, *extras), constant=kept(workload.constant),
        varies=kept(workload.varies),
    )  # fmt: skip


def _number(number: int) -> int:
    """The packed product's input that input ``number`` of the ordinary one is."""
    return number if number == 0 else number + _EXTRA


def _moved(step: Step) -> Step:
    """A step of the ordinary product on the buffers of the packed one; weights that it reads as they are lie in the first packed array."""
    if isinstance(step, Launch):
        return replace(step, arguments=tuple(map(_argument, step.arguments)))
    if isinstance(step, Copy):
        return replace(step, source=_buffer(step.source), target=_buffer(step.target))
    if isinstance(step, CpuCall):
        return _call(step)
    return step


def _argument(argument: Argument) -> Argument:
    if isinstance(argument, Buffer):
        return _buffer(argument)
    if isinstance(argument, TensorMap):
        return replace(argument, buffer=_buffer(argument.buffer))
    if isinstance(argument, Struct):
        return replace(argument, fields=tuple(_buffer(one) if isinstance(one, Buffer) else one for one in argument.fields))
    return argument


def _buffer(buffer: Buffer) -> Buffer:
    if buffer.kind != "input":
        return buffer
    return replace(buffer, kind="packed", index=0) if buffer.index == 1 else replace(buffer, index=_number(buffer.index))


def _call(step: CpuCall) -> CpuCall:
    def inputs(given: Sequence[np.ndarray], packed: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        return (given[0], packed[0], *given[2 + _EXTRA :])

    def bind(given: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Callable[[], None]:
        return step.bound(inputs(given, packed), outputs, packed, workspace)

    def function(given: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> None:
        bind(given, outputs, packed, workspace)()

    function.bind = bind  # type: ignore[attr-defined]
    return replace(step, function=function, unread=(1, 2, 3))
