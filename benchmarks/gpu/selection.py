"""Cases that go through tactic selection, as the builder would: candidates compiled in parallel, checked, timed interleaved."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from runtime.device import Device
from runtime.timer import Bench
from tactics.candidates import SelectOptions
from tactics.compilers import Compilers
from tactics.select import Decision, finish, start
from tactics.tactic import Workload

AHEAD = 2  # cases that compile while one is timed


@dataclass(frozen=True)
class Case:
    """A workload to be timed, and what makes its constants, by input number."""

    name: str
    workload: Workload
    values: Callable[[], Mapping[int, np.ndarray]] = dict


def parser(text: str | None, results: str, seconds: float) -> argparse.ArgumentParser:
    """What scripts of cases take, whose help is ``text``: ``seconds``, ``level``, ``only``, ``results``."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seconds", type=float, default=seconds, help="begin no case after so long")
    made.add_argument("--level", type=int, default=3)
    made.add_argument("--only", default="", help="cases whose name has a match of this regular expression")
    made.add_argument("--results", default=results)
    return made


def arguments(text: str | None, results: str, seconds: float) -> argparse.Namespace:
    """The command line of a script that takes no more than these."""
    return parser(text, results, seconds).parse_args()


def decisions(cases: Sequence[Case], device: Device, options: SelectOptions, given: argparse.Namespace) -> Iterator[tuple[Case, Decision]]:
    """What is selected for each of ``cases`` that ``given.only`` names, until ``given.seconds`` are over. Prints which tactics failed, and why."""
    cases = [case for case in cases if re.search(given.only, case.name)]
    compilers, began = Compilers(device.spec.arch, os.cpu_count() or 8, {}), time.perf_counter()
    begun = [start(case.workload, device.spec, options, compilers) for case in cases[:AHEAD]]
    for number, case in enumerate(cases):
        begun += [start(later.workload, device.spec, options, compilers) for later in cases[number + AHEAD : number + AHEAD + 1]]
        values = case.values()
        decision = finish(begun[number], values, device.spec, options, partial(Bench, device, case.workload, values), compilers)
        for row in decision.timings:
            if row.seconds is None and ("wrong" in row.reason or "failed" in row.reason):
                print(f"    {row.tactic} {dict(row.config)}: {row.reason[:150]}")
        yield case, decision
        if time.perf_counter() - began > given.seconds:
            break
    compilers.close()
