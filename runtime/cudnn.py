"""The few functions of cuDNN that its tactic needs, through ctypes. Numbers are those of ``cudnn_ops.h`` and ``cudnn_cnn.h``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from threading import Lock
from typing import Any

from fusion.dtypes import DataType
from runtime.device import DeviceError
from runtime.libraries import Address, Owned, checked
from tactics.cuda.libraries.cudnn import ConvolutionCall
from tactics.tactic import LibraryCall

_TYPES = {DataType.FLOAT: 0, DataType.HALF: 2, DataType.INT8: 3, DataType.INT32: 4, DataType.BF16: 9}  # cudnnDataType_t
_NHWC = 1  # cudnnTensorFormat_t
_CROSS_CORRELATION = 1  # cudnnConvolutionMode_t
_DEFAULT_MATH, _TENSOR_MATH, _FMA_MATH = 0, 1, 3  # cudnnMathType_t
_RELU, _IDENTITY = 1, 5  # cudnnActivationMode_t
_PROPAGATE_NAN = 1


class Cudnn:
    """cuDNN in the current context. A handle has one stream, which is set before each call: one call at a time."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.cudnnGetVersion.restype = ctypes.c_size_t
        library.cudnnGetErrorString.restype = ctypes.c_char_p
        number = int(library.cudnnGetVersion())
        self.version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
        self._handle = ctypes.c_void_p()
        self._turn = Lock()
        self._call("cudnnCreate", ctypes.byref(self._handle))

    def prepared(self, step: LibraryCall, address: Address, stream: ctypes.c_void_p) -> Callable[[], int]:
        """See :class:`runtime.libraries.Binding`."""
        problem = step.problem
        assert isinstance(problem, ConvolutionCall)
        at = {role: ctypes.c_void_p(address(buffer)) for role, buffer in step.buffers}
        dtype = _TYPES[problem.x]
        x = self._tensor(dtype, problem.batch, problem.channels, problem.input)
        out = self._tensor(_TYPES[problem.out], problem.batch, problem.out_channels, problem.output)
        bias = self._tensor(_TYPES[problem.out], 1, problem.out_channels, (1, 1))
        weights = self._owned("FilterDescriptor")
        self._call("cudnnSetFilter4dDescriptor", weights, dtype, _NHWC, problem.out_channels, problem.channels // problem.groups, *problem.taps)
        convolution = self._convolution(problem)
        activation = self._owned("ActivationDescriptor")
        mode = _RELU if problem.activation else _IDENTITY
        self._call("cudnnSetActivationDescriptor", activation, mode, _PROPAGATE_NAN, ctypes.c_double(0.0))
        needed = ctypes.c_size_t(0)
        self._call(
            "cudnnGetConvolutionForwardWorkspaceSize", self._handle, x, weights, convolution, out, problem.algorithm, ctypes.byref(needed)
        )
        if needed.value > step.workspace:
            raise DeviceError(f"cuDNN's algorithm {problem.algorithm} needs {needed.value} bytes of workspace, {step.workspace} are planned")
        scale, other = ctypes.c_float(problem.scale), ctypes.c_float(1.0 if problem.residual else 0.0)
        run, set_stream, handle, turn = self._library.cudnnConvolutionBiasActivationForward, self._library.cudnnSetStream, self._handle, self._turn
        arguments = (
            handle, ctypes.byref(scale), x, at["x"], weights, at["weights"], convolution, problem.algorithm, at["workspace"],
            ctypes.c_size_t(step.workspace), ctypes.byref(other), out, at.get("residual", at["out"]), bias, at["bias"], activation, out, at["out"],
        )  # fmt: skip

        def call() -> int:
            with turn:
                status = set_stream(handle, stream) or run(*arguments)
            if status:
                raise DeviceError(f"cudnnConvolutionBiasActivationForward, algorithm {problem.algorithm}: {self._text(status)}")
            return 0

        return call

    def _tensor(self, dtype: int, batch: int, channels: int, sizes: tuple[int, int]) -> ctypes.c_void_p:
        tensor = self._owned("TensorDescriptor")
        self._call("cudnnSetTensor4dDescriptor", tensor, _NHWC, dtype, batch, channels, *sizes)
        return tensor

    def _convolution(self, problem: ConvolutionCall) -> ctypes.c_void_p:
        convolution = self._owned("ConvolutionDescriptor")
        computed = _TYPES[DataType.INT32 if problem.x is DataType.INT8 else DataType.FLOAT]
        numbers = (*problem.pad, *problem.stride, *problem.dilation)
        self._call("cudnnSetConvolution2dDescriptor", convolution, *numbers, _CROSS_CORRELATION, computed)
        self._call("cudnnSetConvolutionGroupCount", convolution, problem.groups)
        exact = problem.x is DataType.FLOAT and not problem.tf32
        math = _FMA_MATH if exact else _DEFAULT_MATH if problem.x is DataType.FLOAT else _TENSOR_MATH
        self._call("cudnnSetConvolutionMathType", convolution, math)
        return convolution

    def _owned(self, kind: str) -> ctypes.c_void_p:
        """A descriptor that is destroyed with the last reference to it."""
        made = Owned()
        self._call(f"cudnnCreate{kind}", ctypes.byref(made))
        made.destroy = getattr(self._library, f"cudnnDestroy{kind}")
        return made

    def _call(self, function: str, *arguments: Any) -> None:
        checked(self._library, function, *arguments, text=self._text)

    def _text(self, status: int) -> str:
        text = self._library.cudnnGetErrorString(status)
        return f"{text.decode(errors='replace') if text else 'unknown status'} (cuDNN status {status})"
