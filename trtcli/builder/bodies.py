"""Branches and loops: the networks inside of a layer become engines of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

from fusion.dims import bind, symbols
from fusion.network import ControlFlow, Network, size_makers
from runtime.engine import Engine, InputRange
from trtcli.builder.assemble import assemble
from trtcli.builder.choose import choose
from trtcli.builder.setting import Setting
from trtcli.builder.streams import with_streams
from trtcli.builder.workloads import Outer, Profile, named_sizes


def bodies_of(network: Network, profiles: Sequence[Profile], setting: Setting, outer: Outer = MappingProxyType({})) -> dict[str, tuple[Engine, ...]]:
    """Per control-flow layer, an engine for each network in it, with tactics chosen as for any other: at the optimal shapes of the first
    profile, legal over the range of all."""
    around = size_ranges(network, profiles, outer)

    def engine_of(body: Network) -> Engine:
        ranges = {name: _body_range(body, name, around) for name in body.inputs}
        choices = choose(body, (ranges,), setting, around)
        plain = assemble(body, choices, (ranges,), setting, bodies_of(body, (ranges,), setting, around))
        engine, streams = with_streams(plain, choices, setting, around)
        return replace(engine, record={"streams": streams})

    return {layer.name: tuple(map(engine_of, layer.op.bodies)) for layer in network.layers if isinstance(layer.op, ControlFlow)}


def size_ranges(network: Network, profiles: Sequence[Profile], outer: Outer) -> dict[str, dict[str, int]]:
    """The least, usual and greatest value of every named size over all profiles; sizes of which nothing is known get a range, too."""
    found = {which: [named_sizes(network, profile, which, outer) for profile in profiles] for which in ("min", "opt", "max")}
    least = {name: min(sizes[name] for sizes in found["min"]) for name in found["min"][0]}
    most = {name: max(sizes[name] for sizes in found["max"]) for name in found["max"][0]}
    for name in size_makers(network):
        if least[name] == most[name]:
            least[name], most[name] = min(1, least[name]), max(8, 2 * most[name])
    return {"min": least, "opt": found["opt"][0], "max": most}


def _body_range(body: Network, name: str, around: Outer) -> InputRange:
    """The range of a body's input; sizes that only the body's iterations tell are guessed."""

    def shape(which: str, guess: int) -> tuple[int, ...]:
        dims = body.tensors[name].shape
        return tuple(bind(dim, around[which]) if symbols(dim) <= around[which].keys() else guess for dim in dims)

    return InputRange(shape("min", 1), shape("opt", 4), shape("max", 8))
