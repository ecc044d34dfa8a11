"""The few functions of cuBLASLt that its tactic needs, through ctypes.

Numbers are those of ``cublasLt.h`` and ``library_types.h``. cuBLASLt counts matrices column by column: what is row-major [m][n] to us is
its n x m, so the product is asked for as ``out^T = b^T a^T``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from fusion.dtypes import DataType
from runtime.device import DeviceError
from runtime.libraries import Address, Owned, checked
from tactics.cuda.libraries.cublas_lt import MatrixCall
from tactics.tactic import LibraryCall

_TYPES = {
    DataType.FLOAT: 0, DataType.HALF: 2, DataType.INT8: 3, DataType.INT32: 10, DataType.BF16: 14, DataType.FP8: 28, DataType.FP8_E5M2: 29,
}  # cudaDataType  # fmt: skip
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_32I = 68, 77, 72
_TRANSA, _TRANSB, _EPILOGUE, _BIAS_POINTER, _BIAS_TYPE = 3, 4, 7, 8, 26  # cublasLtMatmulDescAttributes_t
_BATCH_COUNT, _BATCH_STRIDE = 5, 6  # cublasLtMatrixLayoutAttribute_t
_WORKSPACE, _REDUCTIONS, _ALIGNMENTS = 1, 3, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t
_EPILOGUES = {("", False): 1, ("relu", False): 2, ("", True): 4, ("relu", True): 6, ("gelu_tanh", False): 32, ("gelu_tanh", True): 36}
_ORDERED_REDUCTIONS = 2 | 4  # partial sums in the computed or the output's type: added in a fixed order, unlike in place
_ALIGNMENT = 16  # bytes that every tensor of ours is aligned to
_PROPOSALS = 8

_STATUS = {
    1: "not initialised", 3: "out of memory", 7: "invalid value", 8: "the GPU lacks a feature", 11: "mapping error", 13: "execution failed",
    14: "internal error", 15: "not supported", 16: "licence error",
}  # cublasStatus_t  # fmt: skip


class _Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class CublasLt:
    """cuBLASLt in the current context."""

    def __init__(self, library: Any) -> None:
        self._library = library
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        library.cublasLtMatmulDescDestroy.argtypes = library.cublasLtMatrixLayoutDestroy.argtypes = [ctypes.c_void_p]
        number = int(library.cublasLtGetVersion())
        self.version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
        self._handle = ctypes.c_void_p()
        self._call("cublasLtCreate", ctypes.byref(self._handle))

    def prepared(self, step: LibraryCall, address: Address, stream: ctypes.c_void_p) -> Callable[[], int]:
        """See :class:`runtime.libraries.Binding`."""
        problem = step.problem
        assert isinstance(problem, MatrixCall)
        at = {role: ctypes.c_void_p(address(buffer)) for role, buffer in step.buffers}
        descriptor = self._descriptor(problem, at.get("bias"))
        # The first operand of the library is our b, the second our a.
        n, m, k = problem.n, problem.m, problem.k
        first = self._layout(problem.b, *((k, n) if problem.transpose_b else (n, k)), problem.ldb, problem.batch, problem.b_stride)
        second = self._layout(problem.a, *((m, k) if problem.transpose_a else (k, m)), m if problem.transpose_a else k, problem.batch, problem.a_stride)
        result = self._layout(problem.out, n, m, n, problem.batch, n * m)
        algorithm = self._algorithm(problem, step.workspace, descriptor, first, second, result)
        integers = problem.a is DataType.INT8
        one = ctypes.c_int32(int(problem.scale)) if integers else ctypes.c_float(problem.scale)
        other = ctypes.c_int32(problem.residual) if integers else ctypes.c_float(problem.residual)
        matmul, handle = self._library.cublasLtMatmul, self._handle
        arguments = (
            handle, descriptor, ctypes.byref(one), at["b"], first, at["a"], second, ctypes.byref(other), at.get("residual", at["out"]), result,
            at["out"], result, ctypes.byref(algorithm), at.get("workspace", ctypes.c_void_p(0)), ctypes.c_size_t(step.workspace), stream,
        )  # fmt: skip

        def call() -> int:
            status = matmul(*arguments)
            if status:
                raise DeviceError(f"cublasLtMatmul of {m} x {n} x {k}: {_text(status)}")
            return 0

        return call

    def _descriptor(self, problem: MatrixCall, bias: ctypes.c_void_p | None) -> ctypes.c_void_p:
        if problem.a is DataType.INT8:
            compute, scale = _COMPUTE_32I, DataType.INT32
        else:
            tf32 = problem.tf32 and problem.a is DataType.FLOAT
            compute, scale = _COMPUTE_32F_FAST_TF32 if tf32 else _COMPUTE_32F, DataType.FLOAT
        descriptor = self._owned("cublasLtMatmulDesc", compute, _TYPES[scale])
        attributes: list[tuple[int, Any]] = [
            (_TRANSA, ctypes.c_int32(problem.transpose_b)),
            (_TRANSB, ctypes.c_int32(problem.transpose_a)),
            (_EPILOGUE, ctypes.c_uint32(_EPILOGUES[problem.activation, bias is not None])),
        ]
        if bias is not None:
            attributes += [(_BIAS_POINTER, bias), (_BIAS_TYPE, ctypes.c_int32(_TYPES[problem.out]))]
        self._set("cublasLtMatmulDescSetAttribute", descriptor, attributes)
        return descriptor

    def _layout(self, dtype: DataType, rows: int, columns: int, ld: int, batch: int, stride: int) -> ctypes.c_void_p:
        sizes = (ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(ld))
        layout = self._owned("cublasLtMatrixLayout", _TYPES[dtype], *sizes)
        if batch > 1:
            attributes = [(_BATCH_COUNT, ctypes.c_int32(batch)), (_BATCH_STRIDE, ctypes.c_int64(stride))]
            self._set("cublasLtMatrixLayoutSetAttribute", layout, attributes)
        return layout

    def _algorithm(self, problem: MatrixCall, workspace: int, descriptor: Any, first: Any, second: Any, result: Any) -> Any:
        preference = self._owned("cublasLtMatmulPreference")
        attributes: list[tuple[int, Any]] = [(_WORKSPACE, ctypes.c_uint64(workspace)), (_REDUCTIONS, ctypes.c_uint32(_ORDERED_REDUCTIONS))]
        attributes += [(which, ctypes.c_uint32(_ALIGNMENT)) for which in _ALIGNMENTS]
        self._set("cublasLtMatmulPreferenceSetAttribute", preference, attributes)
        proposals, count = (_Proposal * _PROPOSALS)(), ctypes.c_int(0)
        self._call(
            "cublasLtMatmulAlgoGetHeuristic", self._handle, descriptor, first, second, result, result, preference, _PROPOSALS,
            ctypes.byref(proposals), ctypes.byref(count),
        )  # fmt: skip
        found = [one for one in proposals[: count.value] if one.state == 0 and one.workspace <= workspace]
        if not found or (problem.exact and problem.algorithm >= len(found)):
            raise DeviceError(f"cuBLASLt proposes {len(found)} algorithms within {workspace} bytes of workspace; number {problem.algorithm} is none")
        chosen = found[min(problem.algorithm, len(found) - 1)]
        return type(chosen.algorithm)(*chosen.algorithm)

    def _owned(self, kind: str, *arguments: Any) -> ctypes.c_void_p:
        """A descriptor that is destroyed with the last reference to it."""
        made = Owned()
        self._call(f"{kind}Create", ctypes.byref(made), *arguments)
        made.destroy = getattr(self._library, f"{kind}Destroy")
        return made

    def _set(self, function: str, target: Any, attributes: list[tuple[int, Any]]) -> None:
        for which, value in attributes:
            self._call(function, target, which, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))

    def _call(self, function: str, *arguments: Any) -> None:
        checked(self._library, function, *arguments, text=_text)


def _text(status: int) -> str:
    return f"{_STATUS.get(status, 'unknown status')} (cuBLAS status {status})"
