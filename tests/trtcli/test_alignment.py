"""Advice on dimensions that tensor cores pad."""

from __future__ import annotations

import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.network import Layer, Op, TensorType
from fusion.ops import Convolution, Deconvolution, MatrixMultiply, PrologueProduct
from trtcli.report.alignment import alignment_notes
from trtcli.report.padding import Padding

F16, F32, I8, F64 = DataType.HALF, DataType.FLOAT, DataType.INT8, DataType.DOUBLE


def notes(op: Op, dtype: DataType, *shapes: tuple, tf32: bool = True) -> tuple[str, ...]:
    tensors = {name: TensorType(dtype, shape) for name, shape in zip("xwb", shapes, strict=False)}
    return alignment_notes(Layer("l", op, tuple(tensors), ("y",)), tensors, {"batch": 5}, tf32)


def conv(groups: int = 1) -> Convolution:
    return Convolution((1, 1), (0, 0), (0, 0), (1, 1), groups, channels_last=True)


def test_products() -> None:
    assert notes(MatrixMultiply(), F16, (symbol("batch"), 64), (64, 128)) == ()
    assert notes(MatrixMultiply(), F16, (symbol("batch"), 77), (77, 10)) == (
        "K = 77 is no multiple of 8 (FP16): computed as 80",
        "N = 10 is no multiple of 8 (FP16): computed as 16",
    )
    assert notes(MatrixMultiply(transpose_b=True), F32, (3, 6), (8, 6)) == (
        "K = 6 is no multiple of 4 (TF32): computed as 8",
    )
    assert notes(MatrixMultiply(), I8, (3, 48), (48, 32)) == ("K = 48 is no multiple of 32 (INT8): computed as 64",)


def test_products_with_a_prologue_are_products() -> None:
    assert notes(PrologueProduct(MatrixMultiply(), apply("relu", Operand(0))), F16, (3, 77), (77, 16)) == ("K = 77 is no multiple of 8 (FP16): computed as 80",)


@pytest.mark.parametrize(
    ("shapes", "dtype", "tf32"),
    [
        (((1, 77), (77, 10)), F16, True),  # a vector times a matrix
        (((3, 77), (77, 10)), F32, False),  # --noTF32
        (((3, 77), (77, 10)), F64, True),
    ],
)
def test_products_without_tensor_cores(shapes: tuple, dtype: DataType, tf32: bool) -> None:
    assert notes(MatrixMultiply(), dtype, *shapes, tf32=tf32) == ()


def test_convolutions() -> None:
    assert notes(conv(), F16, (1, 9, 9, 3), (64, 3, 3, 3)) == (
        "input channels = 3 is no multiple of 8 (FP16): computed as 8",
    )
    assert notes(conv(groups=12), F16, (1, 9, 9, 12), (12, 1, 3, 3)) == ()  # depthwise
    back = Deconvolution((2, 2), (0, 0), (0, 0), (1, 1), (0, 0))
    assert notes(back, F16, (1, 16, 4, 4), (16, 10, 2, 2)) == (
        "output channels = 10 is no multiple of 8 (FP16): computed as 16",
    )


def test_channels_that_are_padded_in_memory_and_those_that_were_no_faster_so() -> None:
    tensors = {name: TensorType(F16, shape) for name, shape in {"x": (2, 5, 5, 40), "w": (21, 40, 1, 1), "y": (2, 5, 5, 21)}.items()}
    found = alignment_notes(Layer("l", conv(), ("x", "w"), ("y",)), tensors, {}, True, Padding({"x": (37, 40)}, frozenset({"y"})))
    assert found == (
        "input channels = 37 is no multiple of 8 (FP16): 40 in memory",
        "output channels = 21 is no multiple of 8 (FP16): computed as 24 (padding them in memory was tried: no faster)",
    )
