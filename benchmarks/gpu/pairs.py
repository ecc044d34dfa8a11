"""Two layers beside the one that they may become, for checks on a GPU: all candidates on the same tensors, timed in turns."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.dtypes import data_type
from fusion.network import TensorType
from runtime.device import Binding, Tensor
from tactics.select import kernels_of
from tactics.tactic import Config, Kernel, Plan, Tactic, Workload, tensor_bytes


@dataclass(frozen=True)
class Choice:
    """A plan to time: of the whole (part -1), of the first layer (0) or of the second (1). ``inputs`` are its inputs by their numbers in the whole;
    the number after the last is what lies between the two."""

    part: int
    tactic: Tactic
    config: Config
    plan: Plan
    workload: Workload
    inputs: tuple[int, ...]


def compiled(kernel: Kernel, arch: str) -> tuple[str, bytes | str]:
    """The cubin of a kernel by its key, or what the compiler says."""
    from tactics.compiler import compile_cubin

    try:
        return kernel.key(arch), compile_cubin(kernel.source(), kernel.defines, arch, kernel.file).image
    except Exception as error:
        return kernel.key(arch), str(error)


class Layer:
    """All tensors of a pair on the device, in so many copies that no cache holds them: the whole's inputs (``host``), what lies between, the result."""

    def __init__(self, device: Any, one: Workload, middle: TensorType, host: list[np.ndarray], cubins: dict[str, bytes]) -> None:
        self.device, self.cubins, self.host = device, cubins, host
        self.stream = device.stream()
        self.types = [*one.inputs, middle, one.outputs[0]]
        self.offsets, self.size = [], 0
        for kind in self.types:
            self.offsets.append(self.size)
            self.size += -(-tensor_bytes(kind) // 256) * 256
        self.copies = max(2, min(64, -(-2 * device.spec.l2_bytes // self.size)))
        self.memory = device.allocate(self.copies * self.size)
        for copy in range(self.copies):
            for number, array in enumerate(self.host):
                if copy:
                    device.copy(self._at(copy, number), self._at(0, number), array.nbytes, self.stream)
                else:
                    device.upload(self._at(0, number), array)
        self.stream.synchronize()
        self.kept: list[Any] = []

    def _at(self, copy: int, number: int) -> int:
        return self.memory.address + copy * self.size + self.offsets[number]

    def programs(self, choice: Choice) -> list[Any]:
        """One program per copy."""
        count = len(self.host)
        output = count if choice.part == 0 else count + 1
        constants = {place: self.host[number] for place, number in enumerate(choice.inputs) if 0 < number < count}
        packed, memory = choice.tactic.prepare(choice.workload, choice.config, constants), []
        for array in packed:
            memory.append(self.device.allocate(max(1, array.nbytes)))
            self.device.upload(memory[-1].address, np.ascontiguousarray(array))
        workspace = self.device.allocate(choice.plan.workspace + 256)
        modules = self.device.load({kernel.key(self.device.spec.arch): self.cubins[kernel.key(self.device.spec.arch)] for kernel in kernels_of(choice.plan)})
        self.kept += [memory, workspace, modules]
        tensors = tuple(Tensor(one.address, TensorType(data_type(array.dtype), array.shape)) for one, array in zip(memory, packed, strict=True))
        return [
            self.device.program(choice.plan, Binding(
                tuple(Tensor(self._at(copy, number), self.types[number]) for number in choice.inputs),
                (Tensor(self._at(copy, output), self.types[output]),), tensors, workspace.address, choice.plan.workspace,
            ), modules)
            for copy in range(self.copies)
        ]  # fmt: skip

    def result(self, programs: list[Any]) -> np.ndarray:
        """The output of the first copy, which was poisoned before."""
        kind = self.types[-1]
        self.device.fill(self._at(0, len(self.types) - 1), 0xFF, tensor_bytes(kind), self.stream)
        programs[0].run(self.stream)
        found = np.empty(tuple(kind.shape), kind.dtype.numpy)  # type: ignore[arg-type]
        self.stream.synchronize()
        self.device.download(found, self._at(0, len(self.types) - 1))
        return found

    def seconds(self, sequences: list[list[list[Any]]], rounds: int = 5) -> list[float]:
        """Seconds of each sequence of programs (run one after the other on the same copy), timed in turns."""
        runs = []
        for sequence in sequences:
            def enqueue(times: int, sequence: list[list[Any]] = sequence) -> None:
                for copy in range(times):
                    for programs in sequence:
                        programs[copy % self.copies].run(self.stream)

            enqueue(1)
            self.stream.synchronize()
            times = self.copies * max(1, -(-24 // self.copies))
            runs.append((self.device.capture(self.stream, lambda enqueue=enqueue, times=times: enqueue(times)), times))
        samples: list[list[float]] = [[] for _ in runs]
        for turn in range(rounds + 1):
            for number, (graph, times) in enumerate(runs):
                marks = (self.device.event(), self.device.event())
                marks[0].record(self.stream)
                graph.launch(self.stream)
                marks[1].record(self.stream)
                self.stream.synchronize()
                if turn:
                    samples[number].append(marks[1].seconds_since(marks[0]) / times)
        return [statistics.median(one) for one in samples]


def wrong(got: np.ndarray, expected: np.ndarray) -> str:
    """What is wrong with a result beside the reference's; empty when nothing is. Quantised values may differ by a step where one between rounded the other way."""
    if got.dtype.kind == "i":
        steps = np.abs(got.astype(np.int16) - expected.astype(np.int16))
        share = np.count_nonzero(steps) / steps.size
        return "" if steps.max() <= 1 and share < 0.01 else f"{share:.2%} differ, by up to {steps.max()}"
    error = np.linalg.norm(got.astype(np.float32) - expected.astype(np.float32)) / max(1e-30, float(np.linalg.norm(expected.astype(np.float32))))
    return "" if error < 2e-3 else f"relative error {error:.1e}"
