"""Finding ``(x - mean) / sqrt(mean of squares - mean ** 2 + epsilon)``, the variance that JAX writes, in the layers that write it out.

What follows from the sums of x and of x ** 2 is a function of two numbers per row. However it is written, it is evaluated in float64 at
sample points and compared with the mean and the inverse deviation. (One pass over x computes both sums; a Normalization, which makes two
in registers, does not lose digits where the mean is large.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusion.expression import Apply, Expression, Operand, evaluate, operands, size
from fusion.graph import Graph
from fusion.network import Layer
from fusion.ops import Pointwise, Reduce, Shuffle
from fusion.ops.epilogue import IDENTITY
from fusion.rules._expressions import as_double, join, number, static_size, subtrees, swap
from fusion.rules._statistics import RootMeanSquare, factors_of, product_of, strip

_LARGEST = 24  # functions between the sums and what they are used for
_MEANS = np.array([0.0, 0.3, -2.0, 1.5, 7.0])
_VARIANCES = np.array([1.0, 0.2, 3.0, 1e-3, 40.0])


@dataclass(frozen=True)
class _FromSums:
    """``expression`` over ``names``: the results of ``reductions``, each with whether it sums squares. ``layers`` are all on the way."""

    expression: Expression
    names: tuple[str, ...]
    reductions: Mapping[str, tuple[Layer, bool]]
    layers: tuple[Layer, ...]

    def value(self, mean: np.ndarray, variance: np.ndarray, count: int) -> np.ndarray:
        """The expression where the rows of ``count`` elements have these moments."""
        moments = ((reduce, variance + mean**2 if squared else mean) for reduce, squared in map(self.reductions.__getitem__, self.names))
        given = [moment if reduce.op.kind == "mean" else moment * count for reduce, moment in moments]
        with np.errstate(all="ignore"):
            return np.asarray(evaluate(as_double(self.expression), given), np.float64)


def find_moments(graph: Graph, last: Layer) -> RootMeanSquare | None:
    """Where the pointwise layer ``last`` normalises a tensor by moments that come from its sums."""
    for node in dict.fromkeys(subtrees(last.op.expression)):
        if not isinstance(node, Apply) or node.function not in ("mul", "div"):
            continue
        above, below = factors_of(node)
        for centred in above:
            pair = [strip(one) for one in centred.arguments] if isinstance(centred, Apply) and centred.function == "sub" else []
            if len(pair) != 2 or not isinstance(pair[0], Operand) or not operands(pair[1]):
                continue
            data, mean = last.inputs[pair[0].index], pair[1]
            for scale in (*above, *below):
                found = None if scale is centred else _moments(graph, last, data, mean, scale, scale in above)
                if found is not None:
                    axes, epsilon, layers = found
                    rest = swap(last.op.expression, node, product_of(above, below, centred, scale))
                    return RootMeanSquare(data, axes, epsilon, layers, last, rest)
    return None


def _moments(
    graph: Graph, last: Layer, data: str, mean: Expression, scale: Expression, inverted: bool
) -> tuple[tuple[int, ...], float, tuple[Layer, ...]] | None:
    """(axes, epsilon, layers before ``last``) when ``mean`` is that of ``data`` and ``scale`` its deviation (1 / it when ``inverted``)."""
    if not operands(scale):
        return None
    first, second = _from_sums(graph, data, mean, last.inputs), _from_sums(graph, data, scale, last.inputs)
    if first is None or second is None:
        return None
    axes = {reduce.op.axes for reduce, _ in (*first.reductions.values(), *second.reductions.values())}
    count = static_size([graph.type(data).shape[axis] for axis in min(axes)])
    if len(axes) > 1 or not count:
        return None
    at_zero = float(second.value(np.zeros(1), np.zeros(1), count).reshape(-1)[0])
    root = 1 / at_zero if inverted and at_zero else at_zero
    epsilon = root * root
    if not np.isfinite(epsilon) or not np.allclose(first.value(_MEANS, _VARIANCES, count), _MEANS, 1e-5, 1e-6):
        return None
    deviation = np.sqrt(_VARIANCES + epsilon)
    if not np.allclose(second.value(_MEANS, _VARIANCES, count), 1 / deviation if inverted else deviation, 1e-4, 1e-6):
        return None
    layers = dict.fromkeys((*first.layers, *second.layers))
    return min(axes), epsilon, tuple(sorted(layers, key=graph.position))


def _from_sums(graph: Graph, data: str, expression: Expression, names: tuple[str, ...]) -> _FromSums | None:
    """``expression``, of tensors ``names``, as one of sums (means) of ``data`` and of its squares."""
    expression, names = number(expression, names)
    layers: dict[str, Layer] = {}
    leaves: dict[str, tuple[Layer, bool]] = {}
    while size(expression) <= _LARGEST:
        name = next((one for one in names if one not in leaves), None)
        if name is None:
            return _FromSums(expression, names, leaves, tuple(layers.values()))
        maker = graph.producer(name)
        if maker is None:
            return None
        layers[maker.name] = maker
        if isinstance(maker.op, Shuffle) and maker.op.first is None and maker.op.second is None:
            expression, names = number(expression, tuple(maker.inputs[0] if one == name else one for one in names))
        elif isinstance(maker.op, Pointwise):
            expression, names = number(*join(expression, names, name, maker.op.expression, maker.inputs))
        else:
            found = _leaf(graph, data, maker)
            if found is None:
                return None
            total = f"{name} before its epilogue"
            leaves[total] = maker, found[0]
            expression, names = number(*join(expression, names, name, maker.op.epilogue, (total, *maker.inputs[1:])))
            layers.update((one.name, one) for one in found[1])
    return None


def _leaf(graph: Graph, data: str, maker: Layer) -> tuple[bool, tuple[Layer, ...]] | None:
    """Whether ``maker`` sums squares of ``data`` (else ``data`` itself), before its epilogue, and a layer that squares; None when it does neither."""
    op = maker.op
    if not isinstance(op, Reduce) or op.kind not in ("sum", "mean"):
        return None
    prologue, source = strip(op.prologue), maker.inputs[0]
    squared: Expression = Apply("square", (Operand(0),))
    if source == data and prologue in (IDENTITY, squared):
        return prologue == squared, ()
    before = graph.producer(source)
    if prologue == IDENTITY and before is not None and isinstance(before.op, Pointwise) and before.inputs == (data,):
        return (True, (before,)) if strip(before.op.expression) == squared else None
    return None
