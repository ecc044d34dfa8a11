"""What the epilogue rules share: ``f(op(x))`` becomes one layer that applies ``f`` to its results before it stores them."""

from __future__ import annotations

from collections.abc import Callable

from fusion.dtypes import DataType
from fusion.expression import FUNCTIONS, Apply, Operand
from fusion.graph import Graph
from fusion.network import Layer, Op
from fusion.ops import Attention, Convolution, Deconvolution, MatrixMultiply, PackedMatrixMultiply, Pointwise
from fusion.ops.epilogue import IDENTITY
from fusion.rewrite import Match, Near, Refusal, Replacement, Rule
from fusion.rules._expressions import fits_epilogue, pointwise_reader, subtrees, with_epilogue
from fusion.rules._quantized import QUANTIZED

_REAL = (DataType.FLOAT, DataType.HALF, DataType.BF16)
PRODUCTS = (Convolution, Deconvolution, MatrixMultiply, PackedMatrixMultiply)


def epilogue_rule(
    name: str, equation: str, anchors: tuple[type[Op], ...], accepts: Callable[[Graph, Layer, Layer], bool]
) -> Rule:
    """The rule that moves a pointwise reader, of those that ``accepts`` takes, into the epilogue of an anchor."""

    def match(graph: Graph, layer: Layer) -> Match | None:
        reader = pointwise_reader(graph, layer)
        if reader is None or not accepts(graph, layer, reader):
            return None
        return Match((layer, reader), (layer.outputs[0],))

    return Rule(name, equation, anchors, match, rewrite, check)


def check(graph: Graph, match: Match) -> Refusal | None:
    """Shapes and types that an epilogue can store, and that no later layer is the better place."""
    layer, reader = match.layers
    refusal = fits_epilogue(graph, layer, reader)
    if refusal is not None:
        return refusal
    if isinstance(layer.op, (*PRODUCTS, Attention)):
        refusal = _storable(graph, layer, reader)
        if refusal is not None:
            return refusal
    later = _later_product(graph, layer, reader)
    if later is not None:
        return Refusal("order", f"{reader.name} joins {later.name}, which is computed later")
    return None


def rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    """The layer with a larger epilogue."""
    fused = with_epilogue(graph, *match.layers)
    return fused if isinstance(fused, Refusal) else Replacement((fused,))


def near_logarithm(graph: Graph, layer: Layer) -> Near | None:
    """The logarithm of the result of ``layer``, beside other uses of it in the epilogue, or in a layer that did not join."""
    if Apply("log", (Operand(0),)) in set(subtrees(layer.op.epilogue)):
        return Match((layer,)), Refusal("operands", f"{layer.name} also uses its result without the logarithm")
    for reader in graph.readers(layer.outputs[0]) if layer.op.epilogue == IDENTITY else ():
        if isinstance(reader.op, Pointwise):
            logarithm = Apply("log", (Operand(reader.inputs.index(layer.outputs[0])),))
            if logarithm in set(subtrees(reader.op.expression)):
                return Match((layer, reader), layer.outputs), fits_epilogue(graph, layer, reader)
    return None


def is_activation(reader: Layer) -> bool:
    """One activation function of one tensor, such as ``relu(x)`` or ``clip(x, 0, 6)``."""
    expression = reader.op.expression
    return (
        len(reader.inputs) == 1
        and isinstance(expression, Apply)
        and FUNCTIONS[expression.function].activation
        and not any(isinstance(child, Apply) for child in expression.arguments)
    )


def is_one_tensor(graph: Graph, reader: Layer) -> bool:
    """A function of one tensor and constants: a generic activation."""
    return sum(1 for name in dict.fromkeys(reader.inputs) if graph.constant(name) is None) == 1


def _storable(graph: Graph, layer: Layer, reader: Layer) -> Refusal | None:
    made, out = graph.type(layer.outputs[0]).dtype, graph.type(reader.outputs[0]).dtype
    if graph.type(layer.inputs[0]).dtype.itemsize == 1 and out.itemsize <= 4:
        return None  # quantised products store whatever they are dequantised or requantised to
    if out is made or (made in _REAL and out in (*_REAL, *QUANTIZED)):
        return None
    return Refusal("data type", f"{reader.name} turns {made.value} into {out.value}, which the kernel does not store")


def _later_product(graph: Graph, layer: Layer, reader: Layer) -> Layer | None:
    """Another product whose epilogue could take ``reader`` and which is computed after ``layer``.

    Of two convolutions that are added, the later one finds the other's result already there."""
    if not isinstance(layer.op, PRODUCTS):
        return None
    for name in reader.inputs:
        other = graph.producer(name)
        if (
            other is not None
            and other.name != layer.name
            and isinstance(other.op, PRODUCTS)
            and graph.position(other) > graph.position(layer)
            and graph.only_reader(name) is not None
            and fits_epilogue(graph, other, reader) is None
            and _storable(graph, other, reader) is None
        ):
            return other
    return None
