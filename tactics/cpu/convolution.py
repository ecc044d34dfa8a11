"""Convolution as matrix products: the columns of an image (im2col) times the weights, tile by tile.

Layout: ``[N, C, *spatial]``. A tile is a run of output rows (along the first spatial axis) of one image: its columns are
gathered into scratch memory, multiplied, and put through the epilogue while the result is in the cache. Threads take
different tiles, or (``by=1``) share one gathered image and take different output channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fusion.dtypes import DataType
from fusion.expression import Convert, Expression, Operand
from fusion.network import TensorType
from fusion.ops import Convolution, MatrixMultiply
from fusion.quantization import on_float_sums
from tactics.cpu.epilogue import Epilogue, make_epilogue
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, shape_of, spans, threads_of
from tactics.cpu.threads import Action, parallel, stages
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config


@dataclass(frozen=True)
class Geometry:
    """The concrete numbers of a convolution ``[N, groups * c, *spatial] -> [N, groups * o, *out]``."""

    n: int
    groups: int
    c: int
    o: int
    spatial: tuple[int, ...]
    out: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def taps(self) -> list[tuple[int, ...]]:
        """Window positions, row-major."""
        return list(np.ndindex(*self.window))

    @property
    def depth(self) -> int:
        """Elements of one column: the inner length of the product."""
        return math.prod(self.window) * self.c

    @property
    def row(self) -> int:
        """Output elements of one channel in one row (of the first spatial axis)."""
        return math.prod(self.out[1:])

    def reach(self, tap: Sequence[int], axis: int, low: int, high: int) -> tuple[int, int]:
        """The outputs in ``low .. high`` along ``axis`` for which ``tap`` reads inside the image, as (start, end)."""
        offset = tap[axis] * self.dilation[axis] - self.pad[axis]
        first = max(low, -(offset // self.stride[axis]))
        last = min(high, (self.spatial[axis] - 1 - offset) // self.stride[axis] + 1)
        return first, max(first, last)

    def source(self, tap: Sequence[int], axis: int, first: int, last: int) -> slice:
        """What ``tap`` reads along ``axis`` for outputs ``first .. last``."""
        step = self.stride[axis]
        start = first * step + tap[axis] * self.dilation[axis] - self.pad[axis]
        return slice(start, start + (last - first - 1) * step + 1, step) if last > first else slice(0, 0)


def geometry(workload: Workload) -> Geometry:
    """The numbers of a convolution workload (channels first)."""
    op = workload.op
    assert isinstance(op, Convolution)
    n, _, *spatial = shape_of(workload.inputs[0])
    outputs, per_group, *window = shape_of(workload.inputs[1])
    return Geometry(
        n, op.groups, per_group, outputs // op.groups, tuple(spatial),
        shape_of(workload.outputs[0])[2:],
        tuple(window), op.stride, tuple(int(pad) for pad in op.pre_padding), op.dilation,  # type: ignore[arg-type]
    )  # fmt: skip


def float_only(tensors: Sequence[TensorType]) -> Refusal | None:
    """A refusal unless all are floating-point."""
    for tensor in tensors:
        if not tensor.dtype.is_float:
            return Refusal(f"{tensor.dtype.label} operands: BLAS multiplies floating-point numbers only")
    return None


def multiplied_types(tensors: Sequence[TensorType]) -> Refusal | None:
    """A refusal unless all are floating-point, or 8-bit integers, whose sums floating-point numbers hold exactly."""
    if all(tensor.dtype in (DataType.INT8, DataType.UINT8) for tensor in tensors):
        return None
    return float_only(tensors)


def summed(workload: Workload) -> np.dtype:
    """The type in which BLAS multiplies and sums the operands of a product: as :func:`wide`, for 8-bit integers float32 while no sum
    of any part of the products can reach 2^24 (then every step is exact), else float64."""
    x, weights = workload.inputs[:2]
    if x.dtype.is_float:
        return wide(x, weights)
    op, shape = workload.op, shape_of(weights)
    if isinstance(op, Convolution):
        depth = math.prod(shape[1:])
    elif isinstance(op, MatrixMultiply):
        depth = shape_of(x)[-2 if op.transpose_a else -1]
    else:
        depth = math.prod(shape) // max(shape[1], 1) // op.groups  # type: ignore[attr-defined]
    largest = math.prod(255 if tensor.dtype is DataType.UINT8 else 128 for tensor in (x, weights))
    return np.dtype(np.float32 if depth * largest < 1 << 24 else np.float64)


def product_epilogue(workload: Workload) -> Epilogue:
    """The epilogue of a product held in the type of :func:`summed`: sums of integers are whole numbers in floating point, which the
    expression takes as they are where it would convert them anyway, and as int32 elsewhere."""
    op, total = workload.op, summed(workload)
    expression: Expression = op.epilogue  # type: ignore[attr-defined]
    if not workload.inputs[0].dtype.is_float:
        held = DataType(total.name)
        real = Operand(0) if held is DataType.FLOAT else Convert(DataType.FLOAT, Operand(0))
        expression = on_float_sums(expression, real)
    return make_epilogue(expression, total, workload.inputs[2:], workload.outputs[0])


def wide(*tensors: TensorType) -> np.dtype:
    """float64 when an operand is, else float32."""
    return np.dtype(np.float64 if any(t.dtype.itemsize == 8 for t in tensors) else np.float32)


def is_direct(workload: Workload, shape: Geometry) -> bool:
    """Whether the image is its own column matrix: a 1x1 window, no stride, no padding, no conversion."""
    return (
        set(shape.window) == {1}
        and set(shape.stride) == {1}
        and shape.out == shape.spatial
        and not any(shape.pad)
        and workload.inputs[0].dtype.numpy == summed(workload)
    )


def pack(weights: np.ndarray, groups: int, dtype: np.dtype) -> np.ndarray:
    """``[O, C / groups, *window]`` as ``[groups, O / groups, window * C / groups]`` (window position before channel)."""
    outputs, channels = weights.shape[:2]
    flat = weights.reshape(groups, outputs // groups, channels, -1).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(flat.reshape(groups, outputs // groups, -1), dtype)


def pack_action(target: np.ndarray, weights: np.ndarray, groups: int) -> Action:
    """The same at run time, for weights that are not known at build."""
    outputs, channels = weights.shape[:2]
    source = weights.reshape(groups, outputs // groups, channels, -1).transpose(0, 1, 3, 2)
    return partial(np.copyto, target.reshape(source.shape), source, casting="unsafe")


def gather_actions(
    image: np.ndarray, columns: np.ndarray, shape: Geometry, low: int, high: int, memory: np.ndarray
) -> list[Action]:
    """Copy the windows of output rows ``low .. high`` into ``columns`` ``[groups, taps, c, rows, *out[1:]]``, out of ``image``
    ``[groups, c, *spatial]``. Where windows hang over the edge, the rows that they read go through ``memory`` (of
    :func:`padded_elements`), with zeros around them: one large copy then does all window positions, and threads rarely meet
    at the interpreter's lock."""
    rows = (high - low, *shape.out[1:])
    starts = [low * shape.stride[0] - shape.pad[0], *(-pad for pad in shape.pad[1:])]
    needs = _needs(shape, rows)
    lead, found = image.shape[:2], list[Action]()
    if all(start >= 0 and start + need <= size for start, need, size in zip(starts, needs, shape.spatial, strict=True)):
        source = image[
            (slice(None), slice(None), *(slice(start, start + need) for start, need in zip(starts, needs, strict=True)))
        ]
    else:
        source = memory[: math.prod(lead) * math.prod(needs)].reshape(*lead, *needs)
        found.append(partial(source.fill, 0))
        inside = [
            (max(start, 0), min(start + n, size)) for start, n, size in zip(starts, needs, shape.spatial, strict=True)
        ]
        if all(first < last for first, last in inside):
            target = (slice(first - start, last - start) for start, (first, last) in zip(starts, inside, strict=True))
            origin = image[(slice(None), slice(None), *(slice(first, last) for first, last in inside))]
            found.append(partial(np.copyto, source[(slice(None), slice(None), *target)], origin, casting="unsafe"))
    step = source.strides[2:]
    view = as_strided(
        source,
        (lead[0], *shape.window, lead[1], *rows),
        (
            source.strides[0],
            *(size * gap for size, gap in zip(step, shape.dilation, strict=True)),
            source.strides[1],
            *(size * stride for size, stride in zip(step, shape.stride, strict=True)),
        ),
        writeable=False,
    )
    whole = columns.reshape(columns.shape[0], *shape.window, *columns.shape[2:])
    return [*found, partial(np.copyto, whole, view, casting="unsafe")]


def _needs(shape: Geometry, rows: Sequence[int]) -> tuple[int, ...]:
    """How much of the padded image ``rows`` outputs read along each axis."""
    return tuple(
        (count - 1) * stride + (k - 1) * gap + 1
        for count, stride, k, gap in zip(rows, shape.stride, shape.window, shape.dilation, strict=True)
    )


def padded_elements(shape: Geometry, rows: int) -> int:
    """The most elements of padded image that ``rows`` output rows read."""
    return shape.groups * shape.c * math.prod(_needs(shape, (rows, *shape.out[1:])))


class _Product(Tactic):
    """What the two tactics below share: tiles, threads, weights and epilogue."""

    device = "cpu"
    ops = (Convolution,)

    def prepare(
        self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        if 1 not in constants:
            return ()
        op = workload.op
        assert isinstance(op, Convolution)
        return (pack(constants[1], op.groups, summed(workload)),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        values = dict(config)
        shape = geometry(workload)
        direct = is_direct(workload, shape)
        total = summed(workload)
        epilogue = product_epilogue(workload)
        known = workload.is_constant(1)
        threads = values["threads"]
        tile = values["tile"] or shape.out[0]
        scratch = Scratch()
        weights = None if known else scratch.take((shape.groups, shape.o, shape.depth), total)
        rows = min(tile, shape.out[0])
        shared = bool(values["by"])
        copies = 1 if shared else threads
        columns = [
            scratch.take(() if direct else (shape.groups, len(shape.taps), shape.c, rows * shape.row), total)
            for _ in range(copies)
        ]
        results = [
            scratch.take((0,) if epilogue.in_place else (shape.groups, shape.o, rows * shape.row), total)
            for _ in range(copies)
        ]
        temps = [scratch.take((epilogue.scratch_bytes,), np.uint8) for _ in range(threads)]
        padded = [scratch.take((0 if direct else padded_elements(shape, rows),), total) for _ in range(threads)]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            matrix = packed[0] if known else weights.view(workspace)  # type: ignore[union-attr]
            calls: list[Call] = []
            if not known:
                calls.append(parallel([[pack_action(matrix, inputs[1], shape.groups)]], 1))
            spare = ([slot.view(workspace) for slot in slots] for slots in (temps, padded))
            maker = Tiles(shape, direct, matrix, epilogue, inputs, outputs[0], *spare)
            spaces = [(c.view(workspace), r.view(workspace)) for c, r in zip(columns, results, strict=True)]
            tiles = [
                (n, low, min(low + rows, shape.out[0]))
                for n in range(shape.n)
                for low in range(0, shape.out[0], max(rows, 1))
            ]
            if shared:
                for tile_ in tiles:
                    calls += maker.together(tile_, *spaces[0], threads)
            else:
                jobs = [
                    [action for tile_ in tiles[first:last] for action in maker.alone(tile_, *spaces[number], number)]
                    for number, (first, last) in enumerate(spans(len(tiles), threads))
                ]
                calls.append(parallel(jobs, threads))
            return stages(*calls)

        return one_step(bind, self.id, scratch.size, (1,) if known else ())


@dataclass(frozen=True)
class Tiles:
    """Makes the calls for tiles (image, first row, last row) of one convolution on bound arrays."""

    shape: Geometry
    direct: bool
    matrix: np.ndarray  # [groups, o, depth]
    epilogue: Epilogue
    inputs: Arrays
    out: np.ndarray
    temps: Sequence[np.ndarray]  # a thread
    padded: Sequence[np.ndarray]  # a thread

    def alone(self, tile: tuple[int, int, int], columns: np.ndarray, result: np.ndarray, thread: int) -> list[Action]:
        """All of a tile, for one thread."""
        shape = self.shape
        right = self._columns(tile, columns)
        gathered = [] if self.direct else self._gather(tile, columns, thread, (0, shape.c), tile[1:])
        return gathered + self._product(tile, right, result, 0, shape.groups, 0, shape.o, thread)

    def together(self, tile: tuple[int, int, int], columns: np.ndarray, result: np.ndarray, threads: int) -> list[Call]:
        """A tile in two stages, each spread over ``threads``: gather, then multiply by output channels (or groups)."""
        shape, calls = self.shape, []
        right = self._columns(tile, columns)
        if not self.direct:
            _, low, high = tile
            if shape.c >= 8 * threads:
                parts = [(cut, (low, high)) for cut in spans(shape.c, threads)]
            else:
                parts = [((0, shape.c), (low + a, low + b)) for a, b in spans(high - low, threads)]
            calls.append(
                parallel([self._gather(tile, columns, number, *part) for number, part in enumerate(parts)], threads)
            )
        if shape.groups > 1:
            cuts = [(a, b, 0, shape.o) for a, b in spans(shape.groups, threads)]
        else:
            cuts = [(0, 1, a, b) for a, b in spans(shape.o, threads)]
        jobs = [self._product(tile, right, result, *cut, number) for number, cut in enumerate(cuts)]
        calls.append(parallel(jobs, threads))
        return calls

    def _columns(self, tile: tuple[int, int, int], columns: np.ndarray) -> np.ndarray:
        """The right side of the tile's product, ``[groups, depth, columns]``."""
        n, low, high = tile
        shape = self.shape
        if self.direct:
            image = self.inputs[0][n].reshape(shape.groups, shape.c, -1)
            return image[:, :, low * shape.row : high * shape.row]
        width = (high - low) * shape.row
        flat = columns.reshape(-1)[: shape.groups * shape.depth * width]
        return flat.reshape(shape.groups, shape.depth, width)

    def _gather(
        self,
        tile: tuple[int, int, int],
        columns: np.ndarray,
        thread: int,
        channels: tuple[int, int],
        rows: tuple[int, int],
    ) -> list[Action]:
        """Gather the columns of some channels and output rows of a tile."""
        n, low, high = tile
        shape = self.shape
        image = self.inputs[0][n].reshape(shape.groups, shape.c, *shape.spatial)[:, slice(*channels)]
        dims = (shape.groups, len(shape.taps), shape.c, high - low, *shape.out[1:])
        whole = columns.reshape(-1)[: math.prod(dims)].reshape(dims)
        part = whole[:, :, slice(*channels), rows[0] - low : rows[1] - low]
        return gather_actions(image, part, shape, *rows, self.padded[thread])

    def _product(
        self, tile: tuple[int, int, int], right: np.ndarray, result: np.ndarray,
        first_group: int, last_group: int, first: int, last: int, thread: int,
    ) -> list[Action]:  # fmt: skip
        n, low, high = tile
        shape = self.shape
        groups, width = last_group - first_group, right.shape[2]
        grouped = (shape.groups, shape.o, *shape.out)
        cut = (slice(first_group, last_group), slice(first, last), slice(low, high))
        out = self.out[n].reshape(grouped)[cut]
        if self.epilogue.in_place:
            plain = self.out[n].reshape(shape.groups, shape.o, -1)
            target = plain[first_group:last_group, first:last, low * shape.row : high * shape.row]
        else:
            flat = result.reshape(-1)[: shape.groups * shape.o * width].reshape(shape.groups, shape.o, width)
            target = flat[first_group:last_group, first:last]
        left, right = self.matrix[first_group:last_group, first:last], right[first_group:last_group]
        held = out if self.epilogue.in_place else target.reshape(out.shape)
        if groups == 1:
            left, right, target = left[0], right[0], target[0]
        whole = self.out.shape
        extras = [np.broadcast_to(extra, whole)[n].reshape(grouped)[cut] for extra in self.inputs[2:]]
        return [
            partial(np.matmul, left, right, out=target),
            *self.epilogue.actions(held, extras, out, self.temps[thread]),
        ]


class Im2col(_Product):
    """Any convolution: gathered columns times weights."""

    id = "cpu.conv.im2col"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.op.channels_last:  # type: ignore[attr-defined]
            return Refusal("channels-last input: the CPU runs convolutions in [N, C, spatial]")
        shape = geometry(workload)
        if is_direct(workload, shape):
            return Refusal("a 1x1 window without stride or padding needs no gathering: see cpu.conv.matmul")
        return multiplied_types(workload.inputs[:2])

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        shape, threads = geometry(workload), threads_of(device)
        room = max(256, _ROOM // (shape.groups * shape.depth))  # columns
        together = tile_rows(shape, room)
        alone = [tile_rows(shape, min(columns, room)) for columns in (512, 1024, 2048, 256)]
        return _shared_out(shape, threads, alone, together)


class Matmul(_Product):
    """A 1x1 convolution: the image itself times the weights."""

    id = "cpu.conv.matmul"

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.op.channels_last:  # type: ignore[attr-defined]
            return Refusal("channels-last input: the CPU runs convolutions in [N, C, spatial]")
        refusal = multiplied_types(workload.inputs[:2])
        if refusal is None and not is_direct(workload, geometry(workload)):
            return Refusal(
                "the window is not 1x1, or there is stride, padding or conversion: the columns must be gathered"
            )
        return refusal

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        shape, threads = geometry(workload), threads_of(device)
        rows = shape.out[0]
        alone = [-(-rows // threads), tile_rows(shape, 512), tile_rows(shape, 1024)]
        return _shared_out(shape, threads, alone, rows)


_ROOM = 1 << 22  # elements of gathered columns that threads share at most: 16 MiB of float32


def _shared_out(shape: Geometry, threads: int, alone: Sequence[int], together: int) -> tuple[Config, ...]:
    """Threads with tiles of their own, of so many rows; threads that share tiles; and one thread."""
    rows = shape.out[0]
    found = [
        config(tile=tile, by=0, threads=threads) for tile in alone if shape.n * -(-rows // max(tile, 1)) >= threads > 1
    ]
    if threads > 1 and (shape.n == 1 or not found):
        # Few columns cut in two make BLAS slow: then the output channels are cut first.
        found.insert(0 if rows * shape.row < 512 else min(2, len(found)), config(tile=together, by=1, threads=threads))
    found += [config(tile=tile, by=0, threads=1) for tile in (together, alone[0])]
    return tuple(dict.fromkeys(found))


def tile_rows(shape: Geometry, columns: int) -> int:
    """Rows a tile, for about ``columns`` columns."""
    return max(1, min(shape.out[0], round(columns / max(shape.row, 1))))


TACTICS: tuple[Tactic, ...] = (Matmul(), Im2col())
