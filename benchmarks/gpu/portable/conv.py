"""(De)convolutions: checks, and times beside cuDNN through torch."""

from __future__ import annotations

import math
from dataclasses import replace

from benchmarks.gpu.portable.cases import Cases
from benchmarks.gpu.portable.device import Gpu
from benchmarks.gpu.portable.expressions import RELU_BIAS, RELU_BIAS_RESIDUAL
from fusion.network import TensorType
from fusion.ops import Convolution, Deconvolution
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.conv.mma_conv import MmaConvolution
from tactics.cuda.conv.simt_conv import SimtConvolution
from tactics.tactic import Workload


def conv_case(gpu: Gpu, n, spatial, c, o, window, stride, pad, dilation=None, groups=1, kind="f16", expression=None, extras=(), output_padding=None, planes=False):
    """(workload, inputs) of a channels-last (de)convolution; ``extras`` are "bias" and "residual"."""
    rank = len(spatial)
    dilation = dilation or (1,) * rank
    if output_padding is not None:
        op = Deconvolution(stride, pad, pad, dilation, output_padding, groups, True, expression or IDENTITY)
        w_shape = (c, o // groups, *window)
    else:
        op = Convolution(stride, pad, pad, dilation, groups, True, expression or IDENTITY, False if planes else None)
        w_shape = (o, c // groups, *window)
    x_shape = (n, c, *spatial) if planes else (n, *spatial, c)
    bare = replace(op, epilogue=IDENTITY)
    out = bare.infer([TensorType(gpu.types[kind], x_shape), TensorType(gpu.types[kind], w_shape)])[0]
    shapes = [(o,) if extra == "bias" else out.shape for extra in extras]
    depth = c // groups * math.prod(window)
    inputs = [gpu.normal(x_shape, kind), gpu.normal(w_shape, kind, depth**-0.5), *(gpu.normal(shape, kind) for shape in shapes)]
    types = tuple(TensorType(gpu.types[kind], tuple(one.shape)) for one in inputs)
    return Workload(op, types, op.infer(types), (False, True, *(extra == "bias" for extra in extras))), inputs


def conv_reference(gpu: Gpu, workload, inputs):
    """The float64 result before the epilogue, channels last."""
    op, functional = workload.op, gpu.torch.nn.functional
    rank = len(op.stride)
    x = inputs[0].double()
    if getattr(op, "reads_channels_last", True):
        x = x.movedim(-1, 1)
    if isinstance(op, Deconvolution):
        function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
        y = function(x, inputs[1].double(), None, op.stride, op.pre_padding, op.output_padding, op.groups, op.dilation)
    else:
        function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
        y = function(x, inputs[1].double(), None, op.stride, op.pre_padding, op.dilation, op.groups)
    return y.movedim(1, -1)


def check_conv(cases: Cases) -> None:
    cases.gpu.torch.backends.cudnn.benchmark = False
    both = (MmaConvolution(), SimtConvolution())

    def case(*sizes, count=3, residual=True, **more):
        extras = ("bias", "residual") if residual else ()
        workload, inputs = conv_case(cases.gpu, *sizes, expression=RELU_BIAS_RESIDUAL if residual else None, extras=extras, **more)
        result = conv_reference(cases.gpu, workload, inputs)
        if residual:
            result = cases.gpu.torch.relu(result + inputs[2].double() + inputs[3].double())
        cases.verify(f"{sizes} {more}", both, workload, inputs, result, count)

    case(2, (14, 14), 64, 64, (3, 3), (1, 1), (1, 1), count=30)  # every tile shape
    for kind in ("f16", "bf16", "f32"):
        case(2, (28, 27), 32, 48, (3, 3), (1, 1), (1, 1), kind=kind)
        case(3, (15, 17), 24, 40, (3, 3), (2, 2), (1, 1), kind=kind)
        case(2, (13, 11), 17, 19, (3, 2), (1, 2), (1, 0), kind=kind)
        case(2, (13, 11), 6, 20, (5, 3), (1, 1), (2, 1), kind=kind)
        case(2, (13, 11), 12, 20, (3, 3), (1, 1), (2, 2), (2, 2), kind=kind)
        case(2, (33, 35), 3, 64, (7, 7), (2, 2), (3, 3), kind=kind)
        case(2, (32, 32), 3, 64, (4, 4), (4, 4), (0, 0), kind=kind)
        case(2, (32, 32), 3, 96, (16, 16), (16, 16), (0, 0), kind=kind)
        case(2, (9, 9), 64, 72, (1, 1), (1, 1), (0, 0), kind=kind)
        case(2, (9, 9), 64, 72, (1, 1), (2, 2), (0, 0), kind=kind)
        case(2, (9, 10), 64, 32, (3, 3), (1, 1), (1, 1), groups=4, kind=kind)
        case(2, (9, 10), 12, 18, (3, 3), (1, 1), (1, 1), groups=3, kind=kind)
        case(3, (50,), 16, 24, (9,), (2,), (4,), kind=kind)
        case(2, (6, 9, 7), 8, 16, (3, 3, 3), (1, 2, 1), (1, 1, 1), kind=kind)
        case(2, (6, 9, 7), 5, 16, (2, 3, 3), (2, 1, 1), (0, 1, 1), (1, 2, 1), kind=kind)
    case(1, (7, 7), 512, 512, (3, 3), (1, 1), (1, 1), count=30)
    case(2, (9, 9), 64, 72, (1, 1), (1, 1), (0, 0), count=30)


def check_deconv(cases: Cases) -> None:
    """Deconvolutions by phases, image planes, and groups of few channels."""
    cases.gpu.torch.backends.cudnn.benchmark = False

    def case(*sizes, count=3, **more):
        workload, inputs = conv_case(cases.gpu, *sizes, expression=RELU_BIAS_RESIDUAL, extras=("bias", "residual"), **more)
        result = cases.gpu.torch.relu(conv_reference(cases.gpu, workload, inputs) + inputs[2].double() + inputs[3].double())
        cases.verify(f"{sizes} {more}", (MmaConvolution(), SimtConvolution()), workload, inputs, result, count)

    for kind in ("f16", "bf16", "f32"):
        case(2, (7, 9), 16, 24, (3, 3), (2, 2), (1, 1), kind=kind, output_padding=(1, 1))
        case(2, (7, 9), 16, 24, (2, 2), (2, 2), (0, 0), kind=kind, output_padding=(0, 0))
        case(2, (7, 9), 12, 18, (4, 3), (2, 1), (1, 1), (1, 2), 3, kind=kind, output_padding=(0, 0))
        case(2, (11,), 7, 9, (5,), (3,), (2,), kind=kind, output_padding=(1,))
        case(2, (33, 35), 3, 64, (7, 7), (2, 2), (3, 3), kind=kind, planes=True)
        case(2, (32, 32), 3, 96, (16, 16), (16, 16), (0, 0), kind=kind, planes=True)
        case(2, (9, 10), 32, 32, (3, 3), (1, 1), (1, 1), groups=8, kind=kind)
        case(2, (9, 10), 12, 24, (3, 3), (2, 2), (1, 1), groups=12, kind=kind)
    case(1, (8, 8), 512, 64, (4, 4), (2, 2), (1, 1), output_padding=(0, 0), count=16)


def _time_conv(cases: Cases, batch: int) -> None:
    torch = cases.gpu.torch
    layers = [
        (3, 224, 64, 7, 2), (64, 56, 64, 1, 1), (64, 56, 64, 3, 1), (64, 56, 256, 1, 1), (256, 56, 64, 1, 1), (256, 56, 128, 1, 1),
        (128, 56, 128, 3, 2), (128, 28, 512, 1, 1), (256, 56, 512, 1, 2), (512, 28, 128, 1, 1), (128, 28, 128, 3, 1),
        (512, 28, 256, 1, 1), (256, 28, 256, 3, 2), (256, 14, 1024, 1, 1), (512, 28, 1024, 1, 2), (1024, 14, 256, 1, 1),
        (256, 14, 256, 3, 1), (1024, 14, 512, 1, 1), (512, 14, 512, 3, 2), (512, 7, 2048, 1, 1), (1024, 14, 2048, 1, 2),
        (2048, 7, 512, 1, 1), (512, 7, 512, 3, 1),
    ]  # fmt: skip

    def fused(one, stride, pad):
        x = one[0].movedim(-1, 1)
        return torch.cudnn_convolution_relu(x, one[1], one[2], (stride, stride), (pad, pad), (1, 1), 1)

    for c, size, o, window, stride in layers:
        pad = window // 2
        workload, inputs = conv_case(cases.gpu, batch, (size, size), c, o, (window, window), (stride, stride), (pad, pad),
                                     expression=RELU_BIAS, extras=("bias",))  # fmt: skip
        expected = None
        if batch == 1:
            expected = torch.relu(conv_reference(cases.gpu, workload, inputs) + inputs[2].double())
        inputs[1] = inputs[1].contiguous(memory_format=torch.channels_last)
        cases.timing(f"conv b{batch} {c}x{size} -> {o} k{window} s{stride}", (MmaConvolution(),), workload, inputs, expected,
                     lambda one, stride=stride, pad=pad: fused(one, stride, pad), 12 if batch == 1 else 8)  # fmt: skip


def time_conv1(cases: Cases) -> None:
    _time_conv(cases, 1)


def time_conv32(cases: Cases) -> None:
    _time_conv(cases, 32)


def _time_layers(cases: Cases, name: str, layers, most: int, **more: object) -> None:
    functional = cases.gpu.torch.nn.functional
    for n, size, c, o, window, stride, pad, groups in layers:
        workload, inputs = conv_case(cases.gpu, n, (size, size), c, o, (window,) * 2, (stride,) * 2, (pad,) * 2, None, groups,
                                     expression=RELU_BIAS, extras=("bias",), **more)  # fmt: skip
        expected = cases.gpu.torch.relu(conv_reference(cases.gpu, workload, inputs) + inputs[2].double()) if n == 1 else None
        planes = bool(more.get("planes"))

        def torch_call(one, stride=stride, pad=pad, groups=groups):
            x = one[0] if planes else one[0].movedim(-1, 1)  # noqa: B023
            if "output_padding" in more:
                return functional.conv_transpose2d(x, one[1], one[2], stride, pad, 0, groups)
            return functional.conv2d(x, one[1], one[2], stride, pad, 1, groups)

        cases.timing(f"{name} b{n} {c}x{size} -> {o} k{window} s{stride} g{groups}", (MmaConvolution(),), workload, inputs, expected,
                     torch_call, most)  # fmt: skip


def time_deconv(cases: Cases) -> None:
    """U-Net's upsampling, and a generator's 4x4."""
    _time_layers(cases, "deconv", ((1, 16, 1024, 512, 2, 2, 0, 1), (1, 128, 128, 64, 2, 2, 0, 1), (8, 32, 256, 128, 4, 2, 1, 1)), 8,
                 output_padding=(0, 0))  # fmt: skip


def time_groups(cases: Cases) -> None:
    """ResNeXt-50 32x4d's 3x3 layers."""
    _time_layers(cases, "groups", ((1, 56, 128, 128, 3, 1, 1, 32), (32, 56, 128, 128, 3, 1, 1, 32), (32, 28, 256, 256, 3, 1, 1, 32),
                                   (32, 14, 512, 512, 3, 1, 1, 32)), 6)  # fmt: skip


def time_stem(cases: Cases) -> None:
    """First layers that read an image's planes."""
    _time_layers(cases, "stem planes", ((1, 224, 3, 64, 7, 2, 3, 1), (32, 224, 3, 64, 7, 2, 3, 1), (32, 224, 3, 32, 3, 2, 1, 1),
                                        (32, 224, 3, 768, 16, 16, 0, 1)), 6, planes=True)  # fmt: skip
