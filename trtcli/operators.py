"""The table of operators in docs/operators.md: ``python -m trtcli.operators > docs/operators.md``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fusion.importer import functions, registry, symbolic
from fusion.importer.graph import CONTROL
from fusion.importer.load import NEWEST_OPSET, OLDEST_OPSET
from fusion.importer.sequences import SEQUENCE_OPERATORS
from fusion.importer.tensors import named_types

FLOATS = ("bfloat16", "double", "float", "float16")
INTEGERS = ("int16", "int32", "int64", "int8", "uint16", "uint32", "uint64", "uint8")
NARROW = ("float4e2m1", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "float8e8m0", "int2", "int4", "uint2", "uint4")

# What an operator does not do, where ONNX would allow it.
RESTRICTIONS = {
    "Attention": "lengths of keys, scores as output, and causal attention over other numbers of keys without a past are composed of several layers",
    "AveragePool": "1 to 3 spatial axes",
    "BatchNormalization": "no running statistics as outputs",
    "Conv": "1 to 3 spatial axes, known window",
    "ConvInteger": "1 to 3 spatial axes, known window",
    "ConvTranspose": "1 to 3 spatial axes, known window",
    "DeformConv": "1 to 3 spatial axes, known window",
    "GatherND": "known length of the index tuples",
    "Resize": "on the GPU antialias with fixed sizes only (else the host computes it)",
    "GridSample": "integers and bool with nearest only; on the GPU 1 to 3 spatial axes",
    "GRU": "known hidden size",
    "LSTM": "known hidden size",
    "LinearAttention": "steps run one after another: slow for long sequences",
    "LpPool": "1 to 3 spatial axes",
    "MaxPool": "1 to 3 spatial axes",
    "MaxRoiPool": "two spatial axes",
    "RNN": "known hidden size",
    "RoiAlign": "two spatial axes",
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"), "not ONNX Runtime's numbers: Philox, the same on both devices"
    ),
    "DFT": "known length of inverse and of longer than 1024 points",
    "Dropout": "known ratio and training_mode",
    "MelWeightMatrix": "constant inputs",
    "STFT": "constant step",
    "com.microsoft.Attention": "no rotary embedding inside, no buffer shared by past and present",
    "com.microsoft.BiasDropout": "inference only, no mask as output",
    "com.microsoft.CDist": "euclidean and sqeuclidean",
    **dict.fromkeys(("com.microsoft.Irfft", "com.microsoft.Rfft"), "one axis, one-sided, not normalised"),
    "com.microsoft.DynamicQuantizeLSTM": "weights are dequantised; inputs and states are not rounded to 8 bits, so results are closer to the float model's",
    "com.microsoft.GatherBlockQuantized": "constant uint8 table of two dimensions, dequantised at build",
    "com.microsoft.GroupQueryAttention": "no cache of the window's size, no padded chunks of queries; quantised caches are dequantised before the attention",
    "com.microsoft.MatMulNBits": "constant weights, packed (2 bits: dequantised at build); 2, 4 or 8 bits, no g_idx",
    "com.microsoft.MultiHeadAttention": "no buffer shared by past and present, no beams, no scores as output",
    "com.microsoft.CausalConvWithState": "one axis, channels first, no windows of states",
    "com.microsoft.LinearAttention": "no windows of states; steps run one after another",
    "com.microsoft.MoE": "all experts are computed for every token; no sparse mixer",
    "com.microsoft.QAttention": "input and weights are dequantised; as Attention",
    "com.microsoft.RotaryEmbedding": "no scale, no packed batches",
    **dict.fromkeys(SEQUENCE_OPERATORS, "elements of one shape where a length or position is computed"),
    "SequenceErase": "known length and position",
    "SequenceMap": "known length",
    **dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), "never as graph input or output"),
}
@dataclass(frozen=True)
class Row:
    """One operator: opsets in which it exists here, how it is done, the types of its first input, what it does not do."""

    name: str
    opsets: str
    how: str
    types: str
    restrictions: str


def rows(domain: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """The operators of ``domain`` that trtcli takes, and those that it does not with the reason."""
    from onnx import defs

    taken, refused = [], []
    schemas: dict[str, list[Any]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == domain:
            schemas.setdefault(schema.name, []).append(schema)
    names = {*schemas, *registry.operators().get(domain, ()), *(CONTROL if not domain else ())}
    for name in sorted(names):
        versions = sorted(schemas.get(name, ()), key=lambda one: one.since_version)
        newest = versions[-1] if versions else None
        how = _how(domain, name, newest.since_version if newest is not None and not newest.deprecated else OLDEST_OPSET)
        if how:
            first = max(OLDEST_OPSET if not domain else 1, versions[0].since_version) if versions else OLDEST_OPSET if not domain else 1
            opsets = f"{first} to {newest.since_version - 1}" if newest is not None and newest.deprecated else f"{first}+"
            if newest is None and not domain:
                opsets = "6 to 9"  # experimental ones, which left the standard with opset 10
            taken.append(Row(name, opsets, how, _types(versions), RESTRICTIONS.get(f"{domain}.{name}" if domain else name, "")))
        elif newest is not None and not newest.deprecated:
            refused.append((name, functions.absence(domain, name, newest.since_version)))
    return taken, refused


def _how(domain: str, name: str, opset: int) -> str:
    if not domain and name in (*symbolic.ALWAYS, *SEQUENCE_OPERATORS):
        return "at import"
    if not domain and name in CONTROL:
        return "control flow"
    if registry.find(domain, name, opset) is not None:
        return "layers"
    return "function body" if functions.exists(domain, name, opset) else ""


def _types(versions: Iterable[Any]) -> str:
    """The types of the first input over all versions, those that trtcli has."""
    known = {name.lower() for name in named_types()}
    found: set[str] = set()
    for schema in versions:
        if schema.inputs:
            found |= {text.removeprefix("tensor(").removesuffix(")") for text in schema.inputs[0].types if text.startswith("tensor(")}
    found &= known
    words = []
    for title, group in (("floats", FLOATS), ("integers", INTEGERS), ("narrow", NARROW)):
        if set(group) <= found:
            words.append(title)
            found -= set(group)
    return ", ".join([*words, *sorted(found)])


def page() -> str:
    """The whole page, as Markdown."""
    import onnx

    taken, refused = rows("")
    microsoft, _ = rows(registry.MICROSOFT)
    parts = [
        "# Operators",
        "",
        f"Made by `python -m trtcli.operators` from the importer's registry and the schemas of onnx {'.'.join(onnx.__version__.split('.')[:2])}; "
        "a test holds it to be current.",
        "",
        f"trtcli reads opset {OLDEST_OPSET} to {NEWEST_OPSET}, as far as the installed onnx knows it. Every operator below runs on both devices, "
        "the CPU and the GPU, with the types that are listed (of its first input). ONNX's own node tests of all of them run in `make test` (CPU) and "
        "`pytest -m gpu` (GPU), through `trtcli.onnx_backend`; tests/onnx_cases.txt says which are left out and why.",
        "",
        "- *layers*: the operator becomes layers of trtcli's own. *function body*: ONNX defines it by other operators, which are imported in its "
        "place. *at import*: nothing is left of it in the engine. *control flow*: a layer with networks inside; a constant condition is resolved.",
        f"- *floats* are {', '.join(FLOATS)}; *integers* are {', '.join(INTEGERS)}; *narrow* are {', '.join(NARROW)}.",
        "- A size that the model computes (the target of a Reshape, K of a TopK, the count of a NonZero) is read by the host between two parts of "
        "the network (docs/architecture.md, \"Where the host steps in\"), unless it follows from the inputs' shapes: then it costs nothing. So are "
        "the scales of a Resize and the steps of a Slice. Axes that the model computes become branches, one per alternative, up to 32.",
        "- Sequences stand between nodes; those of computed length are one stacked tensor. A loop that carries a sequence is unrolled where its trip "
        "count is known (up to 128), else it may append one tensor of one shape per iteration. As a graph output `y`, a sequence gives the "
        "tensors `y.0`, `y.1` ..., one of computed length a tensor with its elements along axis 0; graph inputs are tensors.",
        "- Functions of the model itself are expanded. Other operators need a plugin (docs/plugins.md). A model with operators that trtcli does "
        "not take is refused with all such nodes at once. So are nodes with inputs of types, or with attributes, that neither the schema of the model's "
        "opset nor the newest one has.",
        "",
        "## ai.onnx",
        "",
        *_table(taken),
        "",
        "## com.microsoft",
        "",
        *_table(microsoft, narrow=True),
        "",
        "## Refused",
        "",
        "| operator | why |",
        "|---|---|",
        *(f"| {name} | {why} |" for name, why in refused),
        *(f"| {domain}.* | belongs to {what} |" for domain, what in functions.REFUSED_DOMAINS.items()),
        f"| {functions.BLOCKED}.* | {functions.BLOCKED_REASON} |",
    ]
    return "\n".join(parts) + "\n"


def _table(found: Iterable[Row], narrow: bool = False) -> list[str]:
    if narrow:
        return ["| operator | how | restrictions |", "|---|---|---|", *(f"| {row.name} | {row.how} | {row.restrictions} |" for row in found)]
    return [
        "| operator | opsets | how | types | restrictions |",
        "|---|---|---|---|---|",
        *(f"| {row.name} | {row.opsets} | {row.how} | {row.types} | {row.restrictions} |" for row in found),
    ]


if __name__ == "__main__":
    print(page(), end="")
