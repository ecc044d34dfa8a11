"""Dimensions that tensor cores do not like: which of a layer's, and what they are padded to.

Tensor cores multiply in fixed steps; a channel count, or a matrix dimension K or N, between two steps is computed as the next one: the kernels
fill up with zeros in shared memory, and rows that are no multiple of 16 bytes are loaded in narrower pieces; or the tensor is held with more channels than
the model gives it (:mod:`fusion.padded_channels`), where a measurement says that this is faster. Source of the steps: NVIDIA TensorRT, "Optimizing for Tensor Cores", table of suggested alignments (dense).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from fusion.dims import bind
from fusion.dtypes import DataType
from fusion.network import Layer, TensorType
from fusion.ops import Convolution, Deconvolution, MatrixMultiply, PackedMatrixMultiply, PrologueProduct
from trtcli.report.padding import NOT_PADDED, Padding

STEPS = {DataType.FLOAT: 4, DataType.HALF: 8, DataType.BF16: 8, DataType.INT8: 32, DataType.UINT8: 32}
NAMES = {DataType.FLOAT: "TF32"}  # what float32 products run as; other types under their own names


def alignment_notes(
    layer: Layer, tensors: Mapping[str, TensorType], sizes: Mapping[str, int], tf32: bool, padding: Padding = NOT_PADDED
) -> tuple[str, ...]:
    """A sentence per dimension of ``layer`` that is padded; empty when all fit, or the layer has no use for tensor cores. ``padding`` is what was
    decided about channels in memory."""
    op = layer.op.product if isinstance(layer.op, PrologueProduct) else layer.op
    if not layer.inputs or not isinstance(op, Convolution | Deconvolution | MatrixMultiply | PackedMatrixMultiply):
        return ()
    dtype = tensors[layer.inputs[0]].dtype
    step = STEPS.get(dtype, 0) if tf32 or dtype is not DataType.FLOAT else 0
    if not step:
        return ()
    shapes = [tuple(int(bind(dim, sizes)) for dim in tensors[name].shape) for name in layer.inputs[:2]]
    label = NAMES.get(dtype, dtype.label)
    notes = []
    for (name, size), tensor in zip(_dimensions(op, shapes), (layer.inputs[0], layer.outputs[0]), strict=False):
        if tensor in padding.channels:
            real, held = padding.channels[tensor]
            notes.append(f"{name} = {real} is no multiple of {step} ({label}): {held} in memory")
        elif size % step:
            tried = " (padding them in memory was tried: no faster)" if tensor in padding.slower else ""
            notes.append(f"{name} = {size} is no multiple of {step} ({label}): computed as {-(-size // step) * step}{tried}")
    return tuple(notes)


def _dimensions(op: Convolution | Deconvolution | MatrixMultiply | PackedMatrixMultiply, shapes: Sequence[tuple[int, ...]]) -> list[tuple[str, int]]:
    """(name, size) of what the table speaks of: channels in and out of a convolution, K and N of a product."""
    first, second = shapes
    if isinstance(op, PackedMatrixMultiply):
        return [("K", op.depth), ("N", second[0])] if prod(first[:-1]) > 1 else []
    if isinstance(op, MatrixMultiply):
        depth, columns = (second[-1], second[-2]) if op.transpose_b else second[-2:]
        # A product with one row or one column reads vectors: tensor cores have no part in it.
        rows = first[-1] if op.transpose_a else first[-2]
        return [] if 1 in (rows, columns) else [("K", depth), ("N", columns)]
    if isinstance(op, Convolution):
        outside, inside = second[0], second[1] * op.groups
    else:
        inside, outside = second[0], second[1] * op.groups
    if op.groups > 1 and op.groups == inside:  # depthwise: a product of vectors, not of matrices
        return []
    return [("input channels", inside), ("output channels", outside)]
