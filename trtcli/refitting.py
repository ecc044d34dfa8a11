"""New weights for an engine, without timing anything: the model is imported and fused again, and its constants are packed as the engine's
tactics want them. Packing is a pure function of the constants (``Tactic.prepare``), so this works wherever fusion gives the same network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusion.bind import fix_sizes
from fusion.importer import import_onnx
from fusion.io_formats import with_io_types
from fusion.network import ControlFlow, Network, Op
from fusion.padded_channels import pad_channels
from fusion.passes import FusionOptions, with_optional
from runtime.columns import copy_parts
from runtime.engine import Engine, LayerPlan
from runtime.resolution import outline
from tactics.select import Decision
from trtcli.builder import BuildError, Log
from trtcli.builder.assemble import layer_plans
from trtcli.builder.bodies import size_ranges
from trtcli.builder.debug_tensors import marked_tensors
from trtcli.builder.fuse import fuse
from trtcli.builder.io_formats import chosen_types
from trtcli.builder.workloads import Outer, workloads_at
from trtcli.config import BuildConfig
from trtcli.shapes import shared_sizes


def save_engine(engine: Engine, config: BuildConfig) -> int:
    """Write ``engine`` where ``config`` says, without weights where it says so; the file's bytes.

    Raises:
        OSError: it cannot be written.
    """
    return (stripped(engine) if config.strip_weights else engine).save(config.save_engine)


def stripped(engine: Engine) -> Engine:
    """``engine`` without weights, to be saved; :func:`refit` gives it some."""
    bare = _with_bodies(engine, lambda number, bodies: tuple(map(stripped, bodies)))
    return replace(bare, weights={}, record={**engine.record, "stripped": True})


def refit(engine: Engine, model: Path | bytes, log: Log) -> Engine:
    """``engine`` with the weights of ``model``, which must be the model that it was built from but for its weights.

    Raises:
        fusion.importer.ModelError: the model cannot be read.
        BuildError: the model is another network.
    """
    config = _config(engine)
    network = _network(engine, model, config, log)
    _check_same(engine.network, network)
    data = model.read_bytes() if isinstance(model, Path) else model
    found = _refitted(engine, network, config, {})
    source = {"model": str(model) if isinstance(model, Path) else network.name, "modelSha256": hashlib.sha256(data).hexdigest()}
    return replace(found, record={**found.record, **source})


def _refitted(engine: Engine, network: Network, config: BuildConfig, outer: Outer) -> Engine:
    """``engine`` with the constants of ``network``; ``outer`` are the sizes around a body."""
    weights: dict[str, np.ndarray] = {}
    names: dict[tuple[Any, ...], tuple[str, ...]] = {}
    plans = []
    for number, profile in enumerate(engine.profiles):
        old, pitches = engine.decisions(number), outline(engine, number).pitches
        workloads = workloads_at(network, profile, "opt", config, outer, pitches)
        new = layer_plans(network, workloads, [_decision(plan) for plan in old], config, engine.device, weights, names, {})
        plans.append(tuple(replace(a, packed=b.packed) for a, b in zip(old, new, strict=True)))
    weights.update({name: network.constants[name] for name in network.outputs if name in network.constants})
    around = size_ranges(network, engine.profiles, outer)

    def bodies(number: int, old: Sequence[Engine]) -> tuple[Engine, ...]:
        op = network.layers[number].op
        assert isinstance(op, ControlFlow)
        return tuple(_refitted(body, inner, config, around) for body, inner in zip(old, op.bodies, strict=True))

    record = {key: value for key, value in engine.record.items() if key != "stripped"}
    more = tuple(plans[1:]) if engine.more_layers else ()
    return _with_bodies(replace(engine, layers=plans[0], more_layers=more, weights=weights, record=record), bodies)


def _with_bodies(engine: Engine, change: Callable[[int, tuple[Engine, ...]], tuple[Engine, ...]]) -> Engine:
    """``engine`` with other bodies in its control-flow layers: a function of the layer's number and its bodies."""
    changed = {number: change(number, plan.bodies) for number, plan in enumerate(engine.layers) if plan.bodies}
    first, *more = (
        tuple(replace(plan, bodies=changed[number]) if plan.bodies else plan for number, plan in enumerate(plans))
        for plans in (engine.layers, *engine.more_layers)
    )
    return replace(engine, layers=first, more_layers=tuple(more))


def _config(engine: Engine) -> BuildConfig:
    """What of the build's options decides about the network."""
    given = engine.record.get("options", {})
    options: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    return BuildConfig(
        fp16=bool(options.get("fp16")),
        bf16=bool(options.get("bf16")),
        tf32=engine.tf32,
        disable_fusion=tuple((str(rule), str(layer)) for rule, layer in options.get("disable_fusion", ())),
        layer_precisions=tuple((str(layer), str(dtype)) for layer, dtype in options.get("layer_precisions", ())),
        layer_output_types=tuple((str(layer), str(dtype)) for layer, dtype in options.get("layer_output_types", ())),
        precision_constraints=str(options.get("precision_constraints", "none")),
        mark_debug=tuple(map(str, options.get("mark_debug", ()))),
        input_io_formats=tuple(map(str, options.get("input_io_formats", ()))),
        output_io_formats=tuple(map(str, options.get("output_io_formats", ()))),
        profiling_verbosity="none",
    )


def _network(engine: Engine, model: Path | bytes, config: BuildConfig, log: Log) -> Network:
    imported = import_onnx(model)
    if (imported.inputs, imported.outputs) != (engine.network.inputs, engine.network.outputs):
        raise BuildError(
            f"the model does not fit the engine: it has inputs {', '.join(imported.inputs)} and outputs {', '.join(imported.outputs)}, "
            f"the engine {', '.join(engine.network.inputs)} and {', '.join(engine.network.outputs)}"
        )
    try:
        imported = fix_sizes(imported, shared_sizes(imported, engine.profiles))
        imported = with_io_types(imported, chosen_types(imported, config))
    except ValueError as error:
        raise BuildError(f"the model does not fit the engine: {error}") from error
    marked = marked_tensors(imported, config, log)
    layouts = engine.record.get("layouts")
    last = layouts.get("channelsLast") if isinstance(layouts, Mapping) else None
    channels_last = None if last is None else tuple(map(str, last))
    fused = fuse(replace(imported, outputs=(*imported.outputs, *marked)), config, engine.device.kind, log, channels_last)
    parts: Any = engine.record.get("copiedParts", ())
    fused = replace(fused, network=copy_parts(replace(fused.network, outputs=imported.outputs), [(str(name), int(number)) for name, number in parts]))
    padding = engine.record.get("paddedChannels")
    if isinstance(padding, Mapping) and padding.get("wanted"):
        fused = replace(fused, network=pad_channels(fused.network, tuple(map(str, padding["wanted"]))).network)
    optional = engine.record.get("optionalFusions")
    if isinstance(optional, Mapping):  # those that a measurement decided for
        enabled, disabled = (tuple(map(str, optional.get(key, ()))) for key in ("enabled", "disabled"))
        fused = with_optional(fused, FusionOptions(disabled=disabled, enabled=enabled, device=engine.device.kind))
    return fused.network


def _check_same(built: Network, found: Network) -> None:
    if len(built.layers) != len(found.layers):
        raise BuildError(f"the model does not fit the engine: it fuses to {len(found.layers)} layers, the engine has {len(built.layers)}")
    for a, b in zip(built.layers, found.layers, strict=True):
        if (a.name, a.inputs, a.outputs) != (b.name, b.inputs, b.outputs) or type(a.op) is not type(b.op):
            raise BuildError(f"the model does not fit the engine: where that has layer {a.name!r}, it has {b.name!r}")
        if not _same_op(a.op, b.op):
            raise BuildError(
                f"the model does not fit the engine: layer {a.name!r} has other attributes, or other single numbers (these are part of the "
                "kernel, not weights); build it again"
            )
        for name in (*a.inputs, *a.outputs):
            if built.tensors[name] != found.tensors[name]:
                raise BuildError(
                    f"the model does not fit the engine: tensor {name!r} is {found.tensors[name]}, the engine has {built.tensors[name]}"
                )


def _same_op(a: Op, b: Op) -> bool:
    """Whether two operations of one class are the same; bodies of control flow are compared like networks.

    Raises:
        BuildError: bodies differ.
    """
    if not isinstance(a, ControlFlow):
        return a == b
    assert isinstance(b, ControlFlow) and is_dataclass(a)
    for built, found in zip(a.bodies, b.bodies, strict=True):
        _check_same(built, found)
    attributes = [item.name for item in fields(a) if not isinstance(getattr(a, item.name), Network)]
    return all(getattr(a, name) == getattr(b, name) for name in attributes)


def _decision(plan: LayerPlan) -> Decision:
    return Decision(plan.tactic, plan.config, plan.seconds, (), plan.cached, {})
