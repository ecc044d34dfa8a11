"""Can a CUDA graph hold a network? The static answer, from the model alone: no GPU needed.

A graph records launches once and replays them as they are: the host cannot step in between. So what needs the host in the
middle (a branch or loop on a computed value, an output whose shape depends on values, strings, sequences) cannot be in it.
Source: CUDA Programming Guide, "CUDA Graphs"; TensorRT's documentation names the same operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusion.importer import Problem
from runtime.segments import Part, captured_layers, layer_count, obstacles_of, read_inputs

_DATA_SHAPE = "its output's shape depends on data"
_CONTROL = "the host decides what runs next"
_HOST = "its values live on the host"

# Operators that no import makes capturable, with the reason.
HOST_OPERATORS = {
    "StringSplit": _DATA_SHAPE,
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _CONTROL),
    **dict.fromkeys(
        (
            "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
            "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
            "StringConcat", "StringNormalizer", "RegexFullMatch", "TfIdfVectorizer", "ImageDecoder",
        ),
        _HOST,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Obstacle:
    """A node or layer that a CUDA graph cannot hold, and why."""

    operator: str
    name: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Whether one CUDA graph can hold the network.

    Attributes:
        layers: how many layers (or nodes, for a model that cannot be built) there are.
        obstacles: what stands in the way; empty when capturable.
        segments: lengths of the runs of layers between the obstacles: each could be a graph of its own.
        how: where the answer comes from.
        buildable: whether trtcli can build the model.
    """

    layers: int
    obstacles: tuple[Obstacle, ...] = ()
    segments: tuple[int, ...] = ()
    how: str = "static"
    buildable: bool = True

    @property
    def capturable(self) -> bool:
        """Whether one graph holds it all."""
        return not self.obstacles


def obstacle_of(problem: Problem) -> Obstacle | None:
    """The obstacle that a node which cannot be imported is to capture, or None when it is merely unsupported."""
    reason = HOST_OPERATORS.get(problem.operator)
    if reason is None and "depends on data" in problem.reason:
        reason = problem.reason.split(";")[0]
    return None if reason is None else Obstacle(problem.operator, problem.node, reason)


def verdict_of(parts: Sequence[Part]) -> Verdict:
    """The verdict on a network and those inside its layers (see :func:`runtime.segments.parts_of`)."""
    obstacles: list[Obstacle] = [
        Obstacle("Input", name, "shapes depend on its values: the host reads them") for name in read_inputs(parts[0][0])
    ]
    for network, host in parts:
        for one in obstacles_of(network, host):
            layer = network.layers[one.layer]
            obstacles.append(Obstacle(layer.op.layer_type or type(layer.op).__name__, layer.name, one.reason))
    segments = tuple(map(len, captured_layers(parts))) if obstacles else ()
    return Verdict(layer_count(parts[0][0]), tuple(obstacles), segments)


def verdict_of_nodes(names: Sequence[str], obstacles: Sequence[Obstacle]) -> Verdict:
    """The verdict on nodes in topological order, some of which are obstacles."""
    blocked = {one.name for one in obstacles}
    segments: list[int] = [0]
    for name in names:
        if name in blocked:
            segments.append(0)
        else:
            segments[-1] += 1
    return Verdict(len(names), tuple(obstacles), tuple(length for length in segments if length), buildable=False)
