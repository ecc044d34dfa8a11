"""Winograd convolution F(m x m, 3 x 3): fewer multiplications for 3x3 windows without stride.

The image is cut into overlapping tiles of (m + 2) x (m + 2) places. With the matrices B, G and A of each m, a tile d and a
filter g give an m x m piece of the output as A^T [(G g G^T) * (B^T d B)] A, where * is elementwise; summed over channels it is
one matrix product for each of the (m + 2)^2 places of the tile. Source: A. Lavin and S. Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016.

Both transforms are matrix products too: B^T d B is the Kronecker square of B^T times the tile as a vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from fusion.ops import Convolution
from tactics.cpu.convolution import float_only, gather_actions, geometry, padded_elements, wide
from tactics.cpu.epilogue import make_epilogue
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, spans, threads_of
from tactics.cpu.threads import Action, parallel, stages
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config

_TILES = 512  # tiles that are transformed at once

# m: (B^T, G, A^T)
_MATRICES: dict[int, tuple[list[list[float]], list[list[float]], list[list[float]]]] = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


def _square(matrix: Sequence[Sequence[float]], dtype: np.dtype) -> np.ndarray:
    one = np.array(matrix, np.float64)
    return np.kron(one, one).astype(dtype)


class Winograd(Tactic):
    """Tiles of ``m`` x ``m`` outputs. Three stages, each spread over ``threads``: gather and transform by channels, multiply
    by places, transform back and finish by output channels."""

    id = "cpu.conv.winograd"
    device = "cpu"
    ops = (Convolution,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = workload.op
        assert isinstance(op, Convolution)
        if op.channels_last:
            return Refusal("channels-last input: the CPU runs convolutions in [N, C, spatial]")
        shape = geometry(workload)
        if shape.window != (3, 3) or shape.stride != (1, 1) or shape.dilation != (1, 1) or shape.groups != 1:
            return Refusal(
                f"window {shape.window}, stride {shape.stride}, dilation {shape.dilation}, {shape.groups} groups: only"
                " 3x3 windows without stride, dilation and groups"
            )
        if not workload.is_constant(1):
            return Refusal("the weights are not known at build, and transforming them in each call costs too much")
        if min(shape.c, shape.o) < 8:
            return Refusal(f"{shape.c} to {shape.o} channels: below 8 the transforms cost more than they save")
        return float_only(workload.inputs[:2])

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        threads = threads_of(device)
        small = min(geometry(workload).out) < 12
        order = (2, 4) if small else (4, 2)
        return tuple(config(m=m, threads=threads) for m in order)

    def prepare(
        self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        weights = constants[1].astype(np.float64)
        g = np.array(_MATRICES[dict(config)["m"]][1], np.float64)
        changed = np.einsum("ia,ocab,jb->ijoc", g, weights, g, optimize=True)
        return (np.ascontiguousarray(changed.reshape(-1, *weights.shape[:2]), wide(*workload.inputs[:2])),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values, shape = workload.op, dict(config), geometry(workload)
        assert isinstance(op, Convolution)
        m, threads = values["m"], values["threads"]
        total = wide(*workload.inputs[:2])
        epilogue = make_epilogue(op.epilogue, total, workload.inputs[2:], workload.outputs[0])
        tiles = tuple(-(-size // m) for size in shape.out)
        rows = max(1, min(tiles[0], _TILES // tiles[1]))  # of tiles, at once
        count, places = rows * tiles[1], (m + 2) ** 2
        mirror = replace(shape, out=tiles, window=(m + 2, m + 2), stride=(m, m))
        into, back = _square(_MATRICES[m][0], total), _square(_MATRICES[m][2], total)
        scratch = Scratch()
        gathered = scratch.take((places, shape.c, count), total)
        changed = scratch.take((places, shape.c, count), total)
        products = scratch.take((places, shape.o, count), total)
        results = scratch.take((m * m, shape.o, count), total)
        held = scratch.take((0,) if epilogue.in_place else (shape.o, rows * m, shape.out[1]), total)
        padded = [scratch.take((padded_elements(mirror, rows),), total) for _ in range(threads)]
        temps = [scratch.take((epilogue.scratch_bytes,), np.uint8) for _ in range(threads)]

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            extras = [np.broadcast_to(extra, outputs[0].shape) for extra in inputs[2:]]
            calls: list[Call] = []
            for n, low in product(range(shape.n), range(0, tiles[0], rows)):
                grid = (min(rows, tiles[0] - low), tiles[1])
                d, v, p, y = (
                    _first(slot.view(workspace), math.prod(grid)) for slot in (gathered, changed, products, results)
                )
                image, out = inputs[0][n], outputs[0][n, :, low * m : (low + grid[0]) * m]
                whole = out if epilogue.in_place else held.view(workspace)[:, : out.shape[1]]
                first: list[list[Action]] = []
                for (c0, c1), slot in zip(spans(shape.c, threads), padded, strict=False):
                    columns = d.reshape(1, places, shape.c, *grid)[:, :, c0:c1]
                    first.append([
                        *gather_actions(image[None, c0:c1], columns, mirror, low, low + grid[0], slot.view(workspace)),
                        partial(np.matmul, into, _flat(d, c0, c1), out=_flat(v, c0, c1)),
                    ])  # fmt: skip
                middle: list[list[Action]] = [
                    [partial(np.matmul, packed[0][a:b], v[a:b], out=p[a:b])] for a, b in spans(places, threads)
                ]
                last: list[list[Action]] = []
                for number, (o0, o1) in enumerate(spans(shape.o, threads)):
                    job: list[Action] = [partial(np.matmul, back, _flat(p, o0, o1), out=_flat(y, o0, o1))]
                    job += _scatter(y[:, o0:o1], whole[o0:o1], m, grid)
                    picked = [extra[n, o0:o1, low * m : (low + grid[0]) * m] for extra in extras]
                    job += epilogue.actions(whole[o0:o1], picked, out[o0:o1], temps[number].view(workspace))
                    last.append(job)
                calls += [parallel(jobs, threads) for jobs in (first, middle, last)]
            return stages(*calls)

        return one_step(bind, self.id, scratch.size, (1,))


def _first(array: np.ndarray, count: int) -> np.ndarray:
    """The memory of ``[places, channels, tiles]`` for fewer tiles."""
    places, channels, _ = array.shape
    return array.reshape(-1)[: places * channels * count].reshape(places, channels, count)


def _flat(array: np.ndarray, low: int, high: int) -> np.ndarray:
    """Channels ``low .. high`` of ``[places, channels, tiles]`` as ``[places, columns]`` (a view)."""
    width = array.shape[2]
    return array.reshape(len(array), -1)[:, low * width : high * width]


def _scatter(pieces: np.ndarray, out: np.ndarray, m: int, tiles: tuple[int, ...]) -> list[Action]:
    """Copy ``[m * m, o, tiles]`` into ``[o, h, w]``; tiles that hang over the edge are cut."""
    found: list[Action] = []
    for i in range(m):
        for j in range(m):
            target = out[:, i::m, j::m]
            grid = pieces[i * m + j].reshape(len(out), *tiles)
            found.append(partial(np.copyto, target, grid[:, : target.shape[1], : target.shape[2]]))
    return found


TACTICS: tuple[Tactic, ...] = (Winograd(),)
