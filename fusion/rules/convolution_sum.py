"""Conv(x, w) + y -> Conv(x, w, y, epilogue=add); also min, max, mul and any expression of several tensors, and Deconv."""

from __future__ import annotations

from fusion.ops import Convolution, Deconvolution
from fusion.rules._epilogue import epilogue_rule, is_one_tensor

RULE = epilogue_rule(
    "convolution-sum",
    __doc__.splitlines()[0],
    (Convolution, Deconvolution),
    lambda graph, layer, reader: not is_one_tensor(graph, reader),
)
