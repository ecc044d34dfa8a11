"""Layer information: what an engine consists of, as text and as JSON with TensorRT's keys (and ours beside them)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from fusion.dims import is_static, substitute
from fusion.network import Layer, Network, TensorType, typical_sizes
from runtime.engine import ROW_MAJOR, Engine, LayerPlan, sizes_of
from runtime.resolution import sharing_of
from runtime.segments import obstacles_of
from runtime.views import Place
from tactics.tactic import Config, tactic_label
from trtcli.report.alignment import alignment_notes
from trtcli.report.padding import Padding, padding_of
from trtcli.report.reformats import reformat_reason

SCHEMA = 1

Shapes = Mapping[str, tuple[int, ...]]


def layer_info_lines(engine: Engine, shapes: Shapes | None = None) -> list[str]:
    """``Layer Information:`` and a line per layer, as much as the engine's profiling verbosity allows."""
    level = verbosity(engine)
    if level == "none":
        return []
    lines = ["", "Layer Information:"]
    if level == "layer_names_only":
        return [*lines, *(layer.name for layer in engine.network.layers)]
    return [*lines, *(_line(one) for one in _with_bodies(_layers(engine, shapes)))]


def _with_bodies(layers: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Each layer, followed by those of the networks in it (their names begin with its ONNX node's)."""
    for layer in layers:
        yield layer
        for body in layer.get("Bodies", ()):
            yield from _with_bodies(body)


def layer_info_json(engine: Engine, shapes: Shapes | None = None) -> dict[str, Any]:
    """``Layers`` (names or objects, by the profiling verbosity), ``I/O Tensors``, and facts about the engine."""
    level = verbosity(engine)
    layers: Sequence[Any] = ()
    if level == "layer_names_only":
        layers = [layer.name for layer in engine.network.layers]
    elif level == "detailed":
        layers = _layers(engine, shapes)
    return {
        "schema": SCHEMA,
        "Layers": list(layers),
        "I/O Tensors": io_tensors(engine, shapes),
        "ProfilingVerbosity": level,
        "Engine Metadata": {
            "Builder": f"trtcli {engine.record.get('trtcli', '')}".strip(),
            "Device": engine.device.name,
            "Model": str(engine.record.get("model", engine.network.name)),
        },
    }


def verbosity(engine: Engine) -> str:
    """The profiling verbosity that the engine was built with."""
    options = engine.record.get("options", {})
    level = options.get("profiling_verbosity") if isinstance(options, Mapping) else None
    return str(level or "layer_names_only")


def io_tensors(engine: Engine, shapes: Shapes | None = None) -> list[dict[str, Any]]:
    """Every input and output with its type, place and range of shapes."""
    network = engine.network
    sizes = _sizes(engine, shapes)
    found = []
    for mode, names in (("Input", network.inputs), ("Output", network.outputs)):
        for name in names:
            tensor = network.tensors[name]
            ranges = [profile[name] for profile in engine.profiles if name in profile]
            found.append(
                {
                    "Name": name,
                    "IOMode": mode,
                    "DataType": tensor.dtype.label,
                    "Dimensions": _dimensions(TensorType(tensor.dtype, network.io_shape(name)), sizes),
                    "Format": engine.get_tensor_format_desc(name),
                    "Location": "Device",
                    "IsShapeInferenceIO": False,
                    "ProfileInfo": [
                        {
                            "MinShape": list(one.min),
                            "OptShape": list(one.opt),
                            "MaxShape": list(one.max),
                            "Format": engine.get_tensor_format_desc(name),
                        }
                        for one in ranges
                    ],
                }
            )
    return found


def layer_objects(engine: Engine, shapes: Shapes | None = None) -> list[dict[str, Any]]:
    """Every layer as an object, whatever the profiling verbosity (``Alternatives`` are kept by ``detailed`` only)."""
    return _layers(engine, shapes)


def stream_reasons(engine: Engine) -> dict[str, str]:
    """For layers of branches that could have had an auxiliary stream: why they stayed on the main one."""
    return {name: branch["reason"] for branch in stream_branches(engine) if not branch["stream"] for name in branch["layers"]}


def stream_branches(engine: Engine) -> list[Mapping[str, Any]]:
    """The branches that auxiliary streams were considered for in profile 0 (``layers``, ``stream``, ``reason``), those of bodies included."""
    streams = engine.record.get("streams", {})
    own = list(streams.get("branches", ())) if isinstance(streams, Mapping) else []
    return own + [branch for plan in engine.layers for body in plan.bodies for branch in stream_branches(body)]


def alignment_of(engine: Engine, layer: Layer, sizes: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """What of ``layer`` tensor cores pad, at ``sizes`` (the optimal ones of profile 0 by default); nothing on the CPU."""
    if engine.device.kind != "cuda":
        return ()
    if sizes is None:
        sizes = typical_sizes(engine.network, sizes_of(engine.network, {name: one.opt for name, one in engine.profiles[0].items()}))
    return alignment_notes(layer, engine.network.tensors, sizes, engine.tf32, padding_of(engine))


# --- parts -----------------------------------------------------------------------------------------------------------

def _layers(engine: Engine, shapes: Shapes | None) -> list[dict[str, Any]]:
    sizes = _sizes(engine, shapes)
    # What is neither computed nor an input of the network is a constant.
    computed = {*engine.network.inputs, *(name for layer in engine.network.layers for name in layer.outputs)}
    reasons, places = stream_reasons(engine), sharing_of(engine).places
    host = {one.layer: one.reason for one in obstacles_of(engine.network, engine.host_layers)}
    found = []
    for number, (layer, plan) in enumerate(zip(engine.network.layers, engine.layers, strict=True)):
        one = _object(engine, layer, plan, sizes, computed, places)
        if layer.name in reasons:
            one["StreamReason"] = reasons[layer.name]
        if reason := reformat_reason(engine, layer):
            one["Reformat"] = reason
        if number in host:
            one["Host"] = host[number]
        if plan.bodies:
            one["Bodies"] = [_layers(body, None) for body in plan.bodies]
        found.append(one)
    return found


def _object(
    engine: Engine, layer: Layer, plan: LayerPlan, sizes: Mapping[str, int] | None, computed: Collection[str], places: Mapping[str, Place]
) -> dict[str, Any]:
    tensors = engine.network.tensors
    constant = [name for name in layer.inputs if name not in computed]
    padding = padding_of(engine)
    return {
        "Name": layer.name,
        "LayerType": layer.op.layer_type or type(layer.op).__name__,
        "Inputs": [_tensor(engine.network, name, sizes, places, padding) for name in layer.inputs if name in computed],
        "Outputs": [_tensor(engine.network, name, sizes, places, padding) for name in layer.outputs],
        "Constants": constant,
        "TacticName": tactic_label(plan.tactic, plan.config),
        "TacticValue": tactic_value(plan.tactic, plan.config),
        "StreamId": plan.stream,
        "Metadata": "\x1e".join(f"[ONNX Layer: {origin}]" for origin in layer.origins),
        "Origins": list(layer.origins),
        "Fusions": list(layer.fusions),
        "Precision": _precision(layer, tensors),
        "TimeMs": _milliseconds(plan.seconds),
        "FloorMs": _milliseconds(plan.floor),
        "Bound": plan.bound,
        "WorkspaceBytes": plan.workspace,
        "Alignment": list(alignment_of(engine, layer, sizes)),
        "Cached": plan.cached,
        **({"Sources": [{"Source": name, "TimeMs": seconds * 1e3} for name, seconds in plan.sources]} if plan.sources else {}),
        "Alternatives": [
            {
                "TacticName": tactic_label(one.tactic, one.config),
                "TimeMs": None if one.seconds is None else _milliseconds(one.seconds),
                "Reason": one.reason,
            }
            for one in plan.alternatives
        ],
    }


def _tensor(network: Network, name: str, sizes: Mapping[str, int] | None, places: Mapping[str, Place], padding: Padding) -> dict[str, Any]:
    place, tensor, layout = places[name], network.tensors[name], network.formats.get(name)
    if layout is not None:  # callers know it by another shape
        tensor = TensorType(tensor.dtype, network.io_shape(name))
    real, held = padding.channels.get(name, (0, 0))
    padded = f"{real} channels padded to {held}" if real else ""
    columns = f"columns of {place.root} from {place.offset} on, rows {place.pitch} apart" if place.pitch else ""
    return {
        "Name": name,
        "Dimensions": [*_dimensions(tensor, sizes)[:-1], real] if real else _dimensions(tensor, sizes),
        "Format": ", ".join(part for part in (str(layout or ROW_MAJOR), padded, columns) if part),
        "Datatype": tensor.dtype.label,
        "Location": "Device",
    }


def _dimensions(tensor: TensorType, sizes: Mapping[str, int] | None) -> list[int]:
    """The concrete shape; -1 where it is not known."""
    if sizes is None and not is_static(tensor.shape):
        return [dim if isinstance(dim, int) else -1 for dim in tensor.shape]
    known = (substitute(dim, sizes or {}) for dim in tensor.shape)  # sizes that an inference tells stay open
    return [dim if isinstance(dim, int) else -1 for dim in known]


def _sizes(engine: Engine, shapes: Shapes | None) -> dict[str, int] | None:
    return None if shapes is None else sizes_of(engine.network, shapes)


def _precision(layer: Layer, tensors: Mapping[str, TensorType]) -> str:
    """The type that the layer works in: that of its first input, or of its first output without one."""
    names = [*layer.inputs[:1], *layer.outputs[:1]]
    return tensors[names[0]].dtype.label if names else ""


def _milliseconds(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds * 1e3


def refit_lines(engine: Engine) -> list[str]:
    """``--dumpRefit``: per layer the weights that a refit replaces, as the engine holds them."""
    lines = []
    for layer, plan in zip(engine.network.layers, engine.layers, strict=True):
        held = [name for name in dict.fromkeys((*layer.inputs, *plan.packed)) if name in engine.weights]
        arrays = ", ".join(f"{name} ({engine.weights[name].dtype} {'x'.join(map(str, engine.weights[name].shape)) or 'scalar'})" for name in held)
        if held:
            lines.append(f"{layer.name}: {arrays}")
        for body in plan.bodies:
            lines += [f"{layer.name} / {line}" for line in refit_lines(body)]
    return lines or ["No layer has weights"]


def tactic_value(tactic: str, config: Config) -> str:
    """A 64-bit number that stands for the tactic and its configuration, as ``0x`` and 16 hexadecimal digits."""
    return "0x" + hashlib.sha256(tactic_label(tactic, config).encode()).hexdigest()[:16]


def _line(layer: Mapping[str, Any]) -> str:
    def listed(tensors: Sequence[Mapping[str, Any]]) -> str:
        parts = (
            f"{{ Name: {one['Name']}, Dimensions: [{','.join(map(str, one['Dimensions']))}], "
            f"Format/Datatype: {one['Format']} {one['Datatype']} }}"
            for one in tensors
        )
        return f"[ {', '.join(parts)} ]" if tensors else "[]"

    return (
        f"Name: {layer['Name']}, LayerType: {layer['LayerType']}, Inputs: {listed(layer['Inputs'])}, "
        f"Outputs: {listed(layer['Outputs'])}, TacticName: {layer['TacticName']}, StreamId: {layer['StreamId']}, "
        f"Metadata: {' '.join(f'[ONNX Layer: {one}]' for one in layer['Origins'])}"
        + (f", Host: {layer['Host']}" if "Host" in layer else "")
        + (f", Reformat: {layer['Reformat']}" if "Reformat" in layer else "")
        + (f", Source: {source_text(layer['Sources'])}" if "Sources" in layer else "")
    )


def source_text(sources: Sequence[Mapping[str, Any]]) -> str:
    """Which source won and by how much: ``CUBLAS_LT (1.19x faster than own)``."""
    first, *others = sources
    if not others:
        return f"{first['Source']} (no other)"
    return f"{first['Source']} ({others[0]['TimeMs'] / first['TimeMs']:.2f}x faster than {others[0]['Source']})"
