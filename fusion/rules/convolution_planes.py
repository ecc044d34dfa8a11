"""Transpose(Conv(x, w)), Reformat(Conv(x, w)) -> PlanarConvolution(x, w): the result is stored channels-first, and cast, where it is made. Optional.

It saves a launch, and writing and reading the result once more. Planes are stored in shorter runs than channels are, and not every kernel of
convolutions can do so; what wins only a measurement tells.
"""

from __future__ import annotations

from dataclasses import replace

from fusion.dims import is_static
from fusion.dtypes import DataType
from fusion.expression import substitute
from fusion.graph import Graph
from fusion.layout import REFORMAT, back_for
from fusion.network import Layer
from fusion.ops import Convolution, Deconvolution, PlanarConvolution, Reformat, Shuffle
from fusion.rewrite import Match, Refusal, Replacement, Rule, joined_name
from fusion.rules._expressions import show
from fusion.rules._shuffles import is_view, transpose_of

_STORED = (DataType.FLOAT, DataType.HALF, DataType.BF16)
_READ = (*_STORED, DataType.INT8, DataType.UINT8, DataType.FP8)


def _match(graph: Graph, layer: Layer) -> Match | None:
    convolution = graph.producer(layer.inputs[0])
    if convolution is None or not isinstance(convolution.op, Convolution | Deconvolution) or not convolution.op.channels_last:
        return None
    return Match((convolution, layer), (convolution.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    first, layer = match.layers
    shape = graph.type(layer.inputs[0]).shape
    order = layer.op.order if isinstance(layer.op, Reformat) else transpose_of(shape, layer.op)
    if graph.limits.device != "cuda":
        return Refusal("device", "the CPU convolves channels-first in any case")
    if order != back_for(len(shape)):
        return Refusal("layout", f"{layer.name} is no change from channels-last to channels-first of {show(shape)}")
    if isinstance(layer.op, Shuffle) and is_view(shape, layer.op):
        return Refusal("no gain", f"{layer.name} moves no element of {show(shape)}")
    for name, allowed in ((first.inputs[0], _READ), (layer.outputs[0], _STORED)):
        if graph.type(name).dtype not in allowed:
            return Refusal("data type", f"{name} is {graph.type(name).dtype.label}; {', '.join(kind.label for kind in allowed)} are allowed")
    if graph.constant(first.inputs[1]) is None:
        return Refusal("weights", f"the weights {first.inputs[1]} are not constant")
    if not is_static((first.op.pre_padding, first.op.post_padding)):
        return Refusal("dynamic", f"paddings of {first.name} are known at run time only")
    return None


def _rewrite(graph: Graph, match: Match) -> Replacement:
    first, layer = match.layers
    op = first.op
    assert isinstance(op, Convolution | Deconvolution)
    if isinstance(layer.op, Reformat):
        op = replace(op, epilogue=substitute(layer.op.epilogue, {0: op.epilogue}))
    origins = tuple(dict.fromkeys((*first.origins, *layer.origins)))
    fusions = tuple(one for one in dict.fromkeys((*first.fusions, *layer.fusions, RULE.name)) if one != REFORMAT)
    name = joined_name([first, layer], pointwise=False)
    return Replacement((Layer(name, PlanarConvolution(op), first.inputs, layer.outputs, origins, fusions),))


RULE = Rule("convolution-planes", __doc__.splitlines()[0], (Shuffle, Reformat), _match, _rewrite, _check)
