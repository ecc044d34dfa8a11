"""Readers of flag values: each turns text into a value, or says in a ``ValueError`` what it found and what it allows.

A reader is a frozen dataclass with ``metavar`` and ``allowed`` (for help and messages) that is called with the text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Integer:
    """A whole number in ``low .. high``; the value ``none`` stands for no number."""

    low: int
    high: int
    metavar: str = "N"
    none: int | None = None

    @property
    def allowed(self) -> str:
        return f"{self.low}..{self.high}" + (f", or {self.none}" if self.none is not None else "")

    def __call__(self, text: str) -> int | None:
        if not re.fullmatch(r"[+-]?\d+", text.strip()):
            raise ValueError(f"{text!r} is not a whole number ({self.allowed})")
        value = int(text)
        if value == self.none:
            return None
        if not self.low <= value <= self.high:
            raise ValueError(f"{text} is out of range ({self.allowed})")
        return value


@dataclass(frozen=True)
class Number:
    """A real number in ``low .. high``; ``also`` is one value outside of the range that is allowed too."""

    low: float
    high: float
    metavar: str = "X"
    also: float | None = None

    @property
    def allowed(self) -> str:
        return f"{self.low:.15g}..{self.high:.15g}" + (f", or {self.also:g}" if self.also is not None else "")

    def __call__(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number ({self.allowed})") from None
        if not (self.low <= value <= self.high or value == self.also):  # NaN fails every comparison
            raise ValueError(f"{text} is out of range ({self.allowed})")
        return value


@dataclass(frozen=True)
class Choice:
    """One of some words; ``old`` maps words of earlier TensorRT versions to them."""

    words: tuple[str, ...]
    metavar: str = "MODE"
    old: tuple[tuple[str, str], ...] = ()

    @property
    def allowed(self) -> str:
        return ", ".join(self.words)

    def __call__(self, text: str) -> str:
        word = dict(self.old).get(text, text)
        if word not in self.words:
            raise ValueError(f"{text!r} is none of {self.allowed}")
        return word


@dataclass(frozen=True)
class Choices:
    """Some of the words, separated by commas."""

    words: tuple[str, ...]
    metavar: str = "WORD[,...]"

    @property
    def allowed(self) -> str:
        return ", ".join(self.words)

    def __call__(self, text: str) -> tuple[str, ...]:
        found = tuple(part.strip() for part in text.split(","))
        for word in found:
            if word not in self.words:
                raise ValueError(f"{word!r} is none of {self.allowed}")
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Text:
    """Any text but the empty one: a file, a name."""

    metavar: str = "FILE"
    allowed: str = ""

    def __call__(self, text: str) -> str:
        if not text:
            raise ValueError(f"is empty; give --...={self.metavar}")
        return text


@dataclass(frozen=True)
class Device:
    """``cpu``, ``auto`` or a GPU's number, as text."""

    metavar: str = "N|cpu"
    allowed: str = "cpu, auto, or a GPU's number: 0, 1, ..."

    def __call__(self, text: str) -> str:
        word = text.strip().lower()
        if word in ("cpu", "auto"):
            return word
        if re.fullmatch(r"\d{1,4}", word):
            return str(int(word))
        raise ValueError(f"{text!r} is no device ({self.allowed})")


@dataclass(frozen=True)
class BatchRange:
    """``A:B``, the smallest and the largest batch, or one of them alone."""

    metavar: str = "A:B"
    allowed: str = "1 <= A <= B <= 65536"

    def __call__(self, text: str) -> tuple[int, int]:
        match = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 65536:
            raise ValueError(f"{text!r} is no range of batches ({self.allowed})")
        return first, last


@dataclass(frozen=True)
class Share:
    """A count, or a percentage with ``%``: kept as text, since only the device knows what 50% is."""

    metavar: str = "N|P%"
    allowed: str = "a number of SMs from 1 on, or 1%..100%"

    def __call__(self, text: str) -> str:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", text.strip())
        if not match or not (1 <= float(match[1]) <= 100 if match[1] else int(match[2]) >= 1):
            raise ValueError(f"{text!r} is no share ({self.allowed})")
        return text.strip()


@dataclass(frozen=True)
class Percentiles:
    """A comma-separated list of percentages; an empty text keeps the default."""

    default: tuple[float, ...]
    metavar: str = "P1,P2,..."
    allowed: str = "each 0..100"

    def __call__(self, text: str) -> tuple[float, ...]:
        each = Number(0, 100)
        return tuple(each(part.strip()) for part in text.split(",")) if text.strip() else self.default


@dataclass(frozen=True)
class ShapeSpec:
    """``name:1x3x224x224[,name2:...]``.

    The name is what stands before the last colon; it may be in single quotes (then it may hold commas) and may hold one
    ``*``. A scalar is ``name:`` or ``name:scalar``.
    """

    metavar: str = "name:AxB,..."
    allowed: str = "name:AxBxC[,name2:...]"

    def __call__(self, text: str) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for part in split_quoted(text):
            name, colon, dims = part.rpartition(":")
            name = unquote(name.strip())
            if not colon or not name:
                raise ValueError(f"{part!r} names no input; write name:AxBxC, for example input:1x3x224x224")
            if name.count("*") > 1:
                raise ValueError(f"{name!r} has more than one *")
            if name in shapes:
                raise ValueError(f"input {name!r} is given twice")
            shapes[name] = _dimensions(name, dims.strip())
        return shapes


def _dimensions(name: str, text: str) -> tuple[int, ...]:
    if text in ("", "scalar"):
        return ()
    dims = []
    for item in text.split("x"):
        if not re.fullmatch(r"\d+", item):
            raise ValueError(f"input {name!r}: {item!r} in {text!r} is no dimension; write it as 1x3x224x224")
        if int(item) > 2**31 - 1:
            raise ValueError(f"input {name!r}: dimension {item} is out of range (0..{2**31 - 1})")
        dims.append(int(item))
    return tuple(dims)


@dataclass(frozen=True)
class FileSpec:
    """``name:file[,name2:file2]``; the name ends at the last colon unless it is in single quotes."""

    metavar: str = "name:file[,...]"
    allowed: str = "name:file[,name2:file2]"

    def __call__(self, text: str) -> dict[str, str]:
        files: dict[str, str] = {}
        for part in split_quoted(text):
            quoted = re.fullmatch(r"'([^']+)':(.+)", part)
            name, file = (quoted[1], quoted[2]) if quoted else part.rpartition(":")[::2]
            if not name or not file:
                raise ValueError(f"{part!r} is not name:file")
            if name in files:
                raise ValueError(f"input {name!r} is given twice")
            files[name] = unquote(file)
        return files


@dataclass(frozen=True)
class MemoryPools:
    """``pool:size[,...]``: pools ``workspace`` and ``tacticSharedMem``; the size is in MiB unless it has a unit."""

    metavar: str = "POOL:SIZE[,...]"
    allowed: str = "workspace or tacticSharedMem, e.g. workspace:512M"
    pools: tuple[str, ...] = ("workspace", "tacticSharedMem")

    def __call__(self, text: str) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for part in text.split(","):
            pool, colon, size = part.strip().partition(":")
            if pool.startswith("dla"):
                raise ValueError(f"pool {pool!r} belongs to DLA cores, which trtcli does not use")
            if pool not in self.pools:
                raise ValueError(f"unknown memory pool {pool!r} ({', '.join(self.pools)})")
            if pool in sizes:
                raise ValueError(f"pool {pool!r} is given twice")
            if not colon or not size:
                raise ValueError(f"pool {pool!r} has no size; write {pool}:512M")
            sizes[pool] = byte_size(size)
        return sizes


_UNITS = {"": 2**20, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def byte_size(text: str) -> int:
    """Bytes of ``512``, ``1.5G``, ``48KiB``, ``16 MB``, ``100B``: base-2 units, MiB when there is none.

    Raises:
        ValueError: no number, a negative one, an unknown unit, or more than 2**60 bytes.
    """
    match = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*([A-Za-z]*)\s*", text)
    if not match:
        raise ValueError(f"{text!r} is not a size; write a number and a unit: 512M, 1.5G, 48K, 100B")
    unit = re.sub(r"(?<=[kmg])i?b$", "", match[2].lower())
    if unit not in _UNITS:
        raise ValueError(f"{text!r} has the unknown unit {match[2]!r} (B, K, M, G; also KiB, MB ...: all base 2)")
    bytes_ = float(match[1]) * _UNITS[unit]
    if bytes_ < 0 or bytes_ > 2**60 or not math.isfinite(bytes_):
        raise ValueError(f"{text!r} is out of range (0..2^60 bytes)")
    return int(bytes_)


@dataclass(frozen=True)
class Pins:
    """``layer:tactic[,...]``; the layer is what stands before the last colon. Commas in quotes or brackets belong to names."""

    metavar: str = "LAYER:TACTIC[,...]"
    allowed: str = "a layer and a tactic's id"

    def __call__(self, text: str) -> tuple[tuple[str, str], ...]:
        pairs = []
        for part in split_quoted(text):
            layer, _, tactic = part.rpartition(":")
            if not layer or not tactic:
                raise ValueError(f"{part!r} is not LAYER:TACTIC")
            pairs.append((unquote(layer.strip()), tactic.strip()))
        return tuple(pairs)


TACTIC_SOURCES = ("CUBLAS_LT", "CUDNN", "CUBLAS", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")


@dataclass(frozen=True)
class TacticSources:
    """``+NAME,-NAME,...``: the names that are turned on. All are off at first, and case does not matter."""

    metavar: str = "+NAME|-NAME[,...]"
    allowed: str = f"each name with + or -: {', '.join(TACTIC_SOURCES)}"

    def __call__(self, text: str) -> tuple[str, ...]:
        signs: dict[str, str] = {}
        for part in text.split(","):
            sign, name = part.strip()[:1], part.strip()[1:].upper()
            if sign not in ("+", "-"):
                raise ValueError(f"a tactic source must be prefixed with + or -, found {part.strip()!r}")
            if name not in TACTIC_SOURCES:
                raise ValueError(f"unknown tactic source {part.strip()[1:]!r}; there are {', '.join(TACTIC_SOURCES)}")
            if signs.setdefault(name, sign) != sign:
                raise ValueError(f"cannot enable and disable {name}")
        return tuple(name for name in TACTIC_SOURCES if signs.get(name) == "+")


@dataclass(frozen=True)
class LayerPrecisions:
    """``layer:type[,...]``; the layer (or ONNX node, or pattern with ``*``) is what stands before the last colon."""

    metavar: str = "LAYER:TYPE[,...]"
    allowed: str = "a layer or ONNX node, and fp32, fp16 or bf16"

    def __call__(self, text: str) -> tuple[tuple[str, str], ...]:
        pairs = []
        for part in split_quoted(text):
            layer, _, dtype = part.rpartition(":")
            if not layer or dtype not in ("fp32", "fp16", "bf16"):
                raise ValueError(f"{part!r} is not LAYER:TYPE with fp32, fp16 or bf16 (8-bit types come from the model's own Q/DQ nodes)")
            pairs.append((unquote(layer.strip()), dtype))
        return tuple(pairs)


IO_TYPES = {
    "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "int32": "int32", "int64": "int64", "uint8": "uint8", "bool": "bool",
    "fp8": "float8_e4m3fn",
}  # fmt: skip
IO_LAYOUTS = ("chw", "hwc", "hwc8", "hwc16", "dhwc", "dhwc8")
_VECTORS = ("chw2", "chw4", "chw16", "chw32", "cdhw32", "dla_linear", "dla_hwc4")


@dataclass(frozen=True)
class IOFormats:
    """``[type:]layout[+layout...][,...]``: a text for each tensor, as :func:`io_format` reads it."""

    metavar: str = "[TYPE:]LAYOUT[+LAYOUT][,...]"
    allowed: str = f"layouts {', '.join(IO_LAYOUTS)}; types {', '.join(IO_TYPES)}"

    def __call__(self, text: str) -> tuple[str, ...]:
        found = tuple(part.strip() for part in text.split(","))
        for part in found:
            io_format(part)
        return found


def io_format(text: str) -> tuple[str, tuple[str, ...]]:
    """The type (empty where none is given) and the layouts allowed in ``fp16:chw+hwc8``.

    Raises:
        ValueError: an unknown type or layout, or two types.
    """
    types, layouts = [], []
    for part in text.split("+"):
        dtype, colon, layout = part.strip().rpartition(":")
        if colon and dtype not in IO_TYPES:
            raise ValueError(f"Invalid data type {dtype} in {part!r}: it can be {', '.join(IO_TYPES)}")
        if layout not in IO_LAYOUTS:
            why = "vectors of channels and DLA's formats are not done; " if layout in _VECTORS else ""
            raise ValueError(f"Invalid TensorFormat {layout}: {why}it can be {', '.join(IO_LAYOUTS)}")
        types += [dtype] if colon else []
        layouts.append(layout)
    if len(set(types)) > 1:
        raise ValueError(f"{text!r} names {len(set(types))} types: a tensor has one")
    return (types or [""])[0], tuple(dict.fromkeys(layouts))


@dataclass(frozen=True)
class FusionRules:
    """``rule[@layer][,...]``, as ``(rule, layer)`` pairs; the layer (or ONNX node) is empty when not given."""

    metavar: str = "RULE[@LAYER]"
    allowed: str = "a fusion rule, or all; @ and a layer limit it to that layer"

    def __call__(self, text: str) -> tuple[tuple[str, str], ...]:
        pairs = []
        for part in split_quoted(text):
            rule, at, layer = part.partition("@")
            if not rule or (at and not layer):
                raise ValueError(f"{part!r} is not {self.metavar}")
            pairs.append((rule.strip(), unquote(layer.strip())))
        return tuple(pairs)


@dataclass(frozen=True)
class Names:
    """A comma-separated list of names."""

    metavar: str = "NAME[,...]"
    allowed: str = ""

    def __call__(self, text: str) -> tuple[str, ...]:
        return tuple(unquote(part) for part in split_quoted(text))


def split_quoted(text: str) -> list[str]:
    """``text`` split at commas that stand outside of single quotes and of balanced brackets, which names of layers and tactics have:
    ``fusedPointwiseNode(add1, relu1):cpu.pointwise.blocks[block=64,threads=1]`` is one piece.

    Raises:
        ValueError: unbalanced quotes, or an empty piece.
    """
    if text.count("'") % 2:
        raise ValueError(f"unbalanced ' in {text!r}")
    bare = re.sub(r"'[^']*'", "", text)
    balanced = all(bare.count(one) == bare.count(other) for one, other in ("()", "[]"))
    pieces, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == "'"
        if not quoted and balanced:
            depth += (letter in "([") - (letter in ")]")
        if letter == "," and not quoted and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    parts = [piece.strip() for piece in pieces]
    if not all(parts):
        raise ValueError(f"{text!r} has an empty entry")
    return parts


def unquote(text: str) -> str:
    """``text`` without the single quotes around it."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == "'" else text
