"""Fourier transforms: matrix products up to ``DIRECT`` points, longer ones split into shorter ones.

A complex tensor ends in an axis of two, real and imaginary part. A transform along the axis before it is one real matrix product with
``[n * parts, k * 2]`` cosines and sines, which are folded into a constant when the length is known. Longer transforms are
Cooley and Tukey's (1965): for n = a b, transforms of length a, factors, transforms of length b; lengths that do not divide
are Bluestein's (1970): a convolution with a chirp, by transforms whose length is a power of two.
"""

from __future__ import annotations

import math

import numpy as np

from fusion.dims import Dim
from fusion.dtypes import DataType, data_type
from fusion.expression import Convert, Expression
from fusion.importer.builder import X0, X1, X2, X3, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.operators.slicing import cut
from fusion.importer.registry import operator
from fusion.importer.tensors import data_type_of
from fusion.importer.values import Value, from_elements
from fusion.ops import Concatenation, Gather, MatrixMultiply, Padding, Range

DIRECT = 1024  # points; a product with a larger matrix costs more than several smaller ones


@operator("DFT", since=17)
def dft(b: Builder, node: Node) -> Value:
    x = node.input(0)
    if node.opset >= 20:
        given = node.optional(2)
        axis = -2 if given is None else b.ints(given, "axis")[0]
    else:
        axis = node.attr("axis", 1)
    axis = node.axis(axis, x.rank)
    inverse, onesided = bool(node.attr("inverse", 0)), bool(node.attr("onesided", 0))
    if axis == x.rank - 1 or x.shape[-1] not in (1, 2):
        raise Unsupported(f"axis {axis} of shape {x.shape}; the last axis holds real and imaginary part")
    length = node.optional(1)
    points: Dim = b.dims(length, "dft_length")[0] if length is not None else x.shape[axis]
    if inverse and onesided and length is None:
        points = (x.shape[axis] - 1) * 2
    order = [*(i for i in range(x.rank) if i not in (axis, x.rank - 1)), axis, x.rank - 1]
    moved = b.transpose(x, order, "moved")
    if inverse and onesided:
        result = real_inverse(b, moved, points)
    else:
        result = transform(b, moved, points, inverse, _half(points) if onesided else points)
    if inverse and not onesided:
        result = b.pointwise(call("mul", X0, _reciprocal(b, points, x.dtype)), result, suffix="scale")
    return b.transpose(result, [order.index(i) for i in range(x.rank)], "back")


@operator("STFT", since=17)
def stft(b: Builder, node: Node) -> Value:
    """Frames are gathered, windowed (in the matrix, where the transform is one), transformed."""
    x, window, length = node.input(0), node.optional(2), node.optional(3)
    (step,) = b.ints(node.input(1), "frame_step")
    points: Dim = x.shape[1]
    if length is not None:
        points = b.dims(length, "frame_length")[0]
    elif window is not None:
        points = window.shape[0]
    complex_parts = x.rank == 3 and x.shape[2] == 2
    onesided = bool(node.attr("onesided", 1)) and not complex_parts
    count = (x.shape[1] - points) // step + 1
    starts = b.layer(Range(0, step, count, DataType.INT64), suffix="starts")
    places = b.layer(Range(0, 1, points, DataType.INT64), suffix="places")
    places = b.pointwise(call("add", X0, X1), b.reshape(starts, (count, 1), "starts_column"), places, suffix="positions")
    signal = x if x.rank == 3 else b.reshape(x, (*x.shape, 1), "signal")
    frames = b.layer(Gather(1), signal, places, suffix="frames")
    return transform(b, frames, points, False, _half(points) if onesided else points, window)


@operator("MelWeightMatrix", since=17)
def mel_weight_matrix(b: Builder, node: Node) -> Value:
    """Triangles between neighbours of points that lie evenly on the mel scale, over the bins of a spectrum."""
    bins, length, rate, low, high = (b.scalar(node.input(index), name) for index, name in enumerate(
        ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz")
    ))  # fmt: skip
    dtype = data_type_of(node.attr("output_datatype", 1))
    bottom, top = (2595 * np.log10(1 + edge / 700) for edge in (low, high))
    mels = bottom + np.arange(int(bins) + 2) * ((top - bottom) / (int(bins) + 2))  # ONNX divides by the count of points
    points = np.floor((length + 1) * (700 * (10 ** (mels / 2595) - 1)) / rate).astype(np.int64)
    left, centre, right = points[:-2], points[1:-1], points[2:]
    j = np.arange(int(length) // 2 + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = np.where(left == centre, 1.0, (j - left) / (centre - left))
        falling = (right - j) / (right - centre)
    weights = np.where((left <= j) & (j <= centre), rising, np.where((centre < j) & (j < right), falling, 0.0))
    return b.constant(weights.astype(dtype.numpy), "weights")


# --- transforms ------------------------------------------------------------------------------------------------------


def transform(b: Builder, x: Value, points: Dim, inverse: bool, kept: Dim, window: Value | None = None) -> Value:
    """The first ``kept`` of ``points`` values ``[..., kept, 2]`` of x ``[..., n, 1 or 2]`` (cut off, or zeros behind it), not scaled."""
    x = _shortened(b, x, points)
    if not isinstance(points, int) or points <= DIRECT:
        return _direct(b, x, points, inverse, kept, window)
    if window is not None:
        x = b.pointwise(call("mul", X0, X1), x, b.reshape(window, (points, 1), "window_column"), suffix="windowed")
    x = _complex(b, _padded(b, x, points))
    split = max((a for a in range(2, math.isqrt(points) + 1) if points % a == 0 and a <= DIRECT), default=0)
    full = _split(b, x, split, points // split, inverse) if split else _bluestein(b, x, points, inverse)
    return full if kept == points else cut(b, full, (0,) * full.rank, (*full.shape[:-2], kept, 2), (1,) * full.rank, "kept")


def _direct(b: Builder, x: Value, points: Dim, inverse: bool, kept: Dim, window: Value | None) -> Value:
    *batch, rows, parts = x.shape
    cosine, sine = _waves(b, rows, kept, points, x.dtype)
    sign = 1.0 if inverse else -1.0
    if window is not None:
        cosine, sine = (
            b.pointwise(call("mul", X0, X1), wave, b.reshape(window, (rows, 1), "window_column"), suffix=f"windowed_{name}")
            for wave, name in ((cosine, "cosine"), (sine, "sine"))
        )

    def pair(real: Expression, imaginary: Expression, name: str) -> Value:
        columns = [
            b.reshape(b.pointwise(part, cosine, sine, suffix=f"{name}_{which}"), (rows, 1, kept, 1), f"{name}_{which}_column")
            for part, which in ((real, "real"), (imaginary, "imaginary"))
        ]
        return b.layer(Concatenation(3), *columns, suffix=name)

    from_real = pair(X0, call("mul", X1, literal(sign, x.dtype)), "of_real")
    matrix = from_real
    if parts == 2:
        from_imaginary = pair(call("mul", X1, literal(-sign, x.dtype)), X0, "of_imaginary")
        matrix = b.layer(Concatenation(1), from_real, from_imaginary, suffix="matrix")
    matrix = b.reshape(matrix, (rows * parts, kept * 2), "matrix_2d")
    flat = b.reshape(x, (*batch, rows * parts), "flat")
    if not batch:
        flat = b.reshape(flat, (1, rows * parts), "row")
    product = b.layer(MatrixMultiply(), flat, matrix)
    return b.reshape(product, (*batch, kept, 2), "complex")


def _waves(b: Builder, rows: Dim, columns: Dim, points: Dim, dtype: DataType) -> tuple[Value, Value]:
    """Cosine and sine of ``2 pi n k / points`` ``[rows, columns]``: whole turns are taken off in integers, the rest is float64."""
    n, k = (b.layer(Range(0, 1, size, DataType.INT64), suffix=name) for size, name in ((rows, "n"), (columns, "k")))
    length = _number(b, points)
    turns = call("div", Convert(DataType.DOUBLE, call("mod", call("mul", X0, X1), X2)), Convert(DataType.DOUBLE, X2))
    angle = b.pointwise(call("mul", turns, literal(2 * math.pi, DataType.DOUBLE)), b.reshape(n, (rows, 1), "n_column"), k, length, suffix="angle")
    found = tuple(b.pointwise(Convert(dtype, call(name, X0)), angle, suffix=name) for name in ("cos", "sin"))
    return found[0], found[1]


def _split(b: Builder, x: Value, first: int, second: int, inverse: bool) -> Value:
    """Length ``first * second``: with n = second * n1 + n2 and k = k1 + first * k2, over n1, then over n2."""
    batch, rank = x.shape[:-2], x.rank
    grid = b.reshape(x, (*batch, first, second, 2), "grid")
    by_column = b.transpose(grid, (*range(rank - 2), rank - 1, rank - 2, rank), "columns")  # [..., n2, n1, 2]
    inner = transform(b, by_column, first, inverse, first)  # [..., n2, k1, 2]
    angles = 2 * np.pi / (first * second) * np.outer(np.arange(second), np.arange(first))
    turned = _rotated(b, inner, angles if inverse else -angles, "twiddle")
    by_row = b.transpose(turned, (*range(rank - 2), rank - 1, rank - 2, rank), "rows")  # [..., k1, n2, 2]
    outer = transform(b, by_row, second, inverse, second)  # [..., k1, k2, 2]
    ordered = b.transpose(outer, (*range(rank - 2), rank - 1, rank - 2, rank), "order")
    return b.reshape(ordered, (*batch, first * second, 2), "joined")


def _bluestein(b: Builder, x: Value, points: int, inverse: bool) -> Value:
    """n k = (n^2 + k^2 - (k - n)^2) / 2 makes the transform a convolution of the chirp with the signal times its conjugate."""
    size = 1 << (2 * points - 2).bit_length()
    places = np.arange(points, dtype=np.int64)
    chirp = np.pi / points * (places * places % (2 * points)) * (1 if inverse else -1)
    kernel = np.zeros(size, np.complex128)
    kernel[:points] = np.exp(-1j * chirp)
    kernel[size - points + 1 :] = kernel[points - 1 : 0 : -1]
    spectrum = np.fft.fft(kernel) / size
    turned = _padded(b, _rotated(b, x, chirp, "chirp"), size)
    forward = transform(b, turned, size, False, size)
    product = _times(b, forward, spectrum.real, spectrum.imag, "filter")
    back = transform(b, product, size, True, size)
    kept = cut(b, back, (0,) * back.rank, (*back.shape[:-2], points, 2), (1,) * back.rank, "front")
    return _rotated(b, kept, chirp, "chirp_back")


def real_inverse(b: Builder, x: Value, points: Dim) -> Value:
    """The real signal of ``points`` values whose spectrum's first half is x."""
    half = _half(points)
    x = _shortened(b, x, half)
    if not isinstance(points, int):
        raise Unsupported("the length of a real inverse transform must be known")
    x = _complex(b, _padded(b, x, half))
    batch, rank = x.shape[:-2], x.rank
    assert isinstance(half, int)
    # The other half is the mirrored conjugate. Imaginary parts of the first and, of an even length, the middle value do not count.
    middle = points - half
    mirrored = cut(b, x, (*(0,) * len(batch), middle, 0), (*batch, middle, 2), (*(1,) * len(batch), -1, 1), "mirrored") if middle else None
    real_ends = np.ones((half, 2))
    real_ends[0, 1] = 0.0
    if points % 2 == 0:
        real_ends[-1, 1] = 0.0
    x = b.pointwise(call("mul", X0, X1), x, b.constant(real_ends.astype(x.dtype.numpy), "real_ends"), suffix="ends")
    if mirrored is not None:
        conjugate = b.constant(np.array([1, -1], x.dtype.numpy), "conjugate")
        mirrored = b.pointwise(call("mul", X0, X1), mirrored, conjugate, suffix="conjugated")
        x = b.layer(Concatenation(rank - 2), x, mirrored, suffix="whole")
    full = transform(b, x, points, True, points)
    real = cut(b, full, (0,) * rank, (*full.shape[:-1], 1), (1,) * rank, "real")
    return b.pointwise(call("mul", X0, literal(1 / points, x.dtype)), real, suffix="scale")


# --- complex tensors -------------------------------------------------------------------------------------------------


def _rotated(b: Builder, x: Value, angles: np.ndarray, name: str) -> Value:
    return _times(b, x, np.cos(angles), np.sin(angles), name)


def _times(b: Builder, x: Value, real: np.ndarray, imaginary: np.ndarray, name: str) -> Value:
    """x ``[..., 2]`` times constant complex numbers."""
    c, s = (b.constant(part[..., None].astype(x.dtype.numpy), f"{name}_{which}") for part, which in ((real, "cos"), (imaginary, "sin")))
    rank, shape = x.rank, (*x.shape[:-1], 1)
    parts = [cut(b, x, (*(0,) * (rank - 1), part), shape, (1,) * rank, f"{name}_part{part}") for part in (0, 1)]
    sums = [
        b.pointwise(call(function, call("mul", X0, X2), call("mul", X1, X3)), *parts, *pair, suffix=f"{name}_{function}")
        for function, pair in (("sub", (c, s)), ("add", (s, c)))
    ]
    return b.layer(Concatenation(rank - 1), *sums, suffix=name)


def _complex(b: Builder, x: Value) -> Value:
    return x if x.shape[-1] == 2 else b.layer(Padding((0,) * x.rank, (*(0,) * (x.rank - 1), 1)), x, suffix="with_imaginary")


def _shortened(b: Builder, x: Value, points: Dim) -> Value:
    """x without what lies behind its first ``points`` values."""
    have = x.shape[-2]
    if have == points or isinstance(have, int) and isinstance(points, int) and have < points:
        return x
    if not (isinstance(have, int) and isinstance(points, int)):
        raise Unsupported(f"a transform of length {points} of {have} values: whether they are too few or too many must be known")
    return cut(b, x, (0,) * x.rank, (*x.shape[:-2], points, x.shape[-1]), (1,) * x.rank, "shortened")


def _padded(b: Builder, x: Value, points: Dim) -> Value:
    missing = points - x.shape[-2]
    return x if missing == 0 else b.layer(Padding((0,) * x.rank, (*(0,) * (x.rank - 2), missing, 0)), x, suffix="padded")


def _half(points: Dim) -> Dim:
    return points // 2 + 1


def _number(b: Builder, dim: Dim) -> Value:
    """A dimension as an int64 scalar."""
    elements = np.empty((), object)
    elements[()] = dim
    return from_elements(elements, data_type(np.int64), b.origin)


def _reciprocal(b: Builder, points: Dim, dtype: DataType) -> Expression:
    if not isinstance(points, int):
        raise Unsupported("the length of an inverse transform must be known")
    return literal(1 / points, dtype)
