"""relu(Conv(x, w)) -> Conv(x, w, epilogue=relu), for any activation; also Deconv."""

from __future__ import annotations

from fusion.ops import Convolution, Deconvolution
from fusion.rules._epilogue import epilogue_rule, is_activation

RULE = epilogue_rule(
    "convolution-activation",
    __doc__.splitlines()[0],
    (Convolution, Deconvolution),
    lambda graph, layer, reader: is_activation(reader),
)
