"""The process that a command line runs in: its standard streams, and the signals that end it."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from types import FrameType


class Ended(KeyboardInterrupt):
    """Another program wants this one to end (``kill``, ``timeout``, a CI job that is cancelled); ``number`` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def prepare_streams() -> None:
    """Standard streams that take every line: one that is closed (``>&-``) swallows them, and characters that the encoding of one lacks become escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (it stays open as long as the process lives)
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def prepare_signals() -> None:
    """Interrupts and requests to end become exceptions, so that half-written files vanish and the last line says FAILED; what is ignored stays so."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)
