"""What an engine's record says of channels that are padded in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.engine import Engine


@dataclass(frozen=True)
class Padding:
    """Per tensor that is held with more channels than the model gives it, both counts; and the tensors where that was measured and was no faster."""

    channels: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    slower: frozenset[str] = frozenset()


NOT_PADDED = Padding()


def padding_of(engine: Engine) -> Padding:
    """What the build of ``engine`` decided, of the tensors that it has (a later fusion may have taken one away)."""
    record = engine.record.get("paddedChannels")
    if not isinstance(record, Mapping):
        return NOT_PADDED
    known = engine.network.tensors
    channels = {str(name): (int(real), int(held)) for name, (real, held) in record.get("channels", {}).items() if name in known}
    return Padding(channels, frozenset(map(str, record.get("slower", ()))))


def padding_lines(engine: Engine) -> list[str]:
    """What padding channels gained, in a line; nothing where none are padded."""
    channels, record = padding_of(engine).channels, engine.record.get("paddedChannels")
    if not channels or not isinstance(record, Mapping):
        return []
    before, after = record.get("beforeMs"), record.get("afterMs")
    gain = f"; the layers around them take {after * 1e3:.1f} us, {before * 1e3:.1f} us without" if before is not None and after is not None else ""
    count = len(channels)
    return [f"     {count} tensor{'s are' if count > 1 else ' is'} held with padded channels{gain}"]
