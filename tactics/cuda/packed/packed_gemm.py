"""Products of any number of rows with packed weights, on tensor cores (``packed_gemm.cu``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion.ops import PackedMatrixMultiply
from tactics.cuda.gemm import tiles
from tactics.cuda.gemm.common import (
    C_TYPES,
    NO_OPERANDS,
    STORED_TYPES,
    ceil_div,
    defines,
    fixed,
    null,
    pdl,
    round_up,
    vector_bytes,
    vector_columns,
    workspace,
)
from tactics.cuda.gemm.mma_gemm import reduction, tile_defines
from tactics.cuda.gemm.tiles import Tile
from tactics.cuda.packed.common import finished, kernel_block, kernel_weights, refused, shape_of
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Launch, Plan, Refusal, Scalar, Tactic, Workload

# (bm, bn, bk, warps m, n, k, stages)
_SHAPES = (
    (128, 128, 64, 2, 4, 1, 4), (64, 128, 64, 1, 4, 1, 4), (64, 128, 64, 2, 2, 1, 4), (128, 64, 64, 2, 2, 1, 4),
    (64, 64, 128, 2, 2, 2, 3), (64, 64, 64, 2, 2, 1, 5), (32, 128, 64, 1, 4, 1, 5), (32, 64, 128, 1, 2, 2, 4), (32, 32, 256, 1, 1, 4, 3),
    (16, 128, 64, 1, 4, 1, 6), (16, 64, 128, 1, 2, 2, 5), (16, 32, 256, 1, 1, 4, 4),
)  # fmt: skip


def shared_bytes(tile: Tile, bits: int, block: int) -> int:
    """Dynamic shared memory of a block: stages of A, packed weights and scaling, or the way out."""
    stage = tile.bm * tile.bk * 2 + tile.bn * tile.bk * bits // 8 + tile.bk // min(block, 64) * tile.bn * 4
    return max(tile.stages * stage, tile.exit_bytes())


class PackedGemm(Tactic):
    """The loop of ``cuda.gemm.mma``, with weights that become numbers of A's type in registers."""

    id = "cuda.packed.gemm"
    device = "cuda"
    ops = (PackedMatrixMultiply,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        return refused(workload, device)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        op, (m, n, k) = workload.op, shape_of(workload)
        assert isinstance(op, PackedMatrixMultiply)
        block = kernel_block(op)
        assert block is not None
        found: dict[Tile, float] = {}
        for bm, bn, bk, warps_m, warps_n, warps_k, stages in _SHAPES:
            for splits in (1, 2, 4, 8):
                for cluster in (0, 1) if splits > 1 else (0,):
                    tile = Tile(bm, bn, bk, warps_m, warps_n, warps_k, stages if device.capability >= 80 else 2, splits, cluster)
                    if splits > 1 and k < splits * bk * 2 or not self._legal(tile, op.bits, block, device):
                        continue
                    found[tile] = tiles.estimate(tile, m, n, k, 1, workload.inputs[0].dtype, device)
        return [tile.config() for tile in sorted(found, key=lambda tile: (found[tile], tile.config()))[:32]]

    def neighbours(self, workload: Workload, config: Config, device: DeviceSpec) -> Sequence[Config]:
        op = workload.op
        assert isinstance(op, PackedMatrixMultiply)
        block = kernel_block(op)
        assert block is not None
        return [tile.config() for tile in tiles.steps(tiles.tile_of(config), op.depth) if self._legal(tile, op.bits, block, device)]

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        return tiles.estimate(tiles.tile_of(config), *shape_of(workload), 1, workload.inputs[0].dtype, device)

    def prepare(self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]) -> tuple[np.ndarray, ...]:
        return kernel_weights(workload, constants)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (m, n, k), epilogue, tile = workload.op, shape_of(workload), finished(workload), tiles.tile_of(config)
        assert isinstance(op, PackedMatrixMultiply)
        block = kernel_block(op)
        assert block is not None
        dtype, out = workload.inputs[0].dtype, workload.outputs[0]
        common = dict(OUT_T=STORED_TYPES[out.dtype], VEC_C=vector_columns(fixed(workload, len(workload.inputs), -1)), PDL=1 if pdl(device) else None)
        kernel = Kernel("packed/packed_gemm.cu", "packed_gemm", (*defines(
            **common, **tile_defines(tile), IN_T=C_TYPES[dtype], VEC_A=vector_bytes(2, k), B_CONSTANT=1, PACKED_BITS=op.bits, PACKED_BLOCK=block,
        ), *(() if tile.partial else epilogue.defines)), "" if tile.partial else epilogue.prelude)  # fmt: skip
        arguments = (
            Buffer("input", 0), Buffer("packed", 0), Buffer("packed", 1), Buffer("output"), workspace() if tile.partial else null(),
            *map(Scalar, (m, n, k, round_up(n, 16), tiles.split_depth(tile, k))), NO_OPERANDS if tile.partial else epilogue.argument,
        )  # fmt: skip
        grid = (ceil_div(m, tile.bm) * ceil_div(n, tile.bn), tile.splits, 1)
        launch = Launch(
            kernel, grid, (tile.threads, 1, 1), arguments, shared_memory=shared_bytes(tile, op.bits, block), dependent=pdl(device)
        )
        if not tile.partial:
            return Plan((launch,))
        return Plan((launch, reduction(common, epilogue, m, n, tile.splits, device)), tile.splits * m * n * 4)

    @staticmethod
    def _legal(tile: Tile, bits: int, block: int, device: DeviceSpec) -> bool:
        """Every condition of the kernel and the hardware."""
        held = tile.registers() + tile.bn // tile.warps_n // 16 * bits + tile.bn // tile.warps_n // 8
        return (
            tile.bk % (64 * tile.warps_k) == 0
            and tile.bk <= 256
            and tile.bm % (16 * tile.warps_m) == 0
            and tile.bn % (16 * tile.warps_n) == 0
            and tile.threads <= 512
            and tile.threads % (tile.bk // 8) == 0
            and shared_bytes(tile, bits, block) <= device.shared_memory
            and held <= min(240, 65536 // tile.threads)
            and (not tile.cluster or (device.capability >= 90 and tile.splits in (2, 4, 8)))
            and (device.capability >= 80 or held <= 160)
        )


TACTICS = (PackedGemm(),)
