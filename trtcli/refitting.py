"""New weights for an engine, without timing anything: the model is imported and fused again, and its constants are packed as the engine's
tactics want them. Packing is a pure function of the constants (``Tactic.prepare``), so this works wherever fusion gives the same network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fusion.bind import fix_sizes
from fusion.importer import import_onnx
from fusion.network import ControlFlow, Network
from fusion.passes import FusionOptions, with_optional
from runtime.engine import Engine, LayerPlan
from runtime.resolution import outline
from runtime.views import VIEW
from tactics.select import Decision
from trtcli.builder import VIEW_DECISION, BuildError, Log, fuse, layer_plans, marked_tensors, workloads_at
from trtcli.config import BuildConfig
from trtcli.shapes import shared_sizes


def stripped(engine: Engine) -> Engine:
    """``engine`` without weights, to be saved; :func:`refit` gives it some."""
    return replace(engine, weights={}, record={**engine.record, "stripped": True})


def refit(engine: Engine, model: Path | bytes, log: Log) -> Engine:
    """``engine`` with the weights of ``model``, which must be the model that it was built from but for its weights.

    Raises:
        fusion.importer.ModelError: the model cannot be read.
        BuildError: the model is another network, or the engine holds networks in layers.
    """
    if any(isinstance(layer.op, ControlFlow) for layer in engine.network.layers):
        raise BuildError("an engine with branches or loops cannot be refitted; build it again")
    config = _config(engine)
    network = _network(engine, model, config, log)
    _check_same(engine.network, network)
    weights: dict[str, np.ndarray] = {}
    names: dict[tuple[Any, ...], tuple[str, ...]] = {}
    plans = []
    for number, profile in enumerate(engine.profiles):
        old, pitches = engine.decisions(number), outline(engine, number).pitches
        workloads = workloads_at(network, profile, "opt", config, {}, pitches)
        new = layer_plans(network, workloads, [_decision(plan) for plan in old], config, engine.device, weights, names, {})
        plans.append(tuple(replace(a, packed=b.packed) for a, b in zip(old, new, strict=True)))
    weights.update({name: network.constants[name] for name in network.outputs if name in network.constants})
    data = model.read_bytes() if isinstance(model, Path) else model
    record = {key: value for key, value in engine.record.items() if key != "stripped"}
    record |= {"model": str(model) if isinstance(model, Path) else network.name, "modelSha256": hashlib.sha256(data).hexdigest()}
    more = tuple(plans[1:]) if engine.more_layers else ()
    return replace(engine, layers=plans[0], more_layers=more, weights=weights, record=record)


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
    except ValueError as error:
        raise BuildError(f"the model does not fit the engine: {error}") from error
    marked = marked_tensors(imported, config, log)
    fused = fuse(replace(imported, outputs=(*imported.outputs, *marked)), config, engine.device.kind, log)
    fused = replace(fused, network=replace(fused.network, outputs=imported.outputs))
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
        if a.op != b.op:
            raise BuildError(
                f"the model does not fit the engine: layer {a.name!r} has other attributes, or other single numbers (these are part of the "
                "kernel, not weights); build it again"
            )
        for name in (*a.inputs, *a.outputs):
            if built.tensors[name] != found.tensors[name]:
                raise BuildError(
                    f"the model does not fit the engine: tensor {name!r} is {found.tensors[name]}, the engine has {built.tensors[name]}"
                )


def _decision(plan: LayerPlan) -> Decision:
    return VIEW_DECISION if plan.tactic == VIEW else Decision(plan.tactic, plan.config, plan.seconds, (), plan.cached, {})
