"""Tactic selection: for one workload, the legal candidates, compiled, checked, timed, and the fastest chosen.

Everything that touches a device comes in as a :class:`Bench`; a candidate that fails is a row with its reason.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from sys import modules
from typing import Any, Protocol

import numpy as np

from fusion.serial import to_json
from tactics.cache import Entry, Timing
from tactics.candidates import (
    Candidate,
    NoTacticError,
    SelectOptions,
    candidates,
    may_serve,
    out_of_range,
    over_limit,
    plainest,
)
from tactics.compiler import CompileError
from tactics.compilers import Compilers, kernels_of
from tactics.registry import tactics
from tactics.tactic import (
    Config,
    DeviceSpec,
    Plan,
    Tactic,
    Workload,
    reachable_seconds,
    refusal,
)

BATCH = 8  # candidates timed against each other, interleaved
NEAR_FLOOR = 1.05  # a winner this close to its floor ends the search
AT_FLOOR = "not timed: the best is at its floor"
NEIGHBOURS_LEVEL = 5  # from which on the neighbours of the fastest configuration are tried, too
MOST_CLIMBS = 6
NOISE = 1.01  # within this of the fastest our own kernels win before libraries', then the smaller id, so that equal builds choose equally
LEADERS = 1.08  # within this of the fastest, candidates of different batches are timed once more together


class Bench(Protocol):
    """One workload's buffers on the device, filled with random data and its constants (see :class:`runtime.timer.Bench`)."""

    def time(self, candidates: Sequence[Candidate], rounds: int) -> list[float | Exception]:
        """Seconds of each candidate, or what went wrong."""
        ...

    def reference(self, candidate: Candidate) -> list[np.ndarray]:
        """The outputs that other candidates are checked against."""
        ...

    def check(self, candidate: Candidate, reference: Sequence[np.ndarray], tolerance: float) -> str | None:
        """None when the candidate computes ``reference`` and writes every element, else what is wrong."""
        ...


@dataclass(frozen=True)
class Decision:
    """The winner for a workload, and every row of its record (the fastest first, refusals last)."""

    tactic: str
    config: Config
    seconds: float
    timings: tuple[Timing, ...]
    cached: bool
    kernels: Mapping[str, bytes]


def identity(device: DeviceSpec) -> list[Any]:
    """The part of a question that says which device, or share of one, was measured."""
    return [device.kind, device.name, device.arch, device.multiprocessors, *([device.share] if device.share else [])]


def question(
    workload: Workload, device: DeviceSpec, options: SelectOptions, versions: Mapping[str, str]
) -> dict[str, Any]:
    """What the timing cache is asked: all that the answer may depend on."""
    return {
        "workload": {
            "op": to_json(workload.op),
            "inputs": [to_json(tensor) for tensor in workload.inputs],
            "outputs": [to_json(tensor) for tensor in workload.outputs],
            "constant": list(workload.constant),
            "varies": [list(axes) for axes in workload.varies],
            "tf32": workload.tf32,
        },
        "device": identity(device),
        "versions": dict(sorted(versions.items())),
        "limits": [options.workspace_limit, options.shared_memory_limit, *([options.max_tactics] if options.max_tactics else [])],
        "pinned": options.pinned,
        **({"sources": sorted(options.sources)} if options.sources else {}),
    }


def fingerprint(tactic: Tactic, plan: Plan, device: DeviceSpec) -> str:
    """Changes when the measured code changes: kernel sources, or the tactic's module on the CPU."""
    kernels = kernels_of(plan)
    if kernels:
        parts = [kernel.key(device.arch) for kernel in kernels]
    else:
        parts = [Path(modules[type(tactic).__module__].__file__ or "").read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def decide_from(
    entry: Entry,
    workload: Workload,
    device: DeviceSpec,
    compilers: Compilers,
    options: SelectOptions | None = None,
    extremes: Sequence[Workload] = (),
) -> Decision | None:
    """The decision that a cache entry holds, or None when its winner's code has changed or is gone, or when it cannot serve
    the ``extremes`` (see :func:`start`)."""
    winner = next((timing for timing in entry.timings if timing.seconds is not None), None)
    if winner is None:
        return None
    tactic = next((one for one in tactics(device.kind) if one.id == winner.tactic), None)
    if tactic is None or not may_serve(tactic, options or SelectOptions()) or refusal(tactic, workload, device) is not None:
        return None
    try:
        plan = tactic.plan(workload, winner.config, device)
        if winner.fingerprint and fingerprint(tactic, plan, device) != winner.fingerprint:
            return None
        if out_of_range(tactic, winner.config, plan, extremes, device, options or SelectOptions()):
            return None
        kernels = compilers.images(plan)
    except (CompileError, KeyError, ValueError, AssertionError):
        return None
    return Decision(winner.tactic, winner.config, winner.seconds or math.nan, entry.timings, True, kernels)


@dataclass(frozen=True)
class Search:
    """A workload's candidates on their way through the compilers, and the rows of those already refused."""

    workload: Workload
    pending: tuple[Candidate, ...]
    rows: tuple[Timing, ...]
    extremes: tuple[Workload, ...] = ()


def start(
    workload: Workload,
    device: DeviceSpec,
    options: SelectOptions,
    compilers: Compilers,
    extremes: Sequence[Workload] = (),
) -> Search:
    """Choose the candidates of ``workload`` and hand their kernels to the compilers.

    ``extremes``: the same layer at the smallest and the largest shapes that it must serve; whoever cannot is refused.

    Raises:
        NoTacticError: the pinned tactic cannot serve it.
    """
    chosen, rows = candidates(workload, device, options)
    pending = _planned(chosen, workload, extremes, device, options, compilers, rows)
    if not pending and not options.pinned:  # limits may have refused all but the plainest, which was not asked
        known = {tactic.id for tactic, _ in chosen}
        others = [pair for pair in plainest(workload, device) if pair[0].id not in known]
        pending = _planned(others, workload, extremes, device, options, compilers, rows)
    return Search(workload, tuple(pending), tuple(rows), tuple(extremes))


def _planned(
    chosen: Sequence[tuple[Tactic, Config]],
    workload: Workload,
    extremes: Sequence[Workload],
    device: DeviceSpec,
    options: SelectOptions,
    compilers: Compilers,
    rows: list[Timing],
) -> list[Candidate]:
    """Those of ``chosen`` that keep to all limits, on their way through the compilers; the others become ``rows``."""
    pending = []
    for tactic, config in chosen:
        try:
            plan = tactic.plan(workload, config, device)
        except (ValueError, AssertionError, KeyError, ArithmeticError) as error:
            rows.append(Timing(tactic.id, config, None, f"no plan: {type(error).__name__}: {error}"))
            continue
        reason = over_limit(plan, device, options) or out_of_range(tactic, config, plan, extremes, device, options)
        if reason:
            rows.append(Timing(tactic.id, config, None, reason))
            continue
        compilers.submit(plan)
        pending.append(Candidate(tactic, config, plan))
    return pending


def _compiled(
    pending: Sequence[Candidate], workload: Workload, constants: Mapping[int, np.ndarray], compilers: Compilers, rows: list[Timing]
) -> list[Candidate]:
    """Those of ``pending`` that compile, with their kernels and packed weights; the others become ``rows``."""
    ready = []
    for candidate in pending:
        try:
            images = compilers.images(candidate.plan)
            packed = candidate.tactic.prepare(workload, candidate.config, constants)
        except (CompileError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).strip().splitlines()[:3])
            rows.append(Timing(candidate.tactic.id, candidate.config, None, f"does not compile: {reason}"))
            continue
        ready.append(replace(candidate, packed=packed, kernels=images))
    return ready


def finish(
    search: Search,
    constants: Mapping[int, np.ndarray],
    device: DeviceSpec,
    options: SelectOptions,
    make_bench: Callable[[], Bench],
    compilers: Compilers,
) -> Decision:
    """Check and time the candidates of ``search``; the fastest correct one wins. ``constants`` are its weights.

    Raises:
        NoTacticError: nothing can compute it.
    """
    rows = list(search.rows)
    ready = _compiled(search.pending, search.workload, constants, compilers, rows)
    if not ready and not options.pinned:  # what was chosen does not compile
        known = {candidate.tactic.id for candidate in search.pending}
        others = [pair for pair in plainest(search.workload, device) if pair[0].id not in known]
        planned = _planned(others, search.workload, search.extremes, device, options, compilers, rows)
        ready = _compiled(planned, search.workload, constants, compilers, rows)
    if not ready:
        raise NoTacticError(f"no tactic can compute it on {device.name}: {_reasons(rows)}")
    if options.level == 0:
        return _decision(ready[0], math.nan, rows, device)
    bench = make_bench()
    timed, at_floor = _timed(bench, ready, rows, search.workload, device, options)
    if options.level >= NEIGHBOURS_LEVEL and not at_floor and not options.max_tactics:
        timed = _climbed(bench, timed, rows, search, constants, device, options, compilers)
    reference = _reference(search.workload, constants, device, compilers)
    if reference is not None and timed:
        timed = _checked(bench, timed, reference, rows, search.workload)
    if not timed:
        raise NoTacticError(f"every tactic failed on {device.name}: {_reasons(rows)}")
    fastest = timed[0][0]
    best, winner = min(
        (pair for pair in timed if pair[0] <= fastest * NOISE), key=lambda pair: (bool(pair[1].tactic.source), pair[1].tactic.id, pair[1].config)
    )
    rows += [
        Timing(c.tactic.id, c.config, seconds, "", fingerprint(c.tactic, c.plan, device))
        for seconds, c in timed
        if c is not winner
    ]
    return _decision(winner, best, rows, device)


def _reasons(rows: Sequence[Timing]) -> str:
    return "; ".join(f"{row.tactic}: {row.reason}" for row in rows) or "none is registered"


def _decision(winner: Candidate, seconds: float, rows: Sequence[Timing], device: DeviceSpec) -> Decision:
    mark = fingerprint(winner.tactic, winner.plan, device)
    first = Timing(winner.tactic.id, winner.config, None if math.isnan(seconds) else seconds, "", mark)
    ordered = sorted(rows, key=lambda row: math.inf if row.seconds is None else row.seconds)
    return Decision(winner.tactic.id, winner.config, seconds, (first, *ordered), False, dict(winner.kernels))


def _timed(
    bench: Bench,
    ready: Sequence[Candidate],
    rows: list[Timing],
    workload: Workload,
    device: DeviceSpec,
    options: SelectOptions,
) -> tuple[list[tuple[float, Candidate]], bool]:
    """(seconds, candidate), ascending, and whether one stands near the floor: then no further batch was timed."""
    floor = reachable_seconds(workload, device)
    timed: list[tuple[float, Candidate]] = []
    batch_of: dict[int, int] = {}
    for first in range(0, len(ready), BATCH):
        batch = ready[first : first + BATCH]
        for candidate, result in zip(batch, bench.time(batch, options.rounds), strict=True):
            if isinstance(result, Exception):
                rows.append(Timing(candidate.tactic.id, candidate.config, None, f"failed: {result}"))
            else:
                timed.append((result, candidate))
                batch_of[id(candidate)] = first
        if timed and min(seconds for seconds, _ in timed) < floor * NEAR_FLOOR:
            rows += [Timing(c.tactic.id, c.config, None, AT_FLOOR) for c in ready[first + BATCH :]]
            return sorted(timed, key=lambda pair: pair[0]), True
    timed.sort(key=lambda pair: pair[0])
    leaders = [candidate for seconds, candidate in timed[:BATCH] if seconds <= timed[0][0] * LEADERS]
    if len({batch_of[id(candidate)] for candidate in leaders}) > 1:  # a device gets hotter, and slower, from batch to batch
        again = bench.time(leaders, options.rounds)
        known = {id(one): result for one, result in zip(leaders, again, strict=True) if not isinstance(result, Exception)}
        timed = sorted(((known.get(id(one), seconds), one) for seconds, one in timed), key=lambda pair: pair[0])
    return timed, False


def _climbed(
    bench: Bench,
    timed: list[tuple[float, Candidate]],
    rows: list[Timing],
    search: Search,
    constants: Mapping[int, np.ndarray],
    device: DeviceSpec,
    options: SelectOptions,
    compilers: Compilers,
) -> list[tuple[float, Candidate]]:
    """``timed`` with the neighbours of the fastest, of the fastest of these, and so on while that pays."""
    known = {(one.tactic.id, one.config) for one in search.pending}
    for _ in range(MOST_CLIMBS if timed else 0):
        seconds, best = timed[0]
        near = [
            (best.tactic, config)
            for config in best.tactic.neighbours(search.workload, best.config, device)
            if (best.tactic.id, config) not in known
        ]
        known |= {(tactic.id, config) for tactic, config in near}
        found = _compiled(
            _planned(near, search.workload, search.extremes, device, options, compilers, rows), search.workload, constants, compilers, rows
        )
        for first in range(0, len(found), BATCH):
            batch = [best, *found[first : first + BATCH]]  # the best again: times of one batch compare
            again, *results = bench.time(batch, options.rounds)
            scale = seconds / again if isinstance(again, float) and again > 0 else 1.0
            for candidate, result in zip(batch[1:], results, strict=True):
                if isinstance(result, Exception):
                    rows.append(Timing(candidate.tactic.id, candidate.config, None, f"failed: {result}"))
                else:
                    timed.append((result * scale, candidate))
        timed.sort(key=lambda pair: pair[0])
        if timed[0][0] > seconds / NOISE:
            break
    return timed


def _checked(
    bench: Bench, timed: list[tuple[float, Candidate]], reference: Candidate, rows: list[Timing], workload: Workload
) -> list[tuple[float, Candidate]]:
    """``timed`` (ascending) without wrong candidates among those that may win; the clearly slower are not checked."""
    wanted: list[np.ndarray] | None = None
    kept: list[tuple[float, Candidate]] = []
    for seconds, candidate in timed:
        may_win = not kept or seconds <= kept[0][0] * NOISE
        if may_win and candidate.tactic.id != reference.tactic.id:
            wanted = bench.reference(reference) if wanted is None else wanted
            problem = bench.check(candidate, wanted, candidate.tactic.tolerance(workload))
            if problem:
                rows.append(Timing(candidate.tactic.id, candidate.config, None, f"wrong result: {problem}"))
                continue
        kept.append((seconds, candidate))
    return kept


def _reference(
    workload: Workload, constants: Mapping[int, np.ndarray], device: DeviceSpec, compilers: Compilers
) -> Candidate | None:
    """The plainest tactic that serves the workload, to check others against."""
    for tactic, config in plainest(workload, device):
        try:
            plan = tactic.plan(workload, config, device)
            packed = tactic.prepare(workload, config, constants)
            return Candidate(tactic, config, plan, packed, compilers.images(plan))
        except (CompileError, ValueError, AssertionError):
            continue
    return None
