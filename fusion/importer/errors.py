"""What can go wrong with a model, as exceptions with one readable text each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

PLACES = ("input", "initializer", "output")  # stand in place of an operator where a tensor of the graph is the problem


class ModelError(ValueError):
    """A file (or bytes) that is not a usable ONNX model; one line that names the file."""


@dataclass(frozen=True)
class Problem:
    """A node that cannot be imported: its name, operator, domain (``ai.onnx`` for the standard one), opset, and why."""

    node: str
    operator: str
    domain: str
    opset: int
    reason: str

    def __str__(self) -> str:
        if self.operator in PLACES:
            return f"{self.operator} {self.node}: {self.reason}"
        return f"{self.node}: {self.operator} ({self.domain or 'ai.onnx'}, opset {self.opset}): {self.reason}"


class UnsupportedModel(ModelError):
    """A model with operators, or forms of operators, that trtcli does not have. Lists every such node.

    Attributes:
        problems: one entry per node, in the order of the graph.
    """

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        counts = Counter(problem.operator if problem.operator in PLACES else "node" for problem in self.problems)
        listed = [f"{counts[kind]} {kind}{'s' if counts[kind] != 1 else ''}" for kind in ("node", *PLACES) if counts[kind]]
        operators = ", ".join(sorted({problem.operator for problem in self.problems} - set(PLACES)))
        head = f"{name}: {' and '.join(listed)} cannot be imported{f' ({operators})' if operators else ''}"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class Unsupported(Exception):
    """Raised by an operator's importer: this node cannot be imported, and the text says why. Never leaves the package."""
