"""Transpose(Conv(x, w)), Reformat(Conv(x, w)) -> PlanarConvolution(x, w): the result is stored channels-first, and cast, where it is made. Optional.

It saves a launch, and writing and reading the result once more. Planes are stored in shorter runs than channels are, and not every kernel of
convolutions can do so; what wins only a measurement tells. Channels that were padded to whole vectors (:mod:`fusion.padded_channels`) and are cut off
again are not computed then: planes need none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.dims import is_static
from fusion.dtypes import DataType
from fusion.expression import substitute
from fusion.graph import Graph
from fusion.layout import REFORMAT, back_for
from fusion.network import Layer
from fusion.ops import Convolution, Deconvolution, PlanarConvolution, Reformat, Shuffle, Slice
from fusion.padded_channels import RULE as PADDED
from fusion.rewrite import Match, Refusal, Replacement, Rule, joined_name
from fusion.rules._expressions import show
from fusion.rules._shuffles import is_view, transpose_of

_STORED = (DataType.FLOAT, DataType.HALF, DataType.BF16)
_READ = (*_STORED, DataType.INT8, DataType.UINT8, DataType.FP8)


def _match(graph: Graph, layer: Layer) -> Match | None:
    before = graph.producer(layer.inputs[0])
    cut = before if before is not None and isinstance(before.op, Slice) and {REFORMAT, PADDED} <= set(before.fusions) else None
    convolution = before if cut is None else graph.producer(cut.inputs[0])
    if convolution is None or not isinstance(convolution.op, Convolution | Deconvolution) or not convolution.op.channels_last:
        return None
    between = () if cut is None else (cut,)
    return Match((convolution, *between, layer), tuple(one.outputs[0] for one in (convolution, *between)))


def _check(graph: Graph, match: Match) -> Refusal | None:
    first, *cut, layer = match.layers
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
    if cut and isinstance(constants := _cut(graph, first, cut[0]), Refusal):
        return constants
    if not is_static((first.op.pre_padding, first.op.post_padding)):
        return Refusal("dynamic", f"paddings of {first.name} are known at run time only")
    return None


def _cut(graph: Graph, first: Layer, cut: Layer) -> Refusal | dict[str, np.ndarray]:
    """The constants of ``first`` for the channels that ``cut`` leaves of it."""
    held, real, begin = graph.type(first.outputs[0]).shape[-1], cut.op.sizes[-1], cut.op.starts[-1]
    if begin != 0 or cut.op.steps[-1] != 1 or first.op.groups != 1 or not isinstance(real, int):
        return Refusal("channels", f"{cut.name} cuts channels out of the middle of {first.name}, or of groups")
    found: dict[str, np.ndarray] = {}
    for number, name in enumerate(first.inputs[1:], 1):
        value = graph.constant(name)
        axis = -1 if number > 1 else 1 if isinstance(first.op, Deconvolution) else 0
        if value is not None and value.ndim and value.shape[axis] == held:
            found[name] = np.ascontiguousarray(np.take(value, range(real), axis))
        elif value is None or value.size > 1:
            return Refusal("operand", f"{first.name} reads {name}, which is no constant of its channels")
    return found


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    first, *cut, layer = match.layers
    op = first.op
    constants = _cut(graph, first, cut[0]) if cut else {}
    if isinstance(constants, Refusal):
        return constants
    names = {old: graph.fresh(f"{old}.real") for old in constants}
    inputs = tuple(names.get(name, name) for name in first.inputs)
    assert isinstance(op, Convolution | Deconvolution)
    if isinstance(layer.op, Reformat):
        op = replace(op, epilogue=substitute(layer.op.epilogue, {0: op.epilogue}))
    origins = tuple(dict.fromkeys((*first.origins, *layer.origins)))
    fusions = tuple(one for one in dict.fromkeys((*first.fusions, *layer.fusions, RULE.name)) if one != REFORMAT)
    name = joined_name([first, layer], pointwise=False)
    made = Layer(name, PlanarConvolution(op), inputs, layer.outputs, origins, fusions)
    return Replacement((made,), {names[old]: value for old, value in constants.items()})


RULE = Rule("convolution-planes", __doc__.splitlines()[0], (Shuffle, Reformat), _match, _rewrite, _check)
