"""A log that remembers what it was told."""

from __future__ import annotations


class Lines(list[str]):
    """The lines of every level, in order."""

    def info(self, text: str) -> None:
        self.append(text)

    verbose = warning = info
