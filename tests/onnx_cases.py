"""ONNX's node tests, loaded once a process, and the checked-in list of those that are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, TypeProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase

LIST = Path(__file__).with_name("onnx_cases.txt")

# Relative and absolute, by type; integers, booleans and narrower floats must be equal. Layers compute narrow types in float32 and
# round once, ONNX's recorded results were rounded after every step.
TOLERANCES = {
    "float64": (1e-3, 1e-6),  # many cases are computed in float32 and stored as float64
    "float32": (1e-3, 1e-6),
    "float16": (4e-3, 1e-3),
    "bfloat16": (2e-2, 1e-2),
}


@cache
def cases() -> tuple[TestCase, ...]:
    """Every node test of the installed onnx (seven seconds)."""
    from onnx.backend.test.loader import load_model_tests

    found = load_model_tests(kind="node")
    for case in found:
        case.model = case.model or onnx.load(f"{case.model_dir}/model.onnx")
    return tuple(found)


@cache
def entries() -> Mapping[str, Mapping[str, str]]:
    """The list: per kind (``operator``, ``type``, ``out``, ``open``), a reason by name."""
    found: dict[str, dict[str, str]] = {"operator": {}, "type": {}, "out": {}, "open": {}}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            kind, name, reason = line.split(maxsplit=2)
            found[kind][name] = reason
    return found


def left_out(case: TestCase) -> str:
    """Why a case does not count, or an empty text."""
    listed = entries()
    reasons = [listed["operator"].get(name, "") for name in sorted(operators_of(case.model.graph))]
    reasons += [listed["type"].get(name, "") for name in sorted(_types_of(case.model))]
    return next(filter(None, [listed["out"].get(case.name, ""), *reasons]), "")


def operators_of(graph: GraphProto) -> set[str]:
    """The operators of a graph and its subgraphs, those of other domains as ``domain.Name``."""
    found = set()
    for node in graph.node:
        found.add(f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= operators_of(attribute.g)
    return found


def _types_of(model: ModelProto) -> set[str]:
    return {name for entry in (*model.graph.input, *model.graph.output) for name in _names(entry.type)}


def _names(type_: TypeProto) -> Iterable[str]:
    kind = type_.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        yield kind.removesuffix("_type")
        yield from _names(getattr(type_, kind).elem_type)
    elif kind == "tensor_type":
        yield TensorProto.DataType.Name(type_.tensor_type.elem_type)


def value(item: Any) -> Any:
    """The arrays of a case's input or output; a list for a sequence."""
    if isinstance(item, list | tuple):
        return [value(one) for one in item]
    return numpy_helper.to_array(item) if isinstance(item, TensorProto) else item


def check(found: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Raises AssertionError when results differ in number, type, shape or content."""
    assert len(found) == len(wanted), f"{len(found)} outputs, not {len(wanted)}"
    for number, (one, given) in enumerate(zip(found, map(value, wanted), strict=True)):
        if isinstance(given, list):
            assert isinstance(one, list), f"output {number} is no sequence"
            check(one, given)
            continue
        other = np.asarray(given)
        assert one.dtype == other.dtype, f"output {number} is {one.dtype}, not {other.dtype}"
        assert one.shape == other.shape, f"output {number} has shape {one.shape}, not {other.shape}"
        relative, absolute = TOLERANCES.get(one.dtype.name, (0, 0))
        np.testing.assert_allclose(one.astype(np.float64), other.astype(np.float64), relative, absolute)
