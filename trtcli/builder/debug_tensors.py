"""Which tensors an engine can show while it runs: ``--markDebug`` and ``--markUnfusedTensorsAsDebugTensors``."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.network import Network
from runtime.segments import parts_of
from trtcli.builder.setting import Log
from trtcli.config import BuildConfig


def marked_tensors(imported: Network, config: BuildConfig, log: Log) -> tuple[str, ...]:
    """The tensors of ``--markDebug``, which no fusion may remove; names that no layer computes are warned about. Those inside of branches and
    loops are not among them: see :func:`debug_tensors`."""
    computed = {name for layer in imported.layers for name in layer.outputs}
    if unknown := [name for name in config.mark_debug if name not in computed | _inside(imported)]:
        log.warning(f"--markDebug: no layer of the model computes {', '.join(unknown)}; ignored")
    return tuple(name for name in dict.fromkeys(config.mark_debug) if name in computed and name not in imported.outputs)


def _inside(network: Network) -> set[str]:
    """What the layers inside of branches and loops compute."""
    return {name for part, _ in parts_of(network)[1:] for layer in part.layers for name in layer.outputs}


def debug_tensors(imported: Network, network: Network, marked: Sequence[str], config: BuildConfig, log: Log) -> list[str]:
    """The engine's debug tensors: ``marked`` ones, those of ``--markDebug`` inside of branches and loops that fusion has left, and where
    that is asked for all others of the model that are left."""
    asked = [name for name in dict.fromkeys(config.mark_debug) if name in _inside(imported)]
    left = _inside(network)
    if gone := [name for name in asked if name not in left]:
        log.warning(f"--markDebug: {', '.join(gone)}: fusion took it away inside of a branch or loop, where marks do not hold; --disableFusion does")
    found = [*marked, *(name for name in asked if name in left)]
    if config.mark_unfused_debug:
        known = {name for part, _ in parts_of(imported) for layer in part.layers for name in layer.outputs} - {*network.outputs, *found}
        found += [name for part, _ in parts_of(network) for layer in part.layers for name in layer.outputs if name in known]
    return found
