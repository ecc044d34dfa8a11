"""Operators that read at computed positions: GridSample, DeformConv, RoiAlign, MaxRoiPool; and Col2Im, which writes windows back."""

from __future__ import annotations

from fusion.dims import product
from fusion.importer.builder import Builder
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.convolution import bias_epilogue
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import DeformableColumns, Fold, GridSample, MatrixMultiply, RoiAlign, RoiPool


@operator("GridSample")
def grid_sample(b: Builder, node: Node) -> Value:
    """Four dimensions until opset 20 (then named bilinear and bicubic), any number since."""
    mode = node.attr("mode", "linear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    op = GridSample(mode, node.attr("padding_mode", "zeros"), bool(node.attr("align_corners", 0)))
    return b.layer(op, node.input(0), node.input(1))


@operator("DeformConv")
def deform_conv(b: Builder, node: Node) -> Value:
    """The columns at the shifted positions, then a matrix product per group."""
    x, weights, offset, mask = node.input(0), node.input(1), node.input(2), node.optional(4)
    sizes, rank = weights.shape[2:], x.rank - 2
    if not 1 <= rank <= 3 or not all(isinstance(size, int) for size in sizes):
        raise Unsupported(f"x of shape {x.shape} and weights of shape {weights.shape}; 1 to 3 known window sizes are needed")
    pads = node.attr("pads", (0,) * (2 * rank))
    columns = DeformableColumns(
        tuple(sizes), node.attr("strides", (1,) * rank), tuple(pads[:rank]),  # type: ignore[arg-type]
        node.attr("dilations", (1,) * rank), node.attr("offset_group", 1), mask is not None,
    )  # fmt: skip
    inputs = (x, offset) if mask is None else (x, offset, mask)
    found = b.layers(columns, inputs, "columns")[0]
    groups, outputs, depth, out = node.attr("group", 1), weights.shape[0], product(weights.shape[1:]), offset.shape[2:]
    found = b.reshape(found, (x.shape[0], groups, depth, product(out)), "column_groups")
    kernel = b.reshape(weights, (1, groups, outputs // groups, depth), "weight_groups")
    result = b.reshape(b.layer(MatrixMultiply(), kernel, found), (x.shape[0], outputs, *out), "result")
    epilogue, extras = bias_epilogue(b, node.optional(3), x.rank)
    return b.pointwise(epilogue, result, *extras, suffix="biased") if extras else result


@operator("RoiAlign")
def roi_align(b: Builder, node: Node) -> Value:
    """``coordinate_transformation_mode`` came with opset 16; before, coordinates were not shifted by half an element."""
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    op = RoiAlign(
        (node.attr("output_height", 1), node.attr("output_width", 1)), node.attr("sampling_ratio", 0), node.attr("spatial_scale", 1.0),
        node.attr("mode", "avg").lower() == "max", node.attr("coordinate_transformation_mode", default) == "half_pixel",
    )  # fmt: skip
    return b.layer(op, node.input(0), node.input(1), node.input(2))


@operator("MaxRoiPool")
def max_roi_pool(b: Builder, node: Node) -> Value:
    size = node.required("pooled_shape")
    if len(size) != 2:
        raise Unsupported(f"pooled_shape {size}; it takes height and width")
    return b.layer(RoiPool(tuple(size), node.attr("spatial_scale", 1.0)), node.input(0), node.input(1))


@operator("Col2Im")
def col2im(b: Builder, node: Node) -> Value:
    image, window = b.dims(node.input(1), "image_shape"), b.ints(node.input(2), "block_shape")
    rank = len(image)
    pads = node.attr("pads", (0,) * (2 * rank))
    strides, dilations = node.attr("strides", (1,) * rank), node.attr("dilations", (1,) * rank)
    if len(window) != rank or len(pads) != 2 * rank or len(strides) != rank or len(dilations) != rank:
        raise Unsupported(f"block_shape {window}, pads {pads}, strides {strides}, dilations {dilations} for an image of {rank} dimensions")
    return b.layer(Fold(image, window, strides, tuple(pads[:rank]), tuple(pads[rank:]), dilations), node.input(0))
