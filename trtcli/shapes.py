"""From the shapes that were typed to a complete optimization profile: a range of shapes for every input of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from fusion.dims import Shape
from fusion.network import Network
from runtime.engine import InputRange, fixed_sizes, sizes_of
from trtcli.config import BuildConfig, Shapes

Extents = tuple[int, ...]


class _Log(Protocol):
    def warning(self, text: str) -> None: ...


def optimization_profiles(network: Network, config: BuildConfig, log: _Log) -> tuple[dict[str, InputRange], ...]:
    """Every profile that was asked for, completed (see :func:`optimization_profile`); at least one.

    Raises:
        ValueError: as :func:`optimization_profile`, with the profile's number.
    """
    if not config.profiles:
        return (optimization_profile(network, config, log),)
    if config.min_shapes or config.opt_shapes or config.max_shapes:
        raise ValueError("min_shapes, opt_shapes and max_shapes are one profile: give them or profiles, not both")
    found = []
    for number, given in enumerate(config.profiles):
        one = BuildConfig(min_shapes=given.min_shapes, opt_shapes=given.opt_shapes, max_shapes=given.max_shapes)
        try:
            found.append(optimization_profile(network, one, log))
        except ValueError as error:
            raise ValueError(f"profile {number}: {error}") from None
    return tuple(found)


def shared_sizes(network: Network, profiles: Sequence[Mapping[str, InputRange]]) -> dict[str, int]:
    """The named sizes that have one and the same value in all profiles: no dynamic dimensions, in fact."""
    first, *others = (fixed_sizes(network, profile) for profile in profiles)
    return {name: size for name, size in first.items() if all(other.get(name) == size for other in others)}


def optimization_profile(network: Network, config: BuildConfig, log: _Log) -> dict[str, InputRange]:
    """The range of every input, completed from what was given.

    A missing bound is taken from another one (min from opt, else max; opt from max, else min; max from opt, else min) with a
    warning; without any, ``--shapes`` is all three; without that, dynamic dimensions become 1, with a warning. Where none of the three is
    given, ``config.batch_range`` is the range of a dynamic first dimension.

    Raises:
        ValueError: a name is no input, a shape does not fit its input, min <= opt <= max does not hold, or two inputs
            disagree on a size that they share.
    """
    inputs = {name: network.tensors[name].shape for name in network.inputs}
    given = {
        flag: match_names(shapes, inputs, flag)
        for flag, shapes in (
            ("--minShapes", config.min_shapes), ("--optShapes", config.opt_shapes),
            ("--maxShapes", config.max_shapes), ("--shapes", config.shapes),
        )
    }  # fmt: skip
    profile = {name: _range(name, declared, given, log.warning, config.batch_range) for name, declared in inputs.items()}
    for flag, field in (("--minShapes", "min"), ("--optShapes", "opt"), ("--maxShapes", "max")):
        try:
            sizes_of(network, {name: getattr(extents, field) for name, extents in profile.items()})
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
    return profile


def inference_shapes(network: Network, profile: Mapping[str, InputRange], shapes: Shapes) -> dict[str, Extents]:
    """The shapes to run at: those of ``--shapes``, else the optimal ones.

    Raises:
        ValueError: a name is no input, or a shape is outside of the engine's profile.
    """
    inputs = {name: network.io_shape(name) for name in network.inputs}
    wanted = match_names(shapes, inputs, "--shapes")
    for name, extents in wanted.items():
        bounds = profile[name]
        inside = len(extents) == len(bounds.min) and all(
            low <= value <= high for low, value, high in zip(bounds.min, extents, bounds.max, strict=True)
        )
        if not inside:
            raise ValueError(
                f"--shapes: input {name!r} {text(extents)} is outside of what the engine was built for "
                f"({text(bounds.min)} to {text(bounds.max)}); build again with --minShapes and --maxShapes that hold it"
            )
    chosen = {name: wanted.get(name, profile[name].opt) for name in network.inputs}
    try:
        sizes_of(network, chosen)
    except ValueError as error:
        raise ValueError(f"--shapes: {error}") from None
    return chosen


def match_names(given: Shapes, inputs: Mapping[str, object], flag: str) -> dict[str, Extents]:
    """``given`` by real input names; a name with ``*`` stands for all inputs that match it, an exact name wins over it.

    Raises:
        ValueError: a name matches no input.
    """
    found: dict[str, Extents] = {}
    for exact in (False, True):
        for name, extents in given.items():
            if (name in inputs) is not exact:
                continue
            pattern = name.replace("[", "[[]").replace("?", "[?]")  # only * is special
            names = [name] if exact else [one for one in inputs if "*" in name and fnmatchcase(one, pattern)]
            if not names:
                raise ValueError(f"{flag}: the model has no input {name!r}; it has {', '.join(inputs) or 'none'}")
            found.update(dict.fromkeys(names, extents))
    return found


_SOURCES = {  # where a bound comes from that is not given
    "minShapes": ("optShapes", "maxShapes"),
    "optShapes": ("maxShapes", "minShapes"),
    "maxShapes": ("optShapes", "minShapes"),
}


def _range(
    name: str,
    declared: Shape,
    given: Mapping[str, Mapping[str, Extents]],
    warn: Callable[[str], None],
    batches: tuple[int, int] | None,
) -> InputRange:
    if all(isinstance(dim, int) for dim in declared):
        return _fixed(name, tuple(int(dim) for dim in declared), {flag: of[name] for flag, of in given.items() if name in of})  # type: ignore[arg-type]
    bounds = {flag: given[f"--{flag}"][name] for flag in _SOURCES if name in given[f"--{flag}"]}
    if bounds:
        return _bounded(name, declared, bounds, warn)
    return _at(name, declared, given["--shapes"].get(name), warn, batches)


def _fixed(name: str, fixed: Extents, given: Mapping[str, Extents]) -> InputRange:
    for flag, extents in given.items():
        if extents != fixed:
            raise ValueError(
                f"{flag}: input {name!r} is fixed at {text(fixed)} by the model, not {text(extents)}; "
                "leave it out, or export the model with dynamic dimensions"
            )
    return InputRange(fixed, fixed, fixed)


def _at(name: str, declared: Shape, given: Extents | None, warn: Callable[[str], None], batches: tuple[int, int] | None) -> InputRange:
    """One shape (``--shapes``, else 1 for what is dynamic), for all ``batches``."""
    ranged = batches if declared and not isinstance(declared[0], int) else None
    only = tuple(dim if isinstance(dim, int) else 1 for dim in declared) if given is None else given
    if given is None and (ranged is None or any(not isinstance(dim, int) for dim in declared[1:])):
        warn(f"Dynamic dimensions required for input: {name}, but no shapes were provided. Automatically overriding shape to: {text(only)}")
    _check(name, "--shapes", declared, only)
    if ranged is None:
        return InputRange(only, only, only)
    low, high = ((size, *only[1:]) for size in ranged)
    return InputRange(low, high, high)


def _bounded(name: str, declared: Shape, bounds: Mapping[str, Extents], warn: Callable[[str], None]) -> InputRange:
    for flag, extents in bounds.items():
        _check(name, f"--{flag}", declared, extents)
    full = []
    for flag, others in _SOURCES.items():
        source = next(one for one in (flag, *others) if one in bounds)
        if source != flag:
            warn(f"{source} is being broadcasted to {flag} for tensor {name}")
        full.append(bounds[source])
    for axis, (low, best, high) in enumerate(zip(*full, strict=True)):
        if not low <= best <= high:
            raise ValueError(
                f"input {name!r}, dimension {axis}: min {low}, opt {best}, max {high}, but "
                "--minShapes <= --optShapes <= --maxShapes must hold"
            )
    return InputRange(*full)


def _check(name: str, flag: str, declared: Shape, extents: Extents) -> None:
    if len(extents) != len(declared):
        raise ValueError(
            f"{flag}: input {name!r} is {text(declared)} in the model, {text(extents)} has {len(extents)} dimensions"
        )
    for axis, (dim, value) in enumerate(zip(declared, extents, strict=True)):
        if value < 0:
            raise ValueError(f"{flag}: input {name!r}: dimension {axis} is {value}; give each a size of 0 or more")
        if isinstance(dim, int) and dim != value:
            raise ValueError(
                f"{flag}: input {name!r} is {text(declared)} in the model, dimension {axis} cannot be {value}"
            )


def text(shape: Shape | Extents) -> str:
    """``1x3x224x224``, or ``scalar``."""
    return "x".join(map(str, shape)) or "scalar"
