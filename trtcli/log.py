"""Lines for people and scripts: trtexec's ``[MM/DD/YYYY-HH:MM:SS] [I] text`` when piped, a quiet form at a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from trtcli.version import __version__

_COLOURS = {"W": "\x1b[33m", "E": "\x1b[31m", "V": "\x1b[2m"}


# Control characters but tab, newline and the separator of "Metadata": names of models may hold any, and a terminal would obey them.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10, 30)}


def printable(text: str) -> str:
    """``text`` with control characters as ``\\x1b``."""
    return text.translate(_CONTROLS)


class Silent:
    """Takes the lines of a build and shows none: they have been said before, or nobody reads them."""

    def info(self, text: str) -> None:
        """Nothing."""

    verbose = warning = info


class Log:
    """Writes levels I and V to standard output, W and E to standard error.

    Args:
        verbose: whether level V is written.
        terminal: the quiet form; None asks standard output.
        to_stderr: everything to standard error (standard output then carries JSON only).
        now: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        terminal: bool | None = None,
        to_stderr: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.is_verbose = verbose
        self.terminal = (sys.stderr if to_stderr else sys.stdout).isatty() if terminal is None else terminal
        self._to_stderr = to_stderr
        self._now = now
        self._lock = threading.Lock()
        self._above: Callable[[str], None] | None = None

    @contextlib.contextmanager
    def above(self, write: Callable[[str], None]) -> Iterator[None]:
        """While the block runs, lines for the terminal go to ``write``, which keeps a progress bar below them."""
        self._above = write
        try:
            yield
        finally:
            self._above = None

    def info(self, text: str) -> None:
        """A line that everybody sees."""
        self._write("I", text)

    def report(self, text: str) -> None:
        """A line of a report: at a terminal it stands alone, piped it is a line like the others."""
        self._write("I", text, bare=True)

    def verbose(self, text: str) -> None:
        """A line for ``--verbose``."""
        if self.is_verbose:
            self._write("V", text)

    def warning(self, text: str) -> None:
        """Something that the user should know."""
        self._write("W", text)

    def error(self, text: str) -> None:
        """Why it failed."""
        self._write("E", text)

    def banner(self, state: str, command_line: str) -> None:
        """``&&&& RUNNING trtcli v0.1.0 # command line``; ``state`` is RUNNING, PASSED or FAILED."""
        self._print(f"&&&& {state} trtcli v{__version__} # {command_line}", error=self._to_stderr)

    def _write(self, level: str, text: str, bare: bool = False) -> None:
        error = level in "WE" or self._to_stderr
        stamp = time.strftime("%m/%d/%Y-%H:%M:%S", time.localtime(self._now()))
        for line in printable(text).split("\n"):
            if not self.terminal:
                self._print(f"[{stamp}] [{level}] {line}", error)
            elif bare:
                self._print(line, error)
            else:
                self._print(self._coloured(level, f"[{level}] {line}"), error)

    def _coloured(self, level: str, line: str) -> str:
        colour = "" if os.environ.get("NO_COLOR") else _COLOURS.get(level, "")
        return f"{colour}{line}\x1b[0m" if colour else line

    def _print(self, line: str, error: bool) -> None:
        with self._lock:
            stream = sys.stderr if error else sys.stdout
            if self._above is not None and stream.isatty():
                self._above(line)
                return
            stream.write(line + "\n")
            stream.flush()
