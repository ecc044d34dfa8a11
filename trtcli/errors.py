"""What went wrong, in one or two plain lines; the one place that knows which exceptions are for users."""

from __future__ import annotations

import errno
import signal
import sys
import traceback

from trtcli.log import Log
from trtcli.parse import UsageError
from trtcli.process import Ended

PASSED, FAILED, NOT_CAPTURABLE, REGRESSION = 0, 1, 2, 3
SIGNALLED = 128  # and the signal's number, as shells have it: 130 interrupted, 143 terminated


def lines_of(error: BaseException) -> list[str]:
    """The lines that a user reads about ``error``."""
    if isinstance(error, UsageError):
        return [*error.complaints, f"trtcli {error.command} --help shows its flags" if error.command else "trtcli --help lists all flags"]
    if isinstance(error, Ended):
        return [f"Ended by {signal.Signals(error.number).name}"]
    if isinstance(error, KeyboardInterrupt):
        return ["Interrupted"]
    if isinstance(error, OSError) and error.errno is not None:
        return [_system_error(error)]
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in ("cupy", "cuda", "nvidia"):
        from trtcli.host import extra

        return [
            f"A GPU was chosen, but the Python package {error.name!r} is not installed",
            f"pip install 'trtcli[{extra() or 'gpu'}]' installs it; --device=cpu does without",
        ]
    if isinstance(error, MemoryError):
        return [f"Out of memory: {error or 'the host has too little'}; smaller --maxShapes or fewer --infStreams need less"]
    if isinstance(error, ValueError | RuntimeError | OSError) and str(error):
        return str(error).rstrip().split("\n")
    return [
        f"Uncaught exception detected: {type(error).__name__}: {error}",
        "This is a fault of trtcli: please report it with the output of the same command and --verbose",
    ]


def _system_error(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{place}no space left on the device; nothing was written"
    if error.errno == errno.ENOENT:
        return f"Cannot open file {error.filename}: it does not exist"
    return f"{place}{(error.strerror or 'cannot be used').lower()}"


def report(error: BaseException, log: Log) -> int:
    """Log ``error`` and return the exit code that belongs to it; the traceback is for ``--verbose`` only."""
    if log.is_verbose and not isinstance(error, UsageError | KeyboardInterrupt):
        log.verbose("".join(traceback.format_exception(error)).rstrip())
    for line in lines_of(error):
        log.error(line)
    if type(error).__name__ == "DeviceLostError":
        _end_quietly()
    if isinstance(error, KeyboardInterrupt):
        return SIGNALLED + (error.number if isinstance(error, Ended) else signal.SIGINT)
    return FAILED


def _end_quietly() -> None:
    """A broken GPU context cannot be cleared away, and cupy says so for every object when the program ends; the user has been told once."""
    raised, ignored = sys.excepthook, sys.unraisablehook

    def is_cupys(kind: type[BaseException]) -> bool:
        return kind.__module__.split(".")[0] in ("cupy", "cupy_backends")

    sys.excepthook = lambda kind, value, trace: None if is_cupys(kind) else raised(kind, value, trace)
    sys.unraisablehook = lambda told: None if is_cupys(told.exc_type) else ignored(told)
