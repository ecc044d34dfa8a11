"""From a path, bytes or message to a checked ONNX model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.importer.errors import ModelError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OLDEST_OPSET = 6
ENGINE = b'"trtcli-engine"'  # stands at the start of engine files
NEWEST_OPSET = 28  # newer ones may hold attributes that trtcli would not obey
_OTHERS = (  # what is given in place of a model, by how it begins
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself: 'git lfs pull' fetches it"),
    (b"<!doctype html", "a web page, not a model: the download went wrong"),
    (b"<html", "a web page, not a model: the download went wrong"),
    (b"pk\x03\x04", "a zip archive, not an ONNX file: unpack it, or export a PyTorch model with torch.onnx.export"),
)


@dataclass(frozen=True)
class Source:
    """A model, the name that messages give it, and the folder in which its external data lies (None: unknown)."""

    model: ModelProto
    name: str
    folder: Path | None

    def opsets(self) -> dict[str, int]:
        """The version of each operator set, the standard one under ""."""
        return {_standard(entry.domain): entry.version for entry in self.model.opset_import}


def load(model: str | Path | bytes | ModelProto) -> Source:
    """Reads and checks a model.

    Raises:
        ModelError: there is no such file, it is not ONNX, it holds no graph, or its opset is unknown.
    """
    from onnx import ModelProto

    if isinstance(model, ModelProto):
        source = Source(model, model.graph.name or "model", None)
    elif isinstance(model, bytes | bytearray | memoryview):
        source = Source(_parse(bytes(model), "model"), "model", None)
    else:
        path = Path(model).expanduser()
        source = Source(_parse(_read(path), str(path)), str(path), path.parent)
    _check(source)
    return source


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{path}: is a folder, not an ONNX file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(data: bytes, name: str) -> ModelProto:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import ModelProto

    if not data:
        raise ModelError(f"{name}: the file is empty")
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        if ENGINE in data[: 1 << 20]:
            raise ModelError(f"{name}: an engine file, not a model: run it with --loadEngine={name}") from None
        known = next((what for begin, what in _OTHERS if data.lstrip()[: len(begin)].lower() == begin), None)
        raise ModelError(f"{name}: {known or f'not an ONNX file, or cut short ({len(data)} bytes do not parse)'}") from None
    return model


def _check(source: Source) -> None:
    from onnx.defs import onnx_opset_version

    model, name = source.model, source.name
    if not model.HasField("graph"):
        raise ModelError(f"{name}: not an ONNX model: it holds no graph")
    if not model.graph.output:
        raise ModelError(f"{name}: its graph has no output, so there is nothing to compute")
    if not all(isinstance(text, str) for text in (*(entry.domain for entry in model.opset_import), *_texts(model.graph))):
        raise ModelError(f"{name}: damaged: a name in it is not valid text")
    opset = source.opsets().get("")
    if opset is None:
        if any(not _standard(node.domain) for node in model.graph.node):
            raise ModelError(f"{name}: names no opset of the standard operators (opset_import)")
        return
    newest = min(NEWEST_OPSET, onnx_opset_version())
    if opset < OLDEST_OPSET:
        raise ModelError(f"{name}: opset {opset} is older than {OLDEST_OPSET}; convert it with onnx.version_converter")
    if opset > newest:
        raise ModelError(f"{name}: opset {opset} is unknown; trtcli with the installed onnx knows {OLDEST_OPSET} to {newest}")


def _texts(graph: GraphProto) -> Iterator[object]:
    """Every name in a graph; protobuf gives bytes for those that are not UTF-8."""
    for entry in (*graph.input, *graph.output):
        yield entry.name
        yield from (dim.dim_param for dim in entry.type.tensor_type.shape.dim)
    for tensor in graph.initializer:
        yield tensor.name
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            yield attribute.ref_attr_name
            if attribute.HasField("g"):
                yield from _texts(attribute.g)


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
