"""What the sibling rules share: products of one tensor with several weights become one product, and each reader takes its part.

The parts are slices of the joined result along its channels (columns). They cost nothing where they are runs of memory, or columns which
their readers read in place (GPU), and only then is the rule tried; whether one large product is faster than several small ones a
measurement tells (see OPTIONAL in fusion/passes.py). A part that a concatenation would take as columns of its own result stays out.
"""

from __future__ import annotations

import numpy as np

from fusion.graph import Graph
from fusion.network import Layer, Op
from fusion.ops import Concatenation, Convolution, Deconvolution, MatrixMultiply, Pointwise, Pooling, Slice
from fusion.rewrite import Match, Refusal, Replacement, Rule

ALIGNMENT = 16  # bytes: a part that starts elsewhere would have to be copied
READERS = (Convolution, Deconvolution, MatrixMultiply, Pointwise, Pooling)  # what reads columns in place, whatever it computes


def sibling_rule(name: str, equation: str, *kinds: type[Op]) -> Rule:
    """The rule that joins layers of one of ``kinds`` which read one tensor and differ in their constant weights only."""

    def match(graph: Graph, layer: Layer) -> Match | None:
        readers = sorted(graph.readers(layer.inputs[0]), key=graph.position)
        siblings = [other for other in readers if _is_sibling(graph, other, kinds, layer.inputs[0]) and not _is_joined(graph, other)]
        alike = [other for other in siblings if _key(graph, other) == _key(graph, layer)] if layer in siblings else []
        group = alike if len(alike) > 1 else siblings
        return Match(tuple(group), found={"alike": len(alike) > 1}) if len(group) > 1 and group[0] is layer else None

    def check(graph: Graph, match: Match) -> Refusal | None:
        first = match.layers[0]
        shape = graph.type(first.outputs[0]).shape
        axis = channel_axis(first, len(shape))
        if not match.found["alike"]:
            return Refusal("attributes", f"{', '.join(one.name for one in match.layers)} differ in more than their weights")
        columns = any(dim != 1 for dim in shape[:axis])
        if columns and (axis != len(shape) - 1 or graph.limits.device != "cuda"):
            return Refusal("layout", f"the parts of a result of shape {shape} are no runs of memory")
        if len(graph.type(first.inputs[1]).shape) != 2 and isinstance(first.op, MatrixMultiply):
            return Refusal("weights", f"{first.inputs[1]} is no matrix")
        if getattr(first.op, "groups", 1) != 1:
            return Refusal("groups", f"{first.name} has {first.op.groups} groups")
        start = 0
        for layer in match.layers:
            kind = graph.type(layer.outputs[0])
            if layer.outputs[0] in graph.outputs:
                return Refusal("network output", f"{layer.outputs[0]} is a network output")
            sizes = kind.shape[axis:] if columns else kind.shape
            if not all(isinstance(dim, int) for dim in sizes):
                return Refusal("dynamic", f"the size of {layer.outputs[0]} is known at run time only")
            if start * kind.dtype.itemsize % ALIGNMENT:
                return Refusal("alignment", f"{layer.outputs[0]} would start at byte {start * kind.dtype.itemsize}")
            start += int(np.prod(sizes))  # type: ignore[arg-type]
            for reader in graph.readers(layer.outputs[0]) if columns else ():
                if not isinstance(reader.op, READERS):
                    return Refusal("reader", f"{reader.name} reads {layer.outputs[0]} as whole rows only")
            for tensor in layer.inputs[layer.op.arity :]:
                value = graph.constant(tensor)
                if value is None or not _per_channel(value.shape, kind.shape, axis):
                    return Refusal("epilogue", f"{layer.name} reads {tensor}, which is no constant per channel")
        if columns and start * kind.dtype.itemsize % ALIGNMENT:
            return Refusal("alignment", f"rows of the joined result would have {start * kind.dtype.itemsize} bytes, no multiple of {ALIGNMENT}")
        return None

    def rewrite(graph: Graph, match: Match) -> Replacement:
        layers, first = match.layers, match.layers[0]
        shape = graph.type(first.outputs[0]).shape
        axis = channel_axis(first, len(shape))
        values = [
            np.concatenate([graph.constants[layer.inputs[number]] for layer in layers], _weight_axis(first)) for number in range(1, first.op.arity)
        ]
        for index in range(len(first.inputs) - first.op.arity):
            parts = [graph.constants[layer.inputs[first.op.arity + index]] for layer in layers]
            values.append(np.concatenate(parts, axis - len(shape)))
        names = [graph.fresh(f"{first.inputs[1]}.siblings{index or ''}") for index in range(len(values))]
        result = graph.fresh(f"{first.outputs[0]}.siblings")
        new = [Layer("", first.op, (first.inputs[0], *names), (result,))]
        start = 0
        for layer in layers:
            kind = graph.type(layer.outputs[0])
            starts = tuple(start if one == axis else 0 for one in range(len(shape)))
            new.append(Layer(f"{layer.name} part", Slice(starts, kind.shape, (1,) * len(shape)), (result,), layer.outputs))
            start += int(kind.shape[axis])  # type: ignore[arg-type]
        return Replacement(tuple(new), dict(zip(names, values, strict=True)))

    return Rule(name, equation, kinds, match, rewrite, check)


def _is_sibling(graph: Graph, layer: Layer, kinds: tuple[type[Op], ...], source: str) -> bool:
    if not isinstance(layer.op, kinds) or layer.inputs[0] != source:
        return False
    return all(graph.constant(name) is not None for name in layer.inputs[1 : layer.op.arity])


def _is_joined(graph: Graph, layer: Layer) -> bool:
    """Whether a concatenation would have the result as columns of its own."""
    rank = len(graph.type(layer.outputs[0]).shape)
    return graph.limits.device == "cuda" and any(
        isinstance(reader.op, Concatenation) and reader.op.axis == rank - 1 for reader in graph.readers(layer.outputs[0])
    )


def _weight_axis(layer: Layer) -> int:
    """The axis of the weights that makes channels (columns)."""
    return -1 if getattr(layer.op, "transpose_b", True) is False else 0


def _key(graph: Graph, layer: Layer) -> tuple[object, ...]:
    """Equal for layers that can be joined."""
    kind = graph.type(layer.inputs[1])
    shape = kind.shape[:-1] if _weight_axis(layer) else kind.shape[1:]
    return layer.op, len(layer.inputs), shape, kind.dtype, graph.type(layer.outputs[0]).dtype


def channel_axis(layer: Layer, rank: int) -> int:
    """The axis of the result along which siblings are joined."""
    return 1 if getattr(layer.op, "channels_last", True) is False else rank - 1


def _per_channel(shape: tuple, result: tuple, axis: int) -> bool:
    """Whether an operand of this shape has one value per channel, and is repeated along everything else."""
    place = axis - len(result) + len(shape)
    return place >= 0 and shape[place] == result[axis] and all(dim == 1 for one, dim in enumerate(shape) if one != place)
