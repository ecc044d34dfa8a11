"""Convolutions by cuDNN, where ``--tacticSources=+CUDNN`` asks for it: channels-last, with bias, residual sum and ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Convolution
from tactics.cuda.conv.common import Window, window_of
from tactics.cuda.gemm.common import C_TYPES
from tactics.cuda.libraries.affine import Affine, affine_epilogue
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    LibraryCall,
    Plan,
    Refusal,
    Tactic,
    Workload,
    config,
    floor_seconds,
)

SOURCE = "CUDNN"
MIB = 1 << 20
# (cudnnConvolutionFwdAlgo_t, scratch memory that it may use): implicit GEMM with precomputed indices, Winograd, implicit GEMM
SEARCH = ((1, 0), (1, 32 * MIB), (7, 64 * MIB), (6, 32 * MIB), (0, 0))


@dataclass(frozen=True)
class ConvolutionCall:
    """``out = activation(scale * conv(x, weights) + bias + residual)``, two-dimensional, channels-last.

    Buffers: ``x`` [batch][height][width][channels], ``weights`` [out channels][taps...][channels / groups], ``out``, ``bias`` (per output
    channel, in the type of ``out``), perhaps ``residual`` (as ``out``), ``workspace``. Pairs are (y, x).
    """

    batch: int
    channels: int
    out_channels: int
    groups: int
    input: tuple[int, int]
    output: tuple[int, int]
    taps: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    x: DataType
    out: DataType
    tf32: bool = True
    scale: float = 1.0
    residual: bool = False
    activation: str = ""
    algorithm: int = 1


class Cudnn(Tactic):
    """``cudnnConvolutionBiasActivationForward`` with each algorithm that may be fast."""

    id = "cuda.cudnn"
    device = "cuda"
    ops = (Convolution,)
    source = SOURCE

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        x, weights, out = workload.inputs[0].dtype, workload.inputs[1].dtype, workload.outputs[0].dtype
        if x not in (*C_TYPES, DataType.INT8) or weights is not x:
            return Refusal(f"inputs are {x.label} and {weights.label}; this source takes FP32, FP16, BF16 or INT8, both the same")
        if out is not (DataType.FLOAT if x is DataType.INT8 else x):
            return Refusal(f"{x.label} in, {out.label} out")
        if not workload.is_constant(1):
            return Refusal("the weights are computed by the network")
        window = window_of(workload)
        if isinstance(window, Refusal):
            return window
        if window.input[0] != 1 or window.taps[0] != 1 or window.pad[0] != 0:
            return Refusal("three spatial dimensions; this source takes up to two")
        if window.pixels * window.out_channels * window.depth == 0:
            return Refusal("an empty convolution")
        for size, pad, taps, stride, dilation, wanted in list(
            zip(window.input, window.pad, window.taps, window.stride, window.dilation, window.output, strict=True)
        )[1:]:
            found = (size + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
            if found != wanted:
                return Refusal(f"padding that is not the same at both ends: {wanted} positions, cuDNN would have {found}")
        if x is DataType.INT8 and (window.group_in % 4 or window.group_out % 4):
            return Refusal(f"{window.group_in} and {window.group_out} channels; INT8 wants multiples of 4")
        affine = affine_epilogue(workload)
        if affine is None or affine.activation not in ("", "relu"):
            return Refusal("the epilogue is not relu(scale * x + bias + residual)")
        if affine.bias is not None and not workload.is_constant(affine.bias):
            return Refusal("the bias is computed by the network")
        if affine.residual is not None and workload.inputs[affine.residual].dtype is not out:
            return Refusal(f"the residual is {workload.inputs[affine.residual].dtype.label}, the output {out.label}")
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [config(algorithm=algorithm, workspace=size) for algorithm, size in SEARCH]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return 4e-6 + 1.5 * floor_seconds(workload, device)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Weights channels-last, and the bias (zeros without one)."""
        weights = np.ascontiguousarray(np.moveaxis(constants[1], 1, -1))
        affine = affine_epilogue(workload)
        assert isinstance(affine, Affine)
        bias = np.zeros(len(weights)) if affine.bias is None else constants[affine.bias].reshape(-1)
        return weights, bias.astype(workload.outputs[0].dtype.numpy)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        window, affine, chosen = window_of(workload), affine_epilogue(workload), dict(config)
        assert isinstance(window, Window) and isinstance(affine, Affine)
        call = ConvolutionCall(
            window.batch, window.in_channels, window.out_channels, window.groups, window.input[1:], window.output[1:], window.taps[1:],
            window.stride[1:], window.pad[1:], window.dilation[1:], workload.inputs[0].dtype, workload.outputs[0].dtype, workload.tf32,
            affine.scale, affine.residual is not None, affine.activation, chosen["algorithm"],
        )  # fmt: skip
        buffers = [
            ("x", Buffer("input", 0)), ("weights", Buffer("packed", 0)), ("bias", Buffer("packed", 1)), ("out", Buffer("output")),
            ("workspace", Buffer("workspace")),
        ]  # fmt: skip
        if affine.residual is not None:
            buffers.append(("residual", Buffer("input", affine.residual)))
        return Plan((LibraryCall(SOURCE, call, tuple(buffers), chosen["workspace"]),), chosen["workspace"])


TACTICS = (Cudnn(),)
