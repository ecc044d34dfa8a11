"""How far a build is: a bar at a terminal, a line every few seconds otherwise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from trtcli.log import Log

if TYPE_CHECKING:
    from trtcli.builder import Progress

SECONDS_PER_LINE = 5.0


def summary(state: Progress, elapsed: float) -> str:
    """``19/23 workloads · 812 timed · 0 cached · 41 refused · 6 s left``"""
    parts = [
        f"{state.done}/{state.total} workloads",
        f"{state.timed} timed",
        f"{state.cached} cached",
        f"{state.refused} refused",
    ]
    searched = state.done - state.cached  # cache hits take no time and say nothing about the rest
    if searched > 0 and state.done < state.total:
        parts.append(f"{elapsed / searched * (state.total - state.done):.0f} s left")
    return " · ".join(parts)


@contextlib.contextmanager
def build_progress(log: Log, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[Progress], None]]:
    """A function that shows each state it is called with, until the block ends."""
    began = clock()
    if log.terminal:
        with _bar(log, began, clock) as show:
            yield show
        return
    last = began

    def line(state: Progress) -> None:
        nonlocal last
        if clock() - last >= SECONDS_PER_LINE:
            last = clock()
            log.info(f"Tactics: {summary(state, clock() - began)}")

    yield line


@contextlib.contextmanager
def _bar(log: Log, began: float, clock: Callable[[], float]) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    bar = Bar(
        TextColumn("Tactics "),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[text]}", markup=False),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task("", total=None, text="")

    def show(state: Progress) -> None:
        if not bar.live.is_started:  # nothing is timed while the model is read and fused
            bar.start()
        bar.update(task, total=state.total or None, completed=state.done, text=summary(state, clock() - began))

    with log.above(lambda line: bar.console.print(Text.from_ansi(line), soft_wrap=True)):
        try:
            yield show
        finally:
            bar.stop()
