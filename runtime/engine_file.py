"""Engine files: a safetensors container. Weights and cubins are its tensors, everything else is JSON in its metadata.

Layout (https://huggingface.co/docs/safetensors, format section): 8 bytes little-endian header length, a JSON header, then the raw
tensors without gaps. Nothing in a file is ever executed while loading: it is JSON and arrays. ``docs/engine-file.md`` documents it.

Every byte is covered by a checksum: those of the header and of the kernels are compared while loading, those of the weights when these are
read (``runtime/checksums.py``), because a command that only shows an engine does not read them.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from fusion.dtypes import DataType
from fusion.files import replacing
from fusion.formats import CHANNELS_LAST
from fusion.network import ControlFlow, Network
from fusion.serial import network_from_json, network_to_json
from runtime.checksums import Stored, StoredWeights, bytes_of, checksum, verified
from runtime.engine import Alternative, Engine, EngineError, InputRange, LayerPlan
from tactics.tactic import DeviceSpec

FORMAT = "trtcli-engine"
VERSION = 3
READABLE = ("2", "3")  # 2 has no checksums
HEADER_LIMIT = 100_000_000  # bytes; safetensors readers refuse longer headers

# safetensors' names of the data types. The others (of 8 bits and less) are stored as U8, their own name in that of the tensor:
# weight.int4:name.
_NAMES = {
    DataType.FLOAT: "F32", DataType.HALF: "F16", DataType.BF16: "BF16", DataType.DOUBLE: "F64", DataType.FP8: "F8_E4M3",
    DataType.FP8_E5M2: "F8_E5M2", DataType.INT8: "I8", DataType.INT16: "I16", DataType.INT32: "I32", DataType.INT64: "I64",
    DataType.UINT8: "U8", DataType.UINT16: "U16", DataType.UINT32: "U32", DataType.UINT64: "U64", DataType.BOOL: "BOOL",
}  # fmt: skip
_TYPES = {name: dtype for dtype, name in _NAMES.items()}

# Where a header's checksum stands: text of other entries cannot look like it, its quotation marks are escaped.
_SEAL, _BLANK = b'"checksum":"%s"', b"00000000"

Value = TypeVar("Value")


def save(engine: Engine, path: str | os.PathLike[str]) -> int:
    """Write ``engine`` to ``path`` through a temporary file beside it, and return the file's size. Equal engines give equal bytes.

    Raises:
        EngineError: the file cannot be written.
    """
    size = 0
    try:
        with replacing(path) as file:
            for part in parts_of(engine):
                size += file.write(part)
    except OSError as error:
        raise EngineError(f"cannot write engine file {str(path)!r}: {error.strerror or error}") from error
    return size


def parts_of(engine: Engine) -> Iterator[bytes | memoryview]:
    """The bytes of the engine's file, piece by piece."""
    tensors: dict[str, np.ndarray] = {}
    for prefix, one in _engines(engine):
        for name, array in verified(one.weights):
            tensors[_weight_key(prefix + name, array.dtype)] = np.ascontiguousarray(array).reshape(array.shape)
        tensors |= {f"kernel:{key}": np.frombuffer(image, np.uint8) for key, image in one.kernels.items()}
    # Wider elements first, then by name: every tensor is aligned to its element, and the order is reproducible.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "engine": json.dumps(_describe(engine), sort_keys=True),
            "checksums": json.dumps({name: checksum(bytes_of(tensors[name])) for name in order}),
        }
    }
    offset = 0
    for name in order:
        array = tensors[name]
        end = offset + array.nbytes
        dtype = _NAMES.get(DataType(array.dtype.name), "U8")
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    yield header_bytes(header)
    for name in order:
        yield bytes_of(tensors[name])


def header_bytes(header: dict[str, Any]) -> bytes:
    """A file's first bytes: the length of its header, and the header with a checksum of itself, padded so that data start on a cache line."""
    header = {**header, "__metadata__": {**header["__metadata__"], "checksum": _BLANK.decode()}}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 64)
    return struct.pack("<Q", len(text)) + text.replace(_SEAL % _BLANK, _SEAL % f"{crc32(text):08x}".encode(), 1)


def _check_header(text: bytes) -> bool:
    """Whether the header ``text`` has a checksum of itself, as files have from format 3 on.

    Raises:
        ValueError: it is wrong.
    """
    found = re.search(_SEAL % b"([0-9a-f]{8})", text)
    if found and crc32(text[: found.start(1)] + _BLANK + text[found.end(1) :]) != int(found[1], 16):
        raise ValueError("its header differs from what was saved")
    return found is not None


def _weight_key(name: str, dtype: np.dtype) -> str:
    kind = DataType(dtype.name)
    return f"weight:{name}" if kind in _NAMES else f"weight.{kind.value}:{name}"


def _engines(engine: Engine, prefix: str = "") -> Iterator[tuple[str, Engine]]:
    """The engine and those of the bodies in its layers, each with what its weights' names begin with in the file."""
    yield prefix, engine
    for number, plan in enumerate(engine.layers):
        for index, body in enumerate(plan.bodies):
            yield from _engines(body, f"{prefix}{number}.{index}/")


def load(path: str | os.PathLike[str]) -> Engine:
    """The engine in ``path``. Weights are views of the mapped file, read when first touched.

    Raises:
        EngineError: one line that says why the file is no engine that this version can run.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise EngineError(f"{str(path)!r} is not an engine file: it has only {size} bytes")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(
            f"cannot open engine file {str(path)!r}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return parse(data, str(path))


def versions_of(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The trtcli version that built the engine in ``path``, and the version of the file's format; neither need be this one's.

    Raises:
        EngineError: it is no engine file.
    """
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < HEADER_LIMIT else {}
        meta = header["__metadata__"]
        if meta["format"] != FORMAT:
            raise KeyError("format")
        record = json.loads(meta["engine"]).get("record", {})
    except OSError as error:
        raise EngineError(f"cannot open engine file {str(path)!r}: {error.strerror or error}") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_engine(str(path)) from error
    return str(record.get("trtcli", "unknown")), str(meta.get("version"))


def parse(data: bytes | mmap.mmap, path: str = "bytes") -> Engine:
    """The engine in the bytes of an engine file; ``path`` is for messages.

    Raises:
        EngineError: one line that says why they are no engine that this version can run.
    """
    if len(data) < 8:
        raise EngineError(f"{path!r} is not an engine file: it has only {len(data)} bytes")
    try:
        return _parse(memoryview(data), path)
    except EngineError:
        raise
    # Data from outside: whatever goes wrong in reading it is the file's fault. Nothing of it is run, so this hides no effect.
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise EngineError(f"engine file {path!r} is damaged: {kind}{text}; copy the file again, or build it again") from error


def _no_engine(path: str) -> EngineError:
    if path.lower().endswith(".onnx"):
        return EngineError(f"{path!r} is not an engine file: an ONNX model, by its name: give it as --onnx={path}")
    own = path if path.lower().endswith((".engine", ".plan", ".trt")) else "model.engine"  # nobody's other file is to be written over
    return EngineError(f"{path!r} is not an engine file: build one with --onnx=model.onnx --saveEngine={own}")


# --- engine -> JSON --------------------------------------------------------------------------------------------------


def _describe(engine: Engine) -> dict[str, Any]:
    return {
        "network": network_to_json(engine.network),
        "layers": [_plain(plan) for plan in engine.layers],
        # Decisions of profiles 1, 2, ...; null where it is that of profile 0.
        "more_layers": [
            [None if _plain(plan) == _plain(first) else _plain(plan) for plan, first in zip(plans, engine.layers, strict=True)]
            for plans in engine.more_layers
        ],
        "profiles": [{name: _plain(item) for name, item in profile.items()} for profile in engine.profiles],
        "device": _plain(engine.device),
        "tf32": engine.tf32,
        "record": _numbers(engine.record),
    }


def _plain(value: Any) -> dict[str, Any]:
    """A flat dataclass as a JSON object without the fields that hold their default."""
    items = {
        item.name: getattr(value, item.name) for item in fields(value) if getattr(value, item.name) != item.default
    }
    if isinstance(value, LayerPlan) and value.alternatives:
        items["alternatives"] = [_plain(one) for one in value.alternatives]
    if isinstance(value, LayerPlan) and value.bodies:  # their networks stand in the layer
        items["bodies"] = [{name: part for name, part in _describe(body).items() if name != "network"} for body in value.bodies]
    return {name: _numbers(item) for name, item in items.items()}


def _numbers(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become {"float": "nan"}."""
    if isinstance(value, Mapping):
        return {str(key): _numbers(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_numbers(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"the engine's record holds a {type(value).__name__}, which JSON cannot")


# --- JSON -> engine --------------------------------------------------------------------------------------------------


def _parse(data: memoryview, path: str) -> Engine:
    (length,) = struct.unpack("<Q", data[:8])
    if HEADER_LIMIT > length > len(data) - 8 and b"trtcli-engine" in bytes(data[8:1_000_000]):
        raise EngineError(
            f"engine file {path!r} is cut short: {len(data)} bytes, its header alone has {length}; build it again"
        )
    if length > min(HEADER_LIMIT, len(data) - 8) or bytes(data[8:9]) != b"{":
        raise _no_engine(path)
    text = bytes(data[8 : 8 + length])
    sealed = _check_header(text)
    header = json.loads(text)
    meta = header.pop("__metadata__", {})
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise EngineError(f"{path!r} is a safetensors file, but not an engine: build one with --onnx and --saveEngine")
    if (version := meta.get("version")) not in READABLE:
        raise EngineError(
            f"{path!r} has engine format {str(version)[:20]}, this trtcli reads formats {' and '.join(READABLE)}: build it again"
        )
    if version != "2" and not sealed:
        raise ValueError("its header has no checksum")
    checksums = json.loads(meta.get("checksums", "{}"))
    if sealed and set(checksums) != set(header):
        raise ValueError("its checksums are not those of its tensors")
    weights, kernels = _tensors(header, data[8 + length :], checksums, path)
    described = json.loads(meta["engine"], object_hook=_float_hook)
    engine = _engine(described, network_from_json(described["network"]), weights, kernels)
    _check(engine)
    return engine


def _engine(text: dict[str, Any], network: Network, weights: StoredWeights, kernels: Mapping[str, bytes]) -> Engine:
    """The engine of ``network`` and its bodies, whose ``weights`` have names that begin as :func:`_engines` says."""
    plans = _is(text["layers"], list)
    if len(plans) != len(network.layers):
        raise ValueError(f"{len(network.layers)} layers, but {len(plans)} decisions")

    def plan(value: dict[str, Any], number: int) -> LayerPlan:
        op, given = network.layers[number].op, value.get("bodies", [])
        bodies = op.bodies if isinstance(op, ControlFlow) else ()
        if len(bodies) != len(given):
            raise ValueError(f"layer {network.layers[number].name!r} has {len(bodies)} bodies, but decisions for {len(given)}")
        inner = (
            _engine(one, body, weights.below(f"{number}.{index}/"), kernels)
            for index, (one, body) in enumerate(zip(given, bodies, strict=True))
        )
        return replace(_layer_plan(value), bodies=tuple(inner))

    layers = tuple(plan(value, number) for number, value in enumerate(plans))
    return Engine(
        network=network,
        layers=layers,
        weights=weights.without(f"{number}.{index}/" for number, one in enumerate(layers) for index in range(len(one.bodies))),
        kernels=kernels,
        profiles=tuple({name: _range(item) for name, item in profile.items()} for profile in text["profiles"]),
        device=_device(text["device"]),
        record=_is(text["record"], dict),
        tf32=_is(text["tf32"], bool),
        more_layers=tuple(
            tuple(
                layers[number] if value is None else replace(_layer_plan(value), bodies=layers[number].bodies)
                for number, value in enumerate(values)
            )
            for values in text.get("more_layers", [])
        ),
    )


def _tensors(header: Mapping[str, Any], data: memoryview, checksums: Mapping[str, str], path: str) -> tuple[StoredWeights, dict[str, bytes]]:
    weights: dict[str, np.ndarray] = {}
    stored: dict[str, Stored] = {}
    kernels: dict[str, bytes] = {}
    covered = 0
    for name, item in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
        begin, end = (_is(offset, int) for offset in item["data_offsets"])
        shape = tuple(_is(dim, int) for dim in item["shape"])
        dtype = _TYPES[item["dtype"]]
        count = 1
        for dim in shape:
            count *= dim
        if min(shape, default=0) < 0 or begin != covered or end - begin != count * dtype.itemsize or end > len(data):
            raise ValueError(f"tensor {name!r} does not lie where the header says (is the file cut short?)")
        covered = end
        kind, _, given = name.partition(":")
        if kind == "weight" or kind.startswith("weight."):
            own = DataType(kind.removeprefix("weight.")) if kind != "weight" else dtype
            array = np.frombuffer(data[begin:end], np.uint8).view(own.numpy) if count else np.empty(0, own.numpy)
            weights[given] = array.reshape(shape)
            if name in checksums:
                stored[given] = Stored(checksums[name], f"engine file {path!r} is damaged: {name!r}")
        elif name.startswith("kernel:"):
            kernels[given] = bytes(data[begin:end])
            if name in checksums and checksum(kernels[given]) != checksums[name]:
                raise ValueError(f"{name!r} differs from what was saved")
        else:
            raise ValueError(f"unknown tensor {name!r}")
    if covered != len(data):
        raise ValueError(f"{len(data) - covered} bytes follow the last tensor")
    return StoredWeights(weights, stored), kernels


def _float_hook(value: dict[str, Any]) -> Any:
    if len(value) == 1 and "float" in value:
        return float(value["float"])
    return value


def _is(value: Any, kind: type[Value]) -> Value:
    """``value`` when it is a ``kind`` (bool is no int)."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else _is(value, float)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_is(name, str) for name in _is(value, list))


def _ints(value: Any) -> tuple[int, ...]:
    return tuple(_is(item, int) for item in _is(value, list))


def _range(value: dict[str, Any]) -> InputRange:
    return InputRange(_ints(value["min"]), _ints(value["opt"]), _ints(value["max"]))


def _config(value: Any) -> tuple[tuple[str, int], ...]:
    return tuple((_is(name, str), _is(item, int)) for name, item in _is(value, list))


def _alternative(value: dict[str, Any]) -> Alternative:
    seconds = value.get("seconds")
    return Alternative(
        tactic=_is(value["tactic"], str),
        config=_config(value.get("config", [])),
        seconds=None if seconds is None else _number(seconds),
        reason=_is(value.get("reason", ""), str),
    )


def _layer_plan(value: dict[str, Any]) -> LayerPlan:
    return LayerPlan(
        tactic=_is(value["tactic"], str),
        config=_config(value.get("config", [])),
        packed=_names(value.get("packed", [])),
        seconds=_number(value.get("seconds", float("nan"))),
        floor=_number(value.get("floor", 0.0)),
        bound=_is(value.get("bound", "memory"), str),
        workspace=_is(value.get("workspace", 0), int),
        cached=_is(value.get("cached", False), bool),
        alternatives=tuple(_alternative(one) for one in value.get("alternatives", [])),
        sources=tuple((_is(name, str), _number(seconds)) for name, seconds in value.get("sources", [])),
        stream=_is(value.get("stream", 0), int),
    )


def _device(value: dict[str, Any]) -> DeviceSpec:
    kinds: dict[str, type] = {"kind": str, "name": str, "arch": str, "share": str}
    known = {item.name for item in fields(DeviceSpec)}
    unknown = set(value) - known
    if unknown:
        raise ValueError(f"the device has no property {sorted(unknown)[0]!r}")
    items: dict[str, Any] = {}
    for name, item in value.items():
        if name == "flops":
            items[name] = {_is(key, str): _number(rate) for key, rate in item.items()}
        elif name == "bandwidth":
            items[name] = _number(item)
        else:
            items[name] = _is(item, kinds.get(name, int))
    return DeviceSpec(**items)


def _check(engine: Engine) -> None:
    """What the runtime relies on."""
    network = engine.network
    if len(engine.layers) != len(network.layers):
        raise ValueError(f"{len(network.layers)} layers, but {len(engine.layers)} decisions")
    if engine.more_layers and len(engine.more_layers) != len(engine.profiles) - 1:
        raise ValueError(f"{len(engine.profiles)} optimization profiles, but {1 + len(engine.more_layers)} sets of decisions")
    _check_layers(network)
    for number, layer in enumerate(network.layers):
        for plan in (plans[number] for plans in (engine.layers, *engine.more_layers)):
            if missing := [name for name in plan.packed if name not in engine.weights and not engine.record.get("stripped")]:
                raise ValueError(f"layer {layer.name!r}: packed weights {missing[0]!r} are not in the file")
            if plan.stream < 0 or plan.stream > len(network.layers):
                raise ValueError(f"layer {layer.name!r}: stream {plan.stream}")
        for body in engine.layers[number].bodies:
            _check(body)
    _check_tensors(network, engine.weights)
    if not engine.profiles:
        raise ValueError("it has no optimization profile")
    for profile in engine.profiles:
        if set(profile) != set(network.inputs):
            raise ValueError("an optimization profile does not name every input")


def _check_layers(network: Network) -> None:
    """Layers come after those that they read, and what they say makes sense."""
    made = {name for layer in network.layers for name in layer.outputs}
    written: set[str] = set()
    for layer in network.layers:
        for name in (*layer.inputs, *layer.outputs):
            if name not in network.tensors:
                raise ValueError(f"layer {layer.name!r} uses tensor {name!r}, which has no type")
        if early := sorted((made - written) & set(layer.inputs)):
            raise ValueError(f"layer {layer.name!r} reads {early[0]!r} before a layer writes it")
        if twice := written & set(layer.outputs):
            raise ValueError(f"tensor {sorted(twice)[0]!r} is written twice")
        written |= set(layer.outputs)
        layer.op.infer([network.tensors[name] for name in layer.inputs])  # raises when attributes make no sense


def _check_tensors(network: Network, weights: Mapping[str, np.ndarray]) -> None:
    """The tensors at the network's ends, constants, and those that sizes are read from."""
    ends = (*network.inputs, *network.outputs)
    for name in ends:
        if name not in network.tensors:
            raise ValueError(f"network tensor {name!r} has no type")
    for name, layout in network.formats.items():
        if name not in ends or layout.name not in CHANNELS_LAST or len(network.tensors[name].shape) < layout.least_rank:
            raise ValueError(f"tensor {name!r} cannot have format {layout.name!r}")
    for name, array in weights.items():
        declared = network.tensors.get(name)
        if declared is not None and (declared.shape != array.shape or declared.dtype.numpy != array.dtype):
            raise ValueError(f"weight {name!r} is {array.dtype} {array.shape}, the network says {declared}")
    for size, reading in network.sizes.items():
        if reading.tensor not in network.tensors or reading.element < 0:
            raise ValueError(f"size {size!r} is read from {reading.tensor!r}, which has no type")
