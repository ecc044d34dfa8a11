"""From argv to :class:`trtcli.config.Config`: trtexec's grammar, every complaint at once, old flags translated.

``--name=value`` or ``--name value``; the first ``=`` splits. A bare ``--name`` is a switch. Other words are files, for commands
that take them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from trtcli.config import Config, ProfileShapes, ReferencePair
from trtcli.legacy import DEPRECATED, REFUSED
from trtcli.options import BUILD, BY_NAME, CACHE, COMMANDS, MODEL, NEEDS_RUN, NO_RUN, SHAPES, Option


class UsageError(ValueError):
    """A command line that cannot be obeyed; ``complaints`` has one line for each thing wrong with it, ``command`` is the one that was meant."""

    def __init__(self, complaints: Iterable[str], command: str = "") -> None:
        self.complaints = tuple(complaints)
        self.command = command
        super().__init__("\n".join(self.complaints))


@dataclass(frozen=True)
class Parsed:
    """What a command line says.

    Attributes:
        config: the configuration.
        words: those that are no flags.
        extra: values of options that are not part of the configuration.
        warnings: about old flags, and flags without effect.
        command_line: all of it, for banners and records.
        given: the flags, by their names of today.
    """

    config: Config
    words: tuple[str, ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    command_line: str = ""
    given: tuple[str, ...] = ()

    def builds_in_vain(self, *obeyed: str) -> str:
        """The flags about a build, but those that are ``obeyed``, for a warning where nothing is built; empty when there are none."""
        idle = [name for name in self.given if name not in obeyed and name in BY_NAME and BY_NAME[name].group in (SHAPES, BUILD, CACHE)]
        return _flags(idle)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an option that is not part of the configuration (``json``)."""
        return dict(self.extra).get(name, default)


@dataclass(frozen=True)
class _Flag:
    name: str
    value: str | None


def parse(command: str, argv: Sequence[str]) -> Parsed:
    """The meaning of ``argv`` for ``command``.

    Raises:
        UsageError: with every complaint.
    """
    table = COMMANDS[command]
    options = {option.name: option for option in table.options}
    flags, words, complaints = _scan(argv, options, command)
    flags, profiles, wrong = _profiles(flags, options)
    flags, pairs, strange = _reference_pairs(flags, options)
    complaints += wrong + strange
    flags, warnings, more = _translate(flags, options)
    values, more_still = _read(flags, options)
    complaints += more + more_still
    config, extra = _place(values, options)
    config = _with_words(config, command, words)
    config = replace(
        config,
        build=replace(config.build, shapes=config.inference.shapes, profiles=profiles, batch_range=_batch_range(config)),
    )
    if pairs:
        inference = replace(config.inference, load_inputs=pairs[0].inputs, ref_outputs=pairs[0].outputs, more_references=pairs[1:])
        config = replace(config, inference=inference)
    values += [(name, None) for name, found in (("profile", profiles), ("refPair", pairs)) if found]  # for warnings about flags without effect
    given = [name for name, _ in values]
    if not complaints:
        complaints += _contradictions(command, config, given)
    if complaints:
        raise UsageError(complaints, "" if command == "trtexec" else command)
    warnings += _pointless(command, config, given, options)
    line = " ".join(["trtcli", *([] if command == "trtexec" else [command]), *argv])
    return Parsed(config, tuple(words), tuple(extra.items()), tuple(warnings), line, tuple(dict.fromkeys(given)))


# --- words to flags --------------------------------------------------------------------------------------------------


def _scan(
    argv: Sequence[str], options: dict[str, Option], command: str
) -> tuple[list[_Flag], list[str], list[str]]:
    flags: list[_Flag] = []
    words: list[str] = []
    complaints: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-") or token == "-":
            words.append(token)
            continue
        name, equals, value = token.lstrip("-").partition("=")
        if not token.startswith("--") or _takes_value(name, options) is None:
            complaints.append(_unknown(token, name, options))
            continue
        if equals:
            flags.append(_Flag(name, value))
        elif _takes_value(name, options) == "yes" and rest and not _looks_like_flag(rest[0]):
            flags.append(_Flag(name, rest.pop(0)))
        else:
            flags.append(_Flag(name, None))
    table = COMMANDS[command]
    least, most = table.words
    if len(words) < least:
        complaints.append(f"Too few arguments: trtcli {command} takes {table.usage}")
    complaints += [f"Unknown argument: {word}{' (flags start with --)' if most == 0 else ''}" for word in words[most:]]
    return flags, words[:most], complaints


def _takes_value(name: str, options: dict[str, Option]) -> str | None:
    """``yes``, ``no``, ``maybe``, or None for a flag that does not exist."""
    if name in options:
        return "no" if options[name].read is None else "yes"
    if name in DEPRECATED:
        return DEPRECATED[name].takes_value
    return REFUSED[name].takes_value if name in REFUSED else None


def _looks_like_flag(token: str) -> bool:
    return token.startswith("-") and not token[1:2].isdigit()


def _unknown(token: str, name: str, options: dict[str, Option]) -> str:
    if token.startswith("--") and name in BY_NAME:
        return f"Unknown option: {token} (it exists, but not for this command)"
    from difflib import get_close_matches

    lower = {known.lower(): known for known in (*DEPRECATED, *BY_NAME, *options)}
    near = get_close_matches(name.lower(), lower, 1, 0.6)
    return f"Unknown option: {token}" + (f" (did you mean --{lower[near[0]]}?)" if near else "")


# --- flags that belong to the one before them ------------------------------------------------------------------------

_BOUNDS = {"minShapes": "min_shapes", "optShapes": "opt_shapes", "maxShapes": "max_shapes"}
_STRAY = "Multiple --minShapes/--optShapes/--maxShapes without --profile are not allowed."
_PAIR = {"loadInputs": "inputs", "loadRefOutputs": "outputs"}

_Groups = dict[int, dict[str, Any]]  # per number its members' values, by field


def _grouped(
    flags: list[_Flag], head: str, members: Mapping[str, str], options: dict[str, Option], twice: str
) -> tuple[list[_Flag], _Groups, list[str]]:
    """The flags without the groups of ``--head=N`` and the members right behind it, each once; what the groups say, and complaints."""
    kept: list[_Flag] = []
    found: _Groups = {}
    complaints: list[str] = []
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if flag.name != head:
            kept.append(flag)
            continue
        group: dict[str, Any] = {}
        while rest and rest[0].name in members and members[rest[0].name] not in group:
            member = rest.pop(0)
            group[members[member.name]] = {}
            try:
                group[members[member.name]] = _value(options[member.name], member.value)
            except ValueError as error:
                complaints.append(f"--{member.name}={member.value or ''}: {error}")
        try:
            number = _value(options[head], flag.value)
        except ValueError as error:
            complaints.append(f"--{head}={flag.value or ''}: {error}")
            continue
        if number in found:
            complaints.append(f"--{head}={number}: given twice. {twice}")
        found[number] = group
    return kept, found, complaints


def _gaps(found: _Groups) -> list[int]:
    return sorted(set(range(max(found, default=-1))) - set(found))


def _profiles(
    flags: list[_Flag], options: dict[str, Option]
) -> tuple[list[_Flag], tuple[ProfileShapes, ...], list[str]]:
    """The flags without the groups of ``--profile=N``, and what the groups say."""
    bounds = [flag.name for flag in flags if flag.name in _BOUNDS]
    if "profile" not in options or not any(flag.name == "profile" for flag in flags):
        return flags, (), [_STRAY] if len(set(bounds)) < len(bounds) else []
    kept, found, complaints = _grouped(flags, "profile", _BOUNDS, options, "Optimization profile index cannot be the same.")
    if any(flag.name in _BOUNDS for flag in kept):
        complaints.append(_STRAY)
    missing = "Found invalid or missing shape spec at profile index"
    complaints += [f"{missing} {number}: --minShapes, --optShapes or --maxShapes must follow --profile directly" for number, group in found.items() if not group]
    complaints += [f"{missing} {gap}: profiles are numbered from 0" for gap in _gaps(found)]
    return kept, tuple(ProfileShapes(**found[number]) for number in sorted(found)), complaints


def _reference_pairs(
    flags: list[_Flag], options: dict[str, Option]
) -> tuple[list[_Flag], tuple[ReferencePair, ...], list[str]]:
    """The flags without the groups of ``--refPair=N``, and what the groups say."""
    if "refPair" not in options or not any(flag.name == "refPair" for flag in flags):
        return flags, (), []
    kept, found, complaints = _grouped(flags, "refPair", _PAIR, options, "Reference pair index cannot be the same.")
    if len(found) < 2 and not complaints:
        complaints.append("When using --refPair, you need at least two pairs of I/O.")
    for number, group in found.items():
        names = [name for name, field in _PAIR.items() if field not in group]
        complaints += [f"Missing --{name} for reference pair at index {number}: it must follow --refPair={number} directly" for name in names]
    complaints += [f"Missing --refPair={gap}: pairs are numbered from 0" for gap in _gaps(found)]
    complaints += [f"--{flag.name}: beside --refPair it belongs right behind one" for flag in kept if flag.name in _PAIR]
    if complaints:
        return kept, (), complaints
    return kept, tuple(ReferencePair(**found[number]) for number in sorted(found)), []


# --- old flags -------------------------------------------------------------------------------------------------------


def _translate(flags: list[_Flag], options: dict[str, Option]) -> tuple[list[_Flag], list[str], list[str]]:
    """Today's flags for those of old TensorRT versions, a warning for each, and complaints about refused ones."""
    kept: list[_Flag] = []
    added: list[_Flag] = []
    warnings: list[str] = []
    complaints: list[str] = []
    for flag in flags:
        if flag.name in options:
            kept.append(flag)
        elif flag.name in REFUSED:
            if flag.value is None or flag.value not in REFUSED[flag.name].neutral:
                complaints.append(f"--{flag.name}: {REFUSED[flag.name].reason}")
        else:
            old = DEPRECATED[flag.name]
            if old.takes_value == "yes" and not flag.value:
                complaints.append(f"--{flag.name}: needs a value")
                continue
            try:
                today = old.today(flag.value)
            except ValueError as error:
                complaints.append(f"--{flag.name}: {error}")
                continue
            added += [_Flag(*one) for one in today if one[0] in options]
            warnings.append(f"--{flag.name} {'does nothing' if old.idle else 'is deprecated'}: {old.advice}")
    # An old flag that says the same as a new one beside it adds nothing.
    names = {flag.name for flag in kept}
    for flag in added:
        if flag.name in ("memPoolSize",) or flag.name not in names:
            kept.append(flag)
            names.add(flag.name)
        elif flag not in kept:
            complaints.append(f"--{flag.name}: given twice, once by an old name ({flag.value})")
    return kept, warnings, complaints


# --- values ----------------------------------------------------------------------------------------------------------


def _read(flags: list[_Flag], options: dict[str, Option]) -> tuple[list[tuple[str, Any]], list[str]]:
    values: list[tuple[str, Any]] = []
    complaints: list[str] = []
    seen: set[str] = set()
    for flag in flags:
        option = options[flag.name]
        if flag.name in seen and not option.repeatable:
            complaints.append(f"--{flag.name}: given twice")
            continue
        seen.add(flag.name)
        try:
            values.append((flag.name, _value(option, flag.value)))
        except ValueError as error:
            shown = "" if flag.value is None else f"={flag.value}"
            complaints.append(f"--{flag.name}{shown}: {error}")
    return values, complaints


def _value(option: Option, text: str | None) -> Any:
    if option.read is None:
        if text not in (None, "1", "true"):
            raise ValueError("this flag takes no value; leave it out to turn it off")
        return option.sets
    if text is None:
        raise ValueError(f"needs a value: --{option.name}={option.metavar}")
    if text == "" and option.name != "percentile":
        raise ValueError(f"needs a value: --{option.name}={option.metavar}")
    return option.read(text)


def _place(values: list[tuple[str, Any]], options: dict[str, Option]) -> tuple[Config, dict[str, Any]]:
    """The configuration with every value in its field."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values:
        section, _, field = options[name].target.partition(".")
        known = sections.setdefault(section, {})
        known[field] = (*known[field], *value) if options[name].repeatable and field in known else value
    extra = sections.pop("extra", {})
    pools = sections.get("build", {}).pop("memory_pools", {})
    if pools:
        sections["build"]["workspace"] = pools.get("workspace")
        sections["build"]["tactic_shared_memory"] = pools.get("tacticSharedMem")
    config = Config()
    for section, changes in sections.items():
        config = replace(config, **{section: replace(getattr(config, section), **changes)})
    return _with_paths(config), extra


def _with_paths(config: Config) -> Config:
    """``~`` at the start of a file name is the home folder."""
    changed = {}
    for section in fields(config):
        values = getattr(config, section.name)
        homes = {
            item.name: os.path.expanduser(getattr(values, item.name))
            for item in fields(values)
            if isinstance(getattr(values, item.name), str) and getattr(values, item.name).startswith("~")
        }
        changed[section.name] = replace(values, **homes) if homes else values
    return replace(config, **changed)


def _with_words(config: Config, command: str, words: Sequence[str]) -> Config:
    """A file given without a flag is a model or an engine, by its name."""
    if not words or command not in ("build", "profile", "inspect", "check", "verify"):
        return config
    path = os.path.expanduser(words[0])
    field = "onnx" if command == "build" or path.lower().endswith(".onnx") else "load_engine"
    if getattr(config.model, field):
        raise UsageError([f"{path}: a model is given twice"])
    file: dict[str, Any] = {field: path}
    return replace(config, model=replace(config.model, **file))


def _batch_range(config: Config) -> tuple[int, int] | None:
    """The batches that the measurement wants, for a build that no shapes constrain."""
    inference = config.inference
    return inference.sweep_batch or ((1, inference.max_batch) if inference.request_rate and inference.max_batch else None)


# --- what does not go together ---------------------------------------------------------------------------------------


def _contradictions(command: str, config: Config, given: list[str]) -> list[str]:
    """Complaints about combinations."""
    model, build = config.model, config.build
    found = []
    if MODEL in COMMANDS[command].groups:
        if not model.onnx and not model.load_engine:
            found.append("Model missing: give --onnx=FILE to build an engine, or --loadEngine=FILE to run one")
        if model.load_engine and build.save_engine:
            found.append("Incompatible load and save engine options selected: --loadEngine with --saveEngine")
        elif model.onnx and model.load_engine and command != "verify":
            found.append("--onnx and --loadEngine: give one of them")
        if command == "build" and model.load_engine:
            found.append("--loadEngine: there is nothing to build; use trtcli profile or trtcli inspect")
    if build.error_on_timing_cache_miss and not (build.timing_cache_file and build.builder_cache):
        found.append("--errorOnTimingCacheMiss: needs a cache, --timingCacheFile=FILE without --noBuilderCache")
    inference = config.inference
    found += [f"--{name}: goes with --loadEngine=FILE only" for name in ("getPlanVersionOnly", "timeDeserialize") if name in given and not model.load_engine]
    if command == "inspect":
        found += [f"--{name}: goes with trtcli build, profile, or no command" for name in ("dumpRefit", "timeRefit", "monitorMemory") if name in given]
    if build.time_refit and not (model.onnx or model.refit_onnx):
        found.append("--timeRefit: needs a model to take weights from, --refitFromOnnx=FILE")
    if command in ("trtexec", "profile"):
        found += _accuracy_complaints(config, given)
    if not inference.request_rate:
        advice = {"maxBatch": "; for the batch of the model's shapes use --maxShapes", "maxQueueDelay": ""}
        found += [f"--{name}: goes with --requestRate only{more}" for name, more in advice.items() if name in given]
    elif inference.sweep_batch:
        found.append("--requestRate and --sweepBatch: give one of them")
    if inference.duration == -1 and (inference.request_rate or inference.sweep_batch):
        found.append("--duration=-1: --requestRate and --sweepBatch need an end")
    return found


def _accuracy_complaints(config: Config, given: list[str]) -> list[str]:
    inference = config.inference
    if not inference.ref_outputs:
        named = [name for name in ("accuracyAlgorithm", "accuracyThreshold", "atol", "rtol") if name in given]
        return [f"--{name}: goes with --loadRefOutputs only" for name in named]
    found = []
    if not inference.load_inputs:
        found.append("--loadRefOutputs requires --loadInputs to be specified.")
    if not inference.accuracy_threshold:
        found.append("--loadRefOutputs: needs --accuracyThreshold above 0, the loss from which on the run fails")
    if inference.skip_inference or inference.request_rate or inference.sweep_batch or inference.duration == -1:
        found.append("--loadRefOutputs: compares the outputs of a plain run; leave out --skipInference, --requestRate, --sweepBatch and --duration=-1")
    if inference.accuracy_algorithm != "l0":
        found += [f"--{name} is only valid for L0 accuracy algorithm." for name in ("atol", "rtol") if name in given]
    return found


_ONE_BY_ONE = ("exposeDMA", "sleepTime", "idleTime", "threads")  # of queries that follow each other at once


def _pointless(command: str, config: Config, given: list[str], options: dict[str, Option]) -> list[str]:
    """Warnings about flags that have no effect beside others."""
    found = []
    if config.model.load_engine:
        building = [name for name in given if options[name].target.startswith("build.") and name != "timeRefit"]
        if building:
            found.append(f"An engine is loaded, not built: no effect of {_flags(building)}")
    if config.build.precision_constraints == "none":
        named = [name for name in ("layerPrecisions", "layerOutputTypes") if name in given]
        found += [f"--{name} has no effect without --precisionConstraints=prefer or obey" for name in named]
    if config.build.fp16 and config.build.bf16:
        found.append("--bf16 has no effect beside --fp16: an engine has one narrow type")
    if config.build.timing_cache_file and not config.build.builder_cache:
        found.append("--noBuilderCache is given: --timingCacheFile is neither read nor written")
    if config.inference.skip_inference or command in NO_RUN:
        idle = [name for name in given if name in NEEDS_RUN]
        if idle:
            found.append(f"Inference is skipped: no effect of {_flags(idle)}")
    if config.inference.request_rate or config.inference.sweep_batch:
        unused = (*NEEDS_RUN, "avgRuns", *(_ONE_BY_ONE if config.inference.request_rate else ()))
        idle = [name for name in given if name in unused and name not in ("exportTimes", "exportReport")]
        if idle:
            found.append(f"--requestRate and --sweepBatch report their own figures: no effect of {_flags(idle)}")
    if config.inference.duration == -1:
        found.append("--duration=-1: runs until it is interrupted (Ctrl-C), then reports nothing")
    return found


def _flags(names: Sequence[str]) -> str:
    return ", ".join(f"--{name}" for name in dict.fromkeys(names))
