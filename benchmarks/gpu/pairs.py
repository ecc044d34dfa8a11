"""Two layers beside the one that they may become, for checks on a GPU: all candidates on the same tensors, timed in turns."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from fusion.dtypes import data_type
from fusion.network import TensorType
from runtime.device import Binding, Tensor
from tactics.select import kernels_of
from tactics.tactic import Config, DeviceSpec, Kernel, Plan, Tactic, Workload, tensor_bytes, workload_bytes


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


@dataclass(frozen=True)
class Race:
    """Seconds of the fastest whole and of the fastest pair, one after the other; per part (-1, 0, 1) every choice with its seconds alone, fastest first;
    how many wholes were wrong."""

    fused: float
    pair: float
    ranked: dict[int, list[tuple[float, Choice]]]
    mistakes: int


def arguments(doc: str) -> argparse.ArgumentParser:
    """What all of these checks take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="0")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cubins", default="", help="a folder that keeps compiled kernels")
    parser.add_argument("--compile-only", action="store_true", help="for an H100, without one")
    parser.add_argument("--record", default="", metavar="NAME", help="append to benchmarks/results/NAME.jsonl")
    return parser


def opened(options: argparse.Namespace) -> tuple[Any, DeviceSpec]:
    """The device, None where kernels are only compiled, and what it is."""
    if options.compile_only:
        from tests.harness.fiber import H100

        return None, replace(H100, shared_memory=227 * 1024)
    from runtime.devices import open_device

    device = open_device(options.device)
    return device, device.spec


def cubins_of(choices: Iterable[Choice], arch: str, options: argparse.Namespace, begin: float) -> dict[str, bytes]:
    """The cubins of all kernels by their keys, from the folder or compiled now; one that does not compile is named and left out."""
    wanted = {kernel.key(arch): kernel for choice in choices for kernel in kernels_of(choice.plan)}
    folder = Path(options.cubins) if options.cubins else None
    cubins = {key: (folder / key).read_bytes() for key in wanted if folder is not None and (folder / key).exists()}
    missing = [kernel for key, kernel in wanted.items() if key not in cubins]
    if missing:
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            for key, image in pool.map(compiled, missing, [arch] * len(missing)):
                if isinstance(image, str):
                    print("does not compile:", wanted[key].file, image[:300])
                    continue
                cubins[key] = image
                if folder is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / key).write_bytes(image)
    print(f"{len(cubins)} kernels, {len(missing)} of them compiled now, after {time.monotonic() - begin:.1f} s", flush=True)
    return cubins


def compiled(kernel: Kernel, arch: str) -> tuple[str, bytes | str]:
    """The cubin of a kernel by its key, or what the compiler says."""
    from tactics.compiler import compile_cubin

    try:
        return kernel.key(arch), compile_cubin(kernel.source(), kernel.defines, arch, kernel.file).image
    except Exception as error:
        return kernel.key(arch), str(error)


class Layer:
    """All tensors of a pair on the device, in so many copies that no cache holds them: the whole's inputs (``host``), what lies between, the result.
    Each copy has weights of its own too, as a tactic packs them."""

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
        packed = [np.ascontiguousarray(array) for array in choice.tactic.prepare(choice.workload, choice.config, constants)]
        memory = [[self.device.allocate(max(1, array.nbytes)) for array in packed] for _ in range(self.copies)]
        for copy in memory:
            for one, first, array in zip(copy, memory[0], packed, strict=True):
                if one is first:
                    self.device.upload(one.address, array)
                else:
                    self.device.copy(one.address, first.address, array.nbytes, self.stream)
        self.stream.synchronize()
        workspace = self.device.allocate(choice.plan.workspace + 256)
        modules = self.device.load({kernel.key(self.device.spec.arch): self.cubins[kernel.key(self.device.spec.arch)] for kernel in kernels_of(choice.plan)})
        self.kept += [memory, workspace, modules]
        types = [TensorType(data_type(array.dtype), array.shape) for array in packed]
        return [
            self.device.program(choice.plan, Binding(
                tuple(Tensor(self._at(copy, number), self.types[number]) for number in choice.inputs),
                (Tensor(self._at(copy, output), self.types[output]),),
                tuple(Tensor(one.address, kind) for one, kind in zip(memory[copy], types, strict=True)), workspace.address, choice.plan.workspace,
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


def raced(layer: Layer, name: str, found: Sequence[Choice], alone_rounds: int, rounds: int) -> Race:
    """Checks every whole of ``found`` beside the first, which is the reference, then times all; those whose kernels did not compile are left out."""
    arch = layer.device.spec.arch
    ready = [(choice, layer.programs(choice)) for choice in found if all(kernel.key(arch) in layer.cubins for kernel in kernels_of(choice.plan))]
    truth, mistakes = layer.result(ready[0][1]), 0
    for choice, programs in ready[1:]:
        problem = wrong(layer.result(programs), truth) if choice.part < 0 else ""
        if problem:
            mistakes += 1
            print(f"WRONG {name} {choice.tactic.id} {dict(choice.config)}: {problem}", flush=True)
    alone = layer.seconds([[programs] for _, programs in ready[1:]], alone_rounds)
    ranked = {part: sorted((seconds, number) for number, seconds in enumerate(alone, 1) if ready[number][0].part == part) for part in (-1, 0, 1)}
    best, first, second = (ready[ranked[part][0][1]][1] for part in (-1, 0, 1))
    fused, pair = layer.seconds([[best], [first, second]], rounds)
    return Race(fused, pair, {part: [(seconds, ready[number][0]) for seconds, number in rows] for part, rows in ranked.items()}, mistakes)


def recorded(name: str, lines: Iterable[tuple[str, float, float, str]]) -> None:
    """Appends (workload, seconds of the whole, seconds of the pair, note) to benchmarks/results/NAME.jsonl."""
    from benchmarks.runner import compare, record
    from runtime.cuda_spec import cuda_properties

    where = {key: str(cuda_properties(0)[what]) for key, what in (("device", "name"), ("driver", "driver"))}
    results = [compare(workload, [fused * 1e6], "us", [both * 1e6], "our two kernels", note=note, **where) for workload, fused, both, note in lines]
    print("recorded in", record(name, results).name)


def wrong(got: np.ndarray, expected: np.ndarray) -> str:
    """What is wrong with a result beside the reference's; empty when nothing is. Quantised values may differ by a step where one between rounded the other way."""
    if got.dtype.kind == "i":
        steps = np.abs(got.astype(np.int16) - expected.astype(np.int16))
        share = np.count_nonzero(steps) / steps.size
        return "" if steps.max() <= 1 and share < 0.01 else f"{share:.2%} differ, by up to {steps.max()}"
    error = np.linalg.norm(got.astype(np.float32) - expected.astype(np.float32)) / max(1e-30, float(np.linalg.norm(expected.astype(np.float32))))
    return "" if error < 2e-3 else f"relative error {error:.1e}"


def values(one: Workload, random: np.random.Generator) -> list[np.ndarray]:
    """All inputs; weights (the second input, unless it is of the first one's shape) that keep results in range."""
    found = []
    for number, kind in enumerate(one.inputs):
        shape = tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]
        depth = 1 if number != 1 or kind.shape == one.inputs[0].shape else int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        found.append((random.standard_normal(shape, dtype=np.float32) * depth**-0.5).astype(kind.dtype.numpy))
    return found


def check(
    doc: str, cases: Mapping[str, Sequence[tuple[int, ...]]], workload: Callable[[str, tuple[int, ...]], Workload],
    choices: Callable[[Workload, DeviceSpec, int, int], list[Choice]], middle: Callable[[Workload], TensorType],
    report: Callable[[str, Race, float], tuple[str, str, str]],
) -> int:  # fmt: skip
    """Compiles, checks and times every case that there is time for; 1 when a result is wrong.

    ``middle`` is what lies between the two layers; ``report`` makes of a case's name, race and floor (seconds) the line to print, the record's
    name and its note.
    """
    parser = arguments(doc)
    parser.add_argument("--only", default=",".join(cases))
    parser.add_argument("--fused", type=int, default=6, help="configurations of each fused kernel")
    parser.add_argument("--single", type=int, default=3, help="configurations of the pointwise layer; of the product three times as many")
    options = parser.parse_args()
    begin = time.monotonic()
    device, spec = opened(options)
    made = {(kind, sizes): choices(workload(kind, sizes), spec, options.fused, options.single) for kind in options.only.split(",") for sizes in cases[kind]}
    cubins = cubins_of((choice for found in made.values() for choice in found), spec.arch, options, begin)
    if device is None:
        return 0
    random, lines, mistakes = np.random.default_rng(0), [], 0
    for (kind, sizes), found in made.items():
        name = f"{kind} {'x'.join(map(str, sizes))}"
        if time.monotonic() - begin > options.seconds - 1:
            print("no time left for", name)
            break
        one = found[0].workload
        race = raced(Layer(device, one, middle(one), values(one, random), cubins), name, found, 3, 7)
        mistakes += race.mistakes
        line, recorded_name, note = report(name, race, workload_bytes(one) / device.spec.bandwidth)
        print(line, flush=True)
        lines.append((recorded_name, race.fused, race.pair, note))
    print(f"{mistakes} wrong; total {time.monotonic() - begin:.0f} s")
    if options.record:
        recorded(options.record, lines)
    return 1 if mistakes else 0
