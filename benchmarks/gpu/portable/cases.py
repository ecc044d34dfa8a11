"""The cases of one group: queued while their kernels compile, then checked or timed one after the other."""

from __future__ import annotations

import fcntl
import json
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.gpu.portable.device import Gpu
from tactics.tactic import floor_seconds, workload_bytes

LAUNCHES = 24


class Cases:
    """What a group queues, and the lines of JSON that it leaves in ``out``."""

    def __init__(self, gpu: Gpu, deadline: float, out: str) -> None:
        self.gpu, self.deadline, self.out = gpu, deadline, out
        self.random = random.Random(7)
        self.queue: list[tuple] = []

    def run(self, group: Callable[[Cases], None], timing: bool) -> None:
        """Queue the group's cases (their kernels start to compile), then run them."""
        begin = time.monotonic()
        group(self)
        if timing:
            queued = time.monotonic()
            for future in self.gpu.futures.values():
                future.exception(timeout=max(1.0, self.deadline - time.monotonic()))
            print(f"{len(self.queue)} cases queued in {queued - begin:.1f} s, {len(self.gpu.futures)} kernels compiled after {time.monotonic() - begin:.1f} s", flush=True)
        with open(f"{self.out}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX if timing else fcntl.LOCK_SH)
            for step, arguments in self.queue:
                if time.monotonic() > self.deadline:
                    print("out of time; cases left:", len(self.queue))
                    break
                step(*arguments)

    def record(self, **row: object) -> None:
        """Append a line to the results."""
        with open(self.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def verify(self, case: str, tactics, workload, inputs, expected, count: int | None = 3) -> None:
        """Check each tactic in its first configuration and in ``count`` - 1 random ones (all when None)."""
        wanted = []
        for tactic in tactics:
            refusal = tactic.supports(workload, self.gpu.device)
            if refusal is not None:
                self.record(kind="refusal", tactic=tactic.id, case=case, reason=refusal.reason)
                continue
            configs = list(tactic.configs(workload, self.gpu.device))
            chosen = configs if count is None else configs[:1] + self.random.sample(configs[1:], min(len(configs) - 1, count - 1))
            wanted += [(tactic, config, tactic.plan(workload, config, self.gpu.device)) for config in chosen]
        self.gpu.compile([step.kernel for _, _, plan in wanted for step in plan.steps])
        self.queue.append((self._verify, (case, wanted, workload, inputs, expected)))

    def _verify(self, case: str, wanted, workload, inputs, expected) -> None:
        for tactic, config, plan in wanted:
            error, note = math.inf, ""
            try:
                output = self.gpu.output_of(workload)
                workspace = self.gpu.torch.full((plan.workspace + 16,), 255, dtype=self.gpu.torch.uint8, device="cuda")
                self.gpu.launch(self.gpu.bind(plan, inputs, output, self.gpu.packed(tactic, workload, config, inputs), workspace))
                self.gpu.torch.cuda.synchronize()
                error = self.gpu.error(output, expected)
            except Exception as reason:
                note = f"{type(reason).__name__}: {str(reason)[:300]}"
            ok = error <= tactic.tolerance(workload)
            self.record(kind="check", tactic=tactic.id, case=case, config=str(dict(config)), error=error if error < 1e30 else "inf" if
                        error == math.inf else "nan", ok=ok, note=note)  # fmt: skip
            if "illegal" in note.lower() or "launch_failed" in note.lower() or "misaligned" in note.lower():
                print("the context is lost at", case, tactic.id, dict(config))
                sys.exit(3)

    def graph_time(self, calls) -> float:
        """Microseconds per call of ``calls`` (functions that launch on the current stream), from a replayed graph."""
        torch = self.gpu.torch
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for index in range(LAUNCHES):
                calls[index % len(calls)]()
        with torch.cuda.stream(stream):
            for _ in range(2):
                graph.replay()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(16)]
            events[0].record()
            for event in events[1:]:
                graph.replay()
                event.record()
        torch.cuda.synchronize()
        times = sorted(a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False))
        return times[len(times) // 2] * 1000 / LAUNCHES

    def copies(self, bytes_each: int) -> int:
        """How many sets of buffers make a working set that L2 does not hold."""
        return max(2, min(LAUNCHES, math.ceil(150e6 / max(bytes_each, 1))))

    def timing(self, case: str, tactics, workload, inputs, expected, torch_call=None, most: int = 8, alone: int = 0) -> None:
        """Time the first ``most`` configurations of each tactic (``alone`` of them without programmatic launch too), and torch."""
        wanted = []
        for tactic in tactics:
            if tactic.supports(workload, self.gpu.device) is None:
                configs = list(tactic.configs(workload, self.gpu.device))[:most]
                wanted += [(rank, tactic, config, tactic.plan(workload, config, self.gpu.device)) for rank, config in enumerate(configs)]
                wanted += [(100 + rank, tactic, config, _without_pdl(tactic.plan(workload, config, self.gpu.device)))
                           for rank, config in enumerate(configs[:alone])]  # fmt: skip
        self.gpu.compile([step.kernel for *_, plan in wanted for step in plan.steps])
        self.queue.append((self._timing, (case, wanted, workload, inputs, expected, torch_call)))

    def _timing(self, case: str, wanted, workload, inputs, expected, torch_call) -> None:
        torch = self.gpu.torch
        floor = floor_seconds(workload, self.gpu.device) * 1e6
        sets = [[one.clone() for one in inputs] for _ in range(self.copies(workload_bytes(workload)))]
        if torch_call is not None:
            try:
                microseconds = self.graph_time([lambda one=one: torch_call(one) for one in sets])
                self.record(kind="time", case=case, tactic="torch", config="", us=microseconds, floor=floor, ok=True, rank=0)
            except Exception as reason:
                self.record(kind="note", case=case, note=str(reason)[:200])
        outputs = [self.gpu.output_of(workload) for _ in sets]
        for rank, tactic, config, plan in wanted:
            if time.monotonic() > self.deadline:
                return
            try:
                workspace = torch.full((plan.workspace + 16,), 255, dtype=torch.uint8, device="cuda")
                packed = [[one.clone() for one in self.gpu.packed(tactic, workload, config, inputs)] for _ in sets]
                bound = [self.gpu.bind(plan, one, out, pack, workspace) for one, out, pack in zip(sets, outputs, packed, strict=True)]
                outputs[0].fill_(math.nan)
                self.gpu.launch(bound[0])
                error = self.gpu.error(outputs[0], expected) if expected is not None else 0.0
                microseconds = self.graph_time([lambda one=one: self.gpu.launch(one) for one in bound])
                registers = max(self.gpu.function(step.kernel)[1].registers for step in plan.steps)
                self.record(kind="time", case=case, tactic=tactic.id, config=str(dict(config)) + (" without PDL" if rank >= 100 else ""), us=microseconds, floor=floor, rank=rank,
                            ok=error <= tactic.tolerance(workload), error=str(error), registers=registers,
                            estimate=tactic.estimate(workload, config, self.gpu.device) * 1e6)  # fmt: skip
            except Exception as reason:
                self.record(kind="note", case=case, tactic=tactic.id, config=str(dict(config)), note=str(reason)[:300])

    def time_copy(self, case: str, workload) -> None:
        """A device-to-device copy that moves as many bytes as the workload."""
        half = workload_bytes(workload) // 2
        pairs = [tuple(self.gpu.torch.empty(half, dtype=self.gpu.torch.uint8, device="cuda") for _ in range(2)) for _ in range(self.copies(2 * half))]
        microseconds = self.graph_time([lambda pair=pair: pair[0].copy_(pair[1]) for pair in pairs])
        self.record(kind="copy", case=case, us=microseconds, bytes=2 * half)


def _without_pdl(plan):
    steps = []
    for step in plan.steps:
        kept = tuple(item for item in step.kernel.defines if item[0] != "PDL")
        steps.append(replace(step, kernel=replace(step.kernel, defines=kept), dependent=False))
    return replace(plan, steps=tuple(steps))
