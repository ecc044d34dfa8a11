"""Which function imports which operator, by domain and opset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from fusion.importer.node import Node
from fusion.importer.values import Value

if TYPE_CHECKING:
    from fusion.importer.builder import Builder

Importer: TypeAlias = "Callable[[Builder, Node], Value | Sequence[Value]]"

# Each module registers its operators when it is imported.
MODULES = (
    "attention", "convolution", "einsum", "elementwise", "generate", "indexing", "legacy", "matmul", "microsoft", "microsoft_attention", "microsoft_experts", "microsoft_math",
    "microsoft_quantized", "movement",
    "normalization", "order", "pooling", "quantization", "random", "recurrent", "reduction", "resize", "sampling", "signal",
    "select", "slicing",
)  # fmt: skip

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Entry:
    """An importer and the opsets (of its domain) that it understands, both ends included."""

    importer: Importer
    since: int
    until: int


_entries: dict[tuple[str, str], list[Entry]] = {}


def operator(*names: str, since: int = 1, until: int = 1 << 30, domain: str = "") -> Callable[[Importer], Importer]:
    """Registers a function as the importer of these operators in opsets ``since`` to ``until``."""

    def register(importer: Importer) -> Importer:
        for name in names:
            _entries.setdefault((domain, name), []).append(Entry(importer, since, until))
        return importer

    return register


@cache
def _load() -> None:
    for module in MODULES:
        import_module(f"fusion.importer.operators.{module}")


def find(domain: str, name: str, opset: int) -> Importer | None:
    """The importer of an operator, or None."""
    _load()
    for entry in _entries.get((domain, name), ()):
        if entry.since <= opset <= entry.until:
            return entry.importer
    return None


def operators() -> dict[str, tuple[str, ...]]:
    """The operators with an importer of their own, by domain."""
    _load()
    found: dict[str, set[str]] = {}
    for domain, name in _entries:
        found.setdefault(domain, set()).add(name)
    return {domain: tuple(sorted(names)) for domain, names in found.items()}
