"""Regions: names that belong together, joined pair by pair (disjoint sets; Galler and Fischer, 1964)."""

from __future__ import annotations

from collections.abc import Iterable


class Regions:
    """At first each of ``names`` is a region of its own."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parent = {name: name for name in names}

    def of(self, name: str) -> str:
        """The region of ``name``, as the name of one that is in it; the same for all that are."""
        parent = self._parent
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        """Make the regions of ``a`` and ``b`` one."""
        self._parent[self.of(a)] = self.of(b)
