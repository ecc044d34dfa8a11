"""``--inputIOFormats`` and ``--outputIOFormats``: which input or output has which data type and layout, chosen where several are allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fusion.bind import bind_type
from fusion.dtypes import DataType
from fusion.io_formats import IOType, with_io_types
from fusion.network import Network
from fusion.ops import Padding, Reformat, Shuffle, Slice
from runtime.views import view_pieces
from tactics.tactic import tensor_bytes
from trtcli.builder.setting import Log
from trtcli.builder.workloads import Profile, named_sizes
from trtcli.config import BuildConfig
from trtcli.shapes import text
from trtcli.values import IO_TYPES, io_format


def with_io_formats(
    imported: Network, profiles: Sequence[Profile], config: BuildConfig, fused: Callable[[Network], Network], log: Log
) -> tuple[Network, BuildConfig]:
    """``imported`` with inputs and outputs as ``config`` asks for, and ``config`` with one layout each. Where several are allowed it is the one with which
    the ``fused`` network moves the fewest bytes to change layouts, the first of equals.

    Raises:
        ValueError: as :func:`allowed_types`, and where a tensor cannot have what was asked for.
    """
    if not config.input_io_formats and not config.output_io_formats:
        return imported, config
    allowed = allowed_types(imported, config)
    chosen = {name: types[0] for name, types in allowed.items()}
    for name, types in allowed.items():
        if len(types) > 1:
            costs = [_moved_bytes(fused(with_io_types(imported, {**chosen, name: one})), profiles[0]) for one in types]
            chosen[name] = types[costs.index(min(costs))]
    network = with_io_types(imported, chosen)
    for name in dict.fromkeys((*imported.inputs, *imported.outputs)):
        if chosen[name] != IOType():
            log.info(_line(network, name))
    inputs, outputs = (tuple(_text(chosen[name]) for name in names) for names in (imported.inputs, imported.outputs))
    return network, replace(config, input_io_formats=inputs, output_io_formats=outputs)


def allowed_types(network: Network, config: BuildConfig) -> dict[str, tuple[IOType, ...]]:
    """What each input and output may be, the first choice first; of several layouts those that the tensor can have.

    Raises:
        ValueError: another number of formats than of tensors, an unknown type or layout, or none that the tensor can have.
    """
    found: dict[str, tuple[IOType, ...]] = {name: (IOType(),) for name in (*network.inputs, *network.outputs)}
    for flag, names, given in (
        ("--inputIOFormats", network.inputs, config.input_io_formats), ("--outputIOFormats", network.outputs, config.output_io_formats),
    ):  # fmt: skip
        if given and len(given) not in (1, len(names)):
            raise ValueError(f"{flag} names {len(given)} formats: give {len(names)}, for {', '.join(names)}, or one for all")
        for name, one in zip(names, given if len(given) == len(names) else given * len(names), strict=False):
            try:
                dtype, layouts = io_format(one)
            except ValueError as error:
                raise ValueError(f"{flag}: {error}") from None
            found[name] = _possible(network, name, [IOType(DataType(IO_TYPES[dtype]) if dtype else None, layout) for layout in layouts])
    return found


def _possible(network: Network, name: str, types: Sequence[IOType]) -> tuple[IOType, ...]:
    """Those of ``types`` that ``name`` can have.

    Raises:
        ValueError: there is none; why not the first.
    """
    found: list[IOType] = []
    refusals: list[ValueError] = []
    for one in types:
        try:
            with_io_types(network, {name: one})
            found.append(one)
        except ValueError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return tuple(found)


def chosen_types(network: Network, config: BuildConfig) -> dict[str, IOType]:
    """What each input and output was chosen to be: the first of what is allowed."""
    return {name: types[0] for name, types in allowed_types(network, config).items()}


def _moved_bytes(network: Network, profile: Profile) -> int:
    """Bytes that layers read and write to move elements, at the optimal shapes."""
    sizes, total = named_sizes(network, profile, "opt", {}), 0
    for layer in network.layers:
        types = [network.tensors[name] for name in layer.inputs]
        pieces = view_pieces(layer.op, types, network.tensors[layer.outputs[0]]) if layer.outputs else None
        if isinstance(layer.op, Shuffle | Reformat | Slice | Padding) and (pieces is None or any(piece.columns for piece in pieces)):
            total += sum(tensor_bytes(bind_type(network.tensors[name], sizes)) for name in (*layer.inputs, *layer.outputs))
    return total


def _line(network: Network, name: str) -> str:
    kind, layout = network.tensors[name], network.formats.get(name)
    what = f"{'Input' if name in network.inputs else 'Output'} {name}: {kind.dtype.label} {text(network.io_shape(name))}"
    return what if layout is None else f"{what}, {layout}: {text(kind.shape)} in memory"


def _text(one: IOType) -> str:
    names = {dtype: name for name, dtype in IO_TYPES.items()}
    return one.layout if one.dtype is None else f"{names[one.dtype.value]}:{one.layout}"
