"""Experimental operators that were removed from ONNX at opset 10 and that old models still hold."""

from __future__ import annotations

import numpy as np

from fusion.importer.builder import X0, X1, Builder, call, literal
from fusion.importer.node import Node
from fusion.importer.operators.convolution import per_channel
from fusion.importer.registry import operator
from fusion.importer.values import Value


@operator("ImageScaler")
def image_scaler(b: Builder, node: Node) -> Value:
    """``scale * x + bias``, a bias per channel."""
    x = node.input(0)
    bias = b.constant(np.asarray(node.required("bias"), x.dtype.numpy), "bias")
    scaled = call("mul", X0, literal(node.attr("scale", 1.0), x.dtype))
    return b.pointwise(call("add", scaled, X1), x, per_channel(b, bias, x.rank, "bias"))


@operator("ParametricSoftplus")
def parametric_softplus(b: Builder, node: Node) -> Value:
    """``alpha * softplus(beta * x)``"""
    x = node.input(0)
    inner = call("softplus", call("mul", X0, literal(node.required("beta"), x.dtype)))
    return b.pointwise(call("mul", inner, literal(node.required("alpha"), x.dtype)), x)


@operator("ScaledTanh")
def scaled_tanh(b: Builder, node: Node) -> Value:
    """``alpha * tanh(beta * x)``"""
    x = node.input(0)
    inner = call("tanh", call("mul", X0, literal(node.required("beta"), x.dtype)))
    return b.pointwise(call("mul", inner, literal(node.required("alpha"), x.dtype)), x)
