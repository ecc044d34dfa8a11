"""Running NumPy work on several cores: a few threads that wait for work, and BLAS told to stay on its caller's core.

NumPy releases the interpreter's lock inside large loops and products, so threads help where each piece of work is tens of
microseconds or more. The threads start with the first parallel call and live as long as the process.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from weakref import finalize

import numpy as np

Action = Callable[[], object]


def sequence(actions: Sequence[Action]) -> Callable[[], None]:
    """One call that runs ``actions`` in order, without NumPy's floating-point warnings."""

    def run() -> None:
        with np.errstate(all="ignore"):
            for action in actions:
                action()

    return run


def parallel(jobs: Sequence[Sequence[Action]], threads: int) -> Callable[[], None]:
    """One call that runs ``jobs`` (each in order, on one thread) on up to ``threads`` threads and returns when all are done.

    Products inside run on their caller's thread only: BLAS's own threads spin for a long time after each product, on the
    cores that the next layer's threads need. Jobs are dealt out in contiguous runs of about equal count.
    """
    jobs = [job for job in jobs if job]
    threads = min(threads, len(jobs))
    if threads <= 1:
        return _on_one_core(sequence([action for job in jobs for action in job]))
    bounds = [len(jobs) * number // threads for number in range(threads + 1)]
    shares = [[action for job in jobs[low:high] for action in job] for low, high in pairwise(bounds)]
    mine, others = sequence(shares[0]), [sequence(share) for share in shares[1:]]

    def run() -> None:
        team = _team(len(others))
        for worker, share in zip(team, others, strict=False):
            worker.start(share)
        try:
            mine()
        finally:
            errors = [worker.finish() for worker in team[: len(others)]]
        for error in errors:
            if error is not None:
                raise error

    return _on_one_core(run)


def _on_one_core(call: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        before = blas_threads(1)
        try:
            call()
        finally:
            if before != 1:
                blas_threads(before)

    return run


def stages(*calls: Callable[[], None]) -> Callable[[], None]:
    """One call that runs ``calls`` one after the other."""
    if len(calls) == 1:
        return calls[0]

    def run() -> None:
        for call in calls:
            call()

    return run


class _Worker:
    """A thread that runs what it is given; it ends with the last reference to this object (when its caller's thread does)."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Action | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        threading.Thread(target=_serve, args=(self._work, self._done), name=name, daemon=True).start()
        finalize(self, self._work.put, None)

    def start(self, action: Action) -> None:
        self._work.put(action)

    def finish(self) -> BaseException | None:
        return self._done.get()


def _serve(work: SimpleQueue[Action | None], done: SimpleQueue[BaseException | None]) -> None:
    """Run actions until there is None; each leaves its error, or None."""
    while (action := work.get()) is not None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
            done.put(error)
        else:
            done.put(None)
        del action  # it may hold arrays


_local = threading.local()


def _team(count: int) -> list[_Worker]:
    """``count`` workers or more that belong to the calling thread, so that two callers never share one."""
    team: list[_Worker] = getattr(_local, "team", [])
    while len(team) < count:
        team.append(_Worker(f"trtcli-cpu-{len(team) + 1}"))
    _local.team = team
    return team


@cache
def _blas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """OpenBLAS's functions that read and set its thread count, where NumPy brings OpenBLAS along; else None."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")) if folder.is_dir() else ():
            try:
                library = ctypes.CDLL(str(path))
            except OSError:
                continue
            for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", "")):
                get = getattr(library, f"{prefix}openblas_get_num_threads{suffix}", None)
                set_ = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
                if get is not None and set_ is not None:
                    get.restype, set_.argtypes, set_.restype = ctypes.c_int, [ctypes.c_int], None
                    return get, set_
    return None


def blas_threads(count: int) -> int:
    """Let NumPy's products use ``count`` threads and return how many they used before (``count`` when unknown)."""
    functions = _blas()
    if functions is None:
        return count
    get, set_ = functions
    before = get()
    if before != count:
        set_(count)
    return before
