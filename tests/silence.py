"""The log of builds whose lines no test reads."""

from __future__ import annotations


class Silent:
    """Takes every line and shows none."""

    def info(self, text: str) -> None: ...

    def verbose(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...
