"""What convolutions and poolings share: padding and strides as the attributes give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusion.dims import Dim, Shape, ceil_div, dim_max
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.ratio import at_least


@dataclass(frozen=True)
class Window:
    """Size, stride, dilation and padding along each spatial axis."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pre: Shape
    post: Shape


def window(node: Node, spatial: Shape, sizes: Sequence[int]) -> Window:
    """The window of a node whose input has these spatial dimensions.

    Raises:
        Unsupported: attributes do not fit the number of dimensions.
    """
    rank = len(spatial)
    if len(sizes) != rank:
        raise Unsupported(f"a window of {len(sizes)} dimensions over {rank} spatial dimensions")
    strides = node.attr("strides", (1,) * rank)
    dilations = node.attr("dilations", (1,) * rank)
    pads: Shape = node.attr("pads", (0,) * (2 * rank))
    if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        raise Unsupported(f"strides {strides}, dilations {dilations} or pads {pads} do not fit {rank} spatial dimensions")
    mode = node.attr("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, sizes, strict=True)]
        totals = [same_padding(dim, r, stride) for dim, r, stride in zip(spatial, reach, strides, strict=True)]
        smaller = tuple(total // 2 for total in totals)
        larger = tuple(total - half for total, half in zip(totals, smaller, strict=True))
        pads = (*smaller, *larger) if mode == "SAME_UPPER" else (*larger, *smaller)
    elif mode == "VALID":
        pads = (0,) * (2 * rank)
    elif mode not in ("NOTSET", ""):
        raise Unsupported(f"auto_pad {mode!r}; known are NOTSET, SAME_UPPER, SAME_LOWER, VALID")
    return Window(tuple(sizes), tuple(strides), tuple(dilations), tuple(pads[:rank]), tuple(pads[rank:]))


def same_padding(size: Dim, reach: int, stride: int) -> Dim:
    """Total padding after which windows of ``reach`` give ``ceil(size / stride)`` positions."""
    total = (ceil_div(size, stride) - 1) * stride + reach - size
    return total if at_least(total, 0) else dim_max(total, 0)
