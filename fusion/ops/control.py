"""Control flow: layers that hold networks. The host decides what runs: which branch, how often a body.

What a body reads from around it stands among the layer's inputs, so that the layer says all that it depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fusion.dims import Dim
from fusion.network import ControlFlow, Network, TensorType
from fusion.reference import run


@dataclass(frozen=True, eq=False)
class If(ControlFlow):
    """Inputs: a condition of one element, then what the branches read. Outputs: those of the branch that the condition chooses.

    ``takes`` gives per branch the layer inputs (numbers) that are its network's inputs.
    """

    then_branch: Network
    else_branch: Network
    takes: tuple[tuple[int, ...], tuple[int, ...]]
    types: tuple[TensorType, ...]
    sizes: tuple[tuple[str, int], ...] = ()

    layer_type: ClassVar[str] = "If"
    arity: ClassVar[int] = 1

    @property
    def bodies(self) -> tuple[Network, ...]:
        return self.then_branch, self.else_branch

    def with_bodies(self, bodies: Sequence[Network]) -> If:
        return replace(self, then_branch=bodies[0], else_branch=bodies[1])

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        chosen = 0 if inputs[0].reshape(-1)[0] else 1
        body = self.bodies[chosen]
        given = {name: inputs[number] for name, number in zip(body.inputs, self.takes[chosen], strict=True)}
        found = run(body, given, outer=dict(self.sizes))
        return tuple(found[name] for name in body.outputs)


@dataclass(frozen=True, eq=False)
class Loop(ControlFlow):
    """Runs its body again and again, handing ``carried`` tensors from one iteration to the next.

    Inputs: with ``conditional`` a condition of one element (false: the body never runs), the carried tensors' first values, then what
    the body reads from around it. The body's inputs are the iteration's number (int64, no dimensions) with ``counted``, the carried
    tensors, and what it reads; its outputs with ``decides`` whether to go on (one bool), the carried tensors, and a slice of each scan
    output. Outputs: the carried tensors at the end, and the scan outputs, slices of all iterations along a new first axis.
    At most ``trip`` iterations run; without ``trip`` the body decides.
    """

    body: Network
    carried: int
    types: tuple[TensorType, ...]
    trip: Dim | None = None
    conditional: bool = False
    counted: bool = True
    decides: bool = False
    sizes: tuple[tuple[str, int], ...] = ()

    layer_type: ClassVar[str] = "Loop"

    @property
    def arity(self) -> int:
        return int(self.conditional) + self.carried

    @property
    def bodies(self) -> tuple[Network, ...]:
        return (self.body,)

    def with_bodies(self, bodies: Sequence[Network]) -> Loop:
        return replace(self, body=bodies[0])

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        first = int(self.conditional)
        state, taken = list(inputs[first : self.arity]), list(inputs[self.arity :])
        scans: list[list[np.ndarray]] = [[] for _ in self.types[self.carried :]]
        goes_on = not first or bool(inputs[0].reshape(-1)[0])
        for number in self._numbers():
            if not goes_on:
                break
            counter = [np.asarray(number, np.int64)] if self.counted else []
            given = dict(zip(self.body.inputs, (*counter, *state, *taken), strict=True))
            found = run(self.body, given, outer=dict(self.sizes))
            results = [found[name] for name in self.body.outputs]
            if self.decides:
                goes_on = bool(results.pop(0).reshape(-1)[0])
            state = results[: self.carried]
            for scan, value in zip(scans, results[self.carried :], strict=True):
                scan.append(value)
        empty = [
            np.empty((0, *(dim if isinstance(dim, int) else 0 for dim in kind.shape[1:])), kind.dtype.numpy)
            for kind in self.types[self.carried :]
        ]
        return (*state, *(np.stack(scan) if scan else none for scan, none in zip(scans, empty, strict=True)))

    def _numbers(self) -> Iterator[int]:
        number = 0
        while self.trip is None or number < self.trip:  # type: ignore[operator]
            yield number
            number += 1
