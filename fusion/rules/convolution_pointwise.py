"""f(Conv(x, w)) -> Conv(x, w, epilogue=f), for any other pointwise f of one tensor and constants, a quantisation too; also Deconv."""

from __future__ import annotations

from fusion.ops import Convolution, Deconvolution
from fusion.rules._epilogue import epilogue_rule, is_activation, is_one_tensor

RULE = epilogue_rule(
    "convolution-pointwise",
    __doc__.splitlines()[0],
    (Convolution, Deconvolution),
    lambda graph, layer, reader: is_one_tensor(graph, reader) and not is_activation(reader),
)
