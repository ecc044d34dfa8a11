"""Padding(Conv(x, w)) -> Conv(x, [w 0]), for the channels that only the memory of an output has: weights of zeros make them.

An output of a format that holds more channels than there are (``--outputIOFormats=hwc8``) is stored at once then, in whole vectors. Padding that a model
asks for itself stays: where x is infinite it would not be zero any more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion.expression import evaluate
from fusion.graph import Graph
from fusion.io_formats import OUTPUT_FORMAT
from fusion.network import Layer
from fusion.ops import Convolution, Padding
from fusion.ops.epilogue import product_type
from fusion.rewrite import Match, Refusal, Replacement, Rule


def _match(graph: Graph, layer: Layer) -> Match | None:
    convolution = graph.producer(layer.inputs[0])
    if convolution is None or not isinstance(convolution.op, Convolution) or OUTPUT_FORMAT not in layer.fusions:
        return None
    return Match((convolution, layer), (convolution.outputs[0],))


def _check(graph: Graph, match: Match) -> Refusal | None:
    first, layer = match.layers
    if not first.op.channels_last:
        return Refusal("layout", f"{first.name} runs channels-first, {layer.name} pads channels-last")
    if first.op.groups != 1:
        return Refusal("groups", f"{first.name} has {first.op.groups} groups; one is allowed")
    if graph.constant(first.inputs[1]) is None:
        return Refusal("weights", f"the weights {first.inputs[1]} are not constant")
    found = _operands(graph, match)
    return found if isinstance(found, Refusal) else None


def _operands(graph: Graph, match: Match) -> Refusal | dict[str, np.ndarray]:
    """The epilogue's operands that change, with zeros for the new channels; or why the epilogue would not leave these zero."""
    first, layer = match.layers
    channels, more = graph.type(first.outputs[0]).shape[-1], int(layer.op.post[-1])
    values = [np.zeros((1,), product_type(graph.type(first.inputs[0]).dtype).numpy)]
    widened: dict[str, np.ndarray] = {}
    for name in first.inputs[2:]:
        constant = graph.constant(name)
        if constant is None or constant.size not in (1, channels) or (constant.size > 1 and constant.shape[-1] != channels):
            return Refusal("operand", f"{first.name} reads {name}, which is no constant of its channels")
        if constant.size > 1:
            widened[name] = np.pad(constant, (*((0, 0),) * (constant.ndim - 1), (0, more)))
        values.append(np.zeros(1, constant.dtype) if constant.size > 1 else constant.reshape(1))
    with np.errstate(all="ignore"):
        made = evaluate(first.op.epilogue, values)
    return widened if not np.asarray(made).astype(np.float64).any() else Refusal("epilogue", f"{first.name} makes {np.asarray(made).ravel()[0]} of zeros")


def _rewrite(graph: Graph, match: Match) -> Replacement | Refusal:
    first, layer = match.layers
    widened = _operands(graph, match)
    weights = graph.constant(first.inputs[1])
    if isinstance(widened, Refusal) or weights is None:
        return widened if isinstance(widened, Refusal) else Refusal("weights", f"the weights {first.inputs[1]} are not constant")
    more = int(layer.op.post[-1])
    constants = {first.inputs[1]: np.pad(weights, ((0, more), *((0, 0),) * (weights.ndim - 1))), **widened}
    names = {old: graph.fresh(f"{old}.wide") for old in constants}
    inputs = tuple(names.get(name, name) for name in first.inputs)
    changed = replace(first, inputs=inputs, outputs=layer.outputs, fusions=(*first.fusions, RULE.name))
    return Replacement((changed,), constants={names[old]: value for old, value in constants.items()})


RULE = Rule("channel-padding", __doc__.splitlines()[0], (Padding,), _match, _rewrite, _check)
