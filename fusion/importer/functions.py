"""Operators without an importer of their own: ONNX function bodies, and constant folding by onnx's reference evaluator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion.dims import product
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.schemas import schema
from fusion.importer.tensors import onnx_type_of
from fusion.importer.values import Value, constant

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
REFERENCE_LIMIT = 1 << 20  # elements: the reference evaluator is for small leftovers


def exists(domain: str, name: str, opset: int) -> bool:
    """Whether the operator has an ONNX function body."""
    found = schema(domain, name, opset)
    if found is None or name in RANDOM:
        return False
    return bool(found.has_function or found.has_context_dependent_function)


# Operators that trtcli refuses for good, by what they work on.
REFUSED = {
    **dict.fromkeys(("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"), "texts"),
    "ImageDecoder": "compressed images",
}
REFUSED_DOMAINS = {"ai.onnx.ml": "classical machine learning", "ai.onnx.preview.training": "training", "ai.onnx.training": "training"}
BLOCKED = "com.microsoft.nchwc"  # ONNX Runtime's own layout of channels in blocks
BLOCKED_REASON = "it is laid out for the CPU on which ONNX Runtime optimised the model with ORT_ENABLE_ALL; save it with ORT_ENABLE_EXTENDED, or use the model from before"


def absence(domain: str, name: str, opset: int) -> str:
    """Why an operator without importer and function body cannot be imported."""
    if not domain and name in REFUSED:
        return f"it works on {REFUSED[name]}, which trtcli does not run; do that part outside of the model"
    if domain in REFUSED_DOMAINS:
        return f"it belongs to {REFUSED_DOMAINS[domain]}, which trtcli does not run; cut it off the model"
    if domain == BLOCKED:
        return BLOCKED_REASON
    unknown = not domain and opset and schema(domain, name, opset) is None
    reason = "no such operator in this opset" if unknown else "trtcli does not support this operator"
    near = _near(domain, name)
    if near:
        reason += f"; near it: {', '.join(near)}"
    return f"{reason}; --plugins=FILE.py can describe it (docs/plugins.md)" if domain or unknown else reason


# What TensorRT's plugins in exported models do, as ONNX operators.
TENSORRT_PLUGINS = {
    **dict.fromkeys(("BatchedNMS_TRT", "BatchedNMSDynamic_TRT", "EfficientNMS_TRT", "EfficientNMS_ONNX_TRT", "NMS_TRT"), "NonMaxSuppression"),
    **dict.fromkeys(("PyramidROIAlign_TRT", "ROIAlign_TRT"), "RoiAlign"),
    "InstanceNormalization_TRT": "InstanceNormalization",
    "MultiscaleDeformableAttnPlugin_TRT": "GridSample",
}


def _near(domain: str, name: str) -> list[str]:
    """Operators that trtcli knows by the same or a similar name: in the same domain by their names, in others with their domain."""
    from difflib import get_close_matches

    from fusion.importer import registry

    if name in TENSORRT_PLUGINS:
        return [TENSORRT_PLUGINS[name]]
    known = registry.operators()
    found = [_full(other) + name for other, names in known.items() if other != domain and name in names]
    same = {one.lower(): one for one in known.get(domain, ())}
    return found + [same[one] for one in get_close_matches(name.lower(), same, 2, 0.8)]


def _full(domain: str) -> str:
    return f"{domain or 'ai.onnx'}."


def body(node: Node) -> FunctionProto | None:
    """The function that defines the node's operator, for its attributes and input types; None when there is none."""
    from onnx import FunctionProto, TypeProto

    found = schema(node.domain, node.op, node.opset)
    if found is None or node.op in RANDOM or node.proto is None:
        return None
    fitting = [version for version in found.function_opset_versions if version <= node.opset]
    if fitting:
        result = FunctionProto()
        result.ParseFromString(found.get_function_with_opset_version(max(fitting)))
        return result
    fitting = [version for version in found.context_dependent_function_opset_versions if version <= node.opset]
    if not fitting:
        return None
    types = []
    for value in node.inputs:
        type_ = TypeProto()
        if value is not None:
            type_.tensor_type.elem_type = onnx_type_of(value.dtype)
            for dim in value.shape:
                entry = type_.tensor_type.shape.dim.add()
                if isinstance(dim, int):
                    entry.dim_value = dim
                else:
                    entry.dim_param = str(dim)
        types.append(type_.SerializeToString())
    try:
        text = found.get_context_dependent_function_with_opset_version(
            max(fitting), node.proto.SerializeToString(), types
        )
    except Exception:  # noqa: BLE001 - onnx raises several kinds for inputs that do not fit
        return None
    result = FunctionProto()
    result.ParseFromString(text)
    return result if result.node else None


def defaults(node: Node) -> list[AttributeProto]:
    """The default attributes of the node's operator, which its function body may refer to."""
    from onnx import AttributeProto

    found = schema(node.domain, node.op, node.opset)
    given = [item.default_value for item in found.attributes.values()] if found is not None else []
    return [item for item in given if item.type != AttributeProto.UNDEFINED]


def folded(node: Node, origin: str) -> tuple[Value | None, ...] | None:
    """The node's results when all its inputs are small constants; None when they are not, or it cannot be evaluated."""
    known = [value for value in node.inputs if value is not None]
    if not known or node.op in RANDOM or node.proto is None or not all(value.is_constant for value in known):
        return None
    if any(product(value.shape) > REFERENCE_LIMIT for value in known):  # type: ignore[operator]
        return None
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    proto = type(node.proto)()
    proto.CopyFrom(node.proto)
    inputs = {name: value for name, value in zip(proto.input, node.inputs, strict=True) if name and value is not None}
    graph = helper.make_graph(
        [proto],
        "folded",
        [helper.make_tensor_value_info(name, onnx_type_of(value.dtype), None) for name, value in inputs.items()],
        [helper.make_value_info(name, helper.make_tensor_type_proto(0, None)) for name in proto.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, node.opset)])
    try:
        results = iter(ReferenceEvaluator(model).run(None, {name: value.array for name, value in inputs.items()}))
        return tuple(constant(next(results), output, origin) if output else None for output in proto.output)
    except Unsupported:
        raise
    except Exception:  # noqa: BLE001 - whatever the evaluator says, the node is then reported as unsupported
        return None
