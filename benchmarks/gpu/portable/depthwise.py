"""Depthwise convolutions: checks, and times beside torch and a copy of as many bytes."""

from __future__ import annotations

from benchmarks.gpu.portable.cases import Cases
from benchmarks.gpu.portable.conv import conv_case, conv_reference
from benchmarks.gpu.portable.expressions import RELU_BIAS, activated
from benchmarks.gpu.portable.report import DEPTHWISE, depthwise_case
from tactics.cuda.conv.depthwise import Depthwise
from tactics.cuda.conv.depthwise_mma import DepthwiseMma


def check_depthwise(cases: Cases) -> None:
    cases.gpu.torch.backends.cudnn.benchmark = False
    for kind in ("f16", "bf16", "f32"):
        for c in (8, 12, 33, 96) if kind == "f16" else (20,):
            for window, stride, dilation in (((3, 3), (1, 1), (1, 1)), ((3, 3), (2, 2), (1, 1)), ((5, 5), (1, 1), (1, 1)), ((5, 5), (2, 2), (1, 1)), ((7, 7), (1, 1), (1, 1)),
                                             ((3, 3), (1, 1), (2, 2)), ((1, 3), (1, 2), (1, 1)), ((3, 5), (2, 1), (1, 1))):  # fmt: skip
                pad = tuple(d * (k - 1) // 2 for k, d in zip(window, dilation, strict=True))
                workload, inputs = conv_case(cases.gpu, 2, (15, 18), c, c, window, stride, pad, dilation, c, kind, RELU_BIAS, ("bias",))
                result = cases.gpu.torch.relu(conv_reference(cases.gpu, workload, inputs) + inputs[2].double())
                cases.verify(f"{kind} c{c} {window} s{stride} d{dilation}", (Depthwise(),), workload, inputs, result, 3 if c == 96 else 2)
        workload, inputs = conv_case(cases.gpu, 2, (31,), 24, 24, (3,), (1,), (1,), None, 24, kind)
        cases.verify(f"{kind} 1-D", (Depthwise(),), workload, inputs, conv_reference(cases.gpu, workload, inputs), None)


def time_depthwise(cases: Cases) -> None:
    """Every depthwise layer of the networks at batch 32, with bias and activation, beside torch and a copy of as many bytes."""
    functional = cases.gpu.torch.nn.functional
    for activation, c, size, window, stride in dict.fromkeys(layer for layers in DEPTHWISE.values() for layer, _ in layers):
        workload, inputs = conv_case(cases.gpu, 32, (size, size), c, c, (window, window), (stride, stride), (window // 2, window // 2), None, c,
                                     "f16", activated(activation), ("bias",))  # fmt: skip

        def torch_call(one, stride=stride, window=window, c=c):
            return functional.conv2d(one[0].movedim(-1, 1), one[1], one[2], stride, window // 2, 1, c)

        expected = None
        if size < 112:
            sums = conv_reference(cases.gpu, workload, inputs) + inputs[2].double()
            expected = functional.silu(sums) if activation == "swish" else cases.gpu.torch.relu(sums)
        case = depthwise_case(activation, c, size, window, stride)
        cases.timing(case, (Depthwise(),), workload, inputs, expected, torch_call, 4)
        cases.timing(case, (DepthwiseMma(),), workload, inputs, expected, None, 24)
        cases.queue.append((cases.time_copy, (case, workload)))
