"""A custom operator: Snake, the periodic activation of audio codecs, ``x + sin(a x)^2 / a`` with a learned ``a`` per channel.

    trtcli --onnx=model.onnx --plugins=examples/snake_plugin.py

Source: Ziyin, Hartwig, Ueda, "Neural Networks Fail to Learn Periodic Functions and How to Fix It" (2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trtcli.plugins import (
    Attributes,
    DataType,
    Input,
    KernelLaunch,
    Number,
    Output,
    Plugin,
    TensorType,
    ceil_div,
    product,
)

SOURCE = r"""
#include <cuda_fp16.h>

// x and out are [rows, inner]; the channel of a row is row % channels. One thread per element.
extern "C" __global__ void snake(const ELEMENT* x, const ELEMENT* alpha, ELEMENT* out, long long count, int channels, int inner) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float a = static_cast<float>(alpha[i / inner % channels]), value = static_cast<float>(x[i]);
    const float wave = sinf(a * value);
    out[i] = static_cast<ELEMENT>(value + wave * wave / a);
}
"""
TYPES = {DataType.FLOAT: "float", DataType.HALF: "__half"}


def infer(inputs: Sequence[TensorType], attributes: Attributes) -> Sequence[TensorType]:
    """Inputs: x ``[N, C, ...]``, alpha ``[C]``. The output is like x."""
    x, alpha = inputs
    if x.dtype not in TYPES or alpha.dtype is not x.dtype or alpha.shape != x.shape[1:2]:
        raise ValueError(f"x {x.dtype.value} {x.shape}, alpha {alpha.dtype.value} {alpha.shape}; one alpha per channel is needed")
    return [x]


def evaluate(inputs: Sequence[np.ndarray], attributes: Attributes) -> Sequence[np.ndarray]:
    """The meaning in NumPy, computed in float32."""
    x, alpha = (array.astype(np.float32) for array in inputs)
    a = alpha.reshape(-1, *(1,) * (x.ndim - 2))
    return [(x + np.sin(a * x) ** 2 / a).astype(inputs[0].dtype)]


def launch(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes) -> KernelLaunch:
    """Sizes may be symbolic: they are filled in when the shapes are known."""
    x = inputs[0]
    count = product(x.shape)
    return KernelLaunch(
        entry="snake",
        grid=(ceil_div(count, 256),),
        block=(256,),
        arguments=(Input(0), Input(1), Output(0), Number(count, "i64"), Number(x.shape[1]), Number(product(x.shape[2:]))),
        defines=(("ELEMENT", TYPES[x.dtype]),),
    )


PLUGINS = (Plugin("example", "Snake", infer, evaluate, SOURCE, launch),)
