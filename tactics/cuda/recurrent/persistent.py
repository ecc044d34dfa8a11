"""Recurrences by blocks that stay for all steps and keep their part of the recurrent weights in registers or shared memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil

import numpy as np

from fusion.dtypes import DataType
from fusion.ops import Recurrence
from tactics.cuda.recurrent.common import names, operation, prelude, refusal_of, sizes, strides, tensors
from tactics.cuda.simple import ceil_div, defines, launch, vector_width
from tactics.tactic import (
    Buffer,
    Config,
    DeviceSpec,
    Kernel,
    Launch,
    Memset,
    Plan,
    Refusal,
    Scalar,
    Step,
    Tactic,
    Workload,
    config,
)

FILE = "recurrent/persistent.cu"
REGISTERS, SHARED, MEMORY = range(3)  # where weights are
BLOCK, CLUSTER, GRID, LAUNCHES = range(4)  # who meets
MEETING = {BLOCK: 0.1e-6, CLUSTER: 0.4e-6, GRID: 1.6e-6, LAUNCHES: 2.5e-6}  # seconds, of the way of h too
TAGGED = {CLUSTER: 0.3e-6, GRID: 0.8e-6}  # the same, where h says itself that it is there
COUNTER = 128  # bytes: a line of the cache for each
MOST_OF_EACH = 3  # configurations with the same way to meet
HOPELESS = 4  # times the best guess: not worth compiling
CLUSTER_BLOCKS = 8  # the portable limit


@dataclass(frozen=True)
class Division:
    """Who does what: the numbers that ``persistent.cu`` calculates from its defines."""

    hidden: int
    gates: int
    units: int
    threads: int
    k_warps: int
    chunk: int
    tile: int
    mma: int
    size: int  # bytes of an element
    buffers: int  # of the state

    @property
    def blocks(self) -> int:
        return ceil_div(self.hidden, self.units)

    @property
    def row_warps(self) -> int:
        return self.threads // 32 // self.k_warps

    @property
    def row_step(self) -> int:
        """Rows that the lanes of a warp take at once."""
        return 16 if self.mma else 4

    @property
    def k_step(self) -> int:
        """Columns that the lanes of a warp take at once."""
        return 32 // self.size if self.mma else 32

    @property
    def piece(self) -> int:
        """Weights of a thread that lie together."""
        return 16 // self.size if self.mma else 4

    @property
    def rows_each(self) -> int:
        """Rows (tiles of 16 rows) of a thread."""
        return ceil_div(self.gates * self.units, self.row_warps * self.row_step)

    @property
    def rows(self) -> int:
        return self.rows_each * self.row_warps * self.row_step

    @property
    def pieces(self) -> int:
        """Steps along the columns."""
        return ceil_div(self.hidden, self.k_warps * self.k_step)

    @property
    def width(self) -> int:
        return self.pieces * self.k_warps * self.k_step

    @property
    def weights(self) -> int:
        """Pieces that a thread has."""
        return self.pieces * self.rows_each

    @property
    def weight_bytes(self) -> int:
        """Bytes of a block's weights."""
        return self.weights * self.piece * self.size * self.threads

    @property
    def state_bytes(self) -> int:
        """Shared memory for h and the parts of the products."""
        rows = ceil_div(self.chunk, 8) * 8 if self.mma else self.chunk
        held = rows * (self.width + 16 // self.size) * self.size if self.mma else rows * self.width * 4
        return self.buffers * held + 4 * self.k_warps * rows * self.rows + (16 if self.buffers == 2 else 0)


def division(op: Recurrence, units: int, threads: int, chunk: int, mma: int, size: int, scope: int) -> Division:
    """The division with the least padding; among equals the one with about 8 rows (one tile) for a thread."""
    found = []
    k_warps = 1
    while k_warps <= threads // 32:
        one = Division(op.hidden, op.gates, units, threads, k_warps, chunk, 1, mma, size, 2 if scope == CLUSTER else 1)
        tile = 1
        while not mma and tile * 2 <= min(chunk, 4) and one.rows_each * tile * 2 <= 32:
            tile *= 2
        found.append(replace(one, tile=tile))
        k_warps *= 2
    # On tensor cores a step along k reads two words of h for all rows, and every row writes one part for each of k_warps.
    return min(found, key=lambda one: (one.weights, 2 * one.pieces + 4 * one.rows_each + one.k_warps if mma else abs(one.rows_each - 8)))


def division_of(workload: Workload, chosen: Config) -> Division:
    """The division of a configuration."""
    values = dict(chosen)
    size = workload.inputs[0].dtype.itemsize
    return division(operation(workload), values["units"], values["threads"], values["chunk"], values["mma"], size, values["scope"])


def groups_of(workload: Workload, one: Division, scope: int, device: DeviceSpec) -> int:
    """How many parts the batch (of at least one row) has. All blocks of a grid that meets must be on the device at once."""
    batch = max(1, sizes(workload)[1])
    groups = ceil_div(batch, one.chunk)
    if scope == GRID:
        groups = max(1, min(groups, device.multiprocessors // (one.blocks * len(operation(workload).reverse))))
    return ceil_div(batch, ceil_div(batch, groups))  # none without rows


class Persistent(Tactic):
    """Weights must be known at build; a GRU whose reset gate comes before the product is left to ``cuda.recurrence.rows``."""

    id = "cuda.recurrence.persistent"
    device = "cuda"
    ops = (Recurrence,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        op = operation(workload)
        if op.cell == "gru" and not op.reset_after:
            return Refusal("the reset gate multiplies the state before the product: see cuda.recurrence.rows")
        if workload.inputs[0].dtype is DataType.DOUBLE:
            return Refusal("float64: see cuda.recurrence.rows")
        if not workload.is_constant(1):
            return Refusal("the recurrent weights are not known at build: see cuda.recurrence.rows")
        refused = refusal_of(workload)
        return refused or (None if self.configs(workload, device) else Refusal(f"{op.hidden} cells: no division among blocks fits"))

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        def cost(one: Config) -> float:
            return self.estimate(workload, one, device)

        # The best of each way to meet: how long a meeting takes is the least certain part of the estimate.
        ways: dict[tuple[int, int], list[Config]] = {}
        for one in sorted({one for scope in MEETING for one in self._of_scope(workload, device, scope)}, key=lambda one: (cost(one), one)):
            ways.setdefault((dict(one)["scope"], dict(one)["tagged"]), []).append(one)
        best = sorted((one for found in ways.values() for one in found[:MOST_OF_EACH]), key=lambda one: (cost(one), one))
        return [one for one in best if cost(one) <= HOPELESS * cost(best[0])]

    def _of_scope(self, workload: Workload, device: DeviceSpec, scope: int) -> list[Config]:
        op, (time, batch) = operation(workload), sizes(workload)
        directions, size = len(op.reverse), workload.inputs[0].dtype.itemsize
        if scope == CLUSTER and device.capability < 90:
            return []
        kinds = [0]
        if device.capability >= 80 and (size == 2 or workload.tf32):
            kinds = [1] if size == 2 else [0, 1]
        if scope == LAUNCHES and (time > 64 or workload.axis_varies(0, op.input_order.index("t"))):
            return []
        most = max(1, device.multiprocessors // directions)
        counts = {BLOCK: [1], CLUSTER: [2, 4, CLUSTER_BLOCKS, 2 * CLUSTER_BLOCKS]}.get(scope) or [
            count for count in dict.fromkeys((most, 128 // directions, 64 // directions, 32 // directions, 16)) if 2 <= count <= most
        ]
        chunks = [chunk for chunk in (1, 2, 4, 8, 16, 32) if chunk < 2 * batch]
        found = []
        for count in counts:
            units = max(1, ceil_div(op.hidden, count))
            units = ceil_div(units, 4) * 4 if scope != BLOCK else op.hidden
            if scope != BLOCK and ceil_div(op.hidden, units) < 2:
                continue
            if scope == CLUSTER and ceil_div(op.hidden, units) > 2 * CLUSTER_BLOCKS:
                continue
            for threads, mma in product((256, 512), kinds):
                for chunk in chunks[-2:] if scope in (GRID, LAUNCHES) else chunks:
                    one = division(op, units, threads, chunk, mma, size, scope)
                    if one.rows_each > (16 if mma else 64) or units * chunk > 4 * threads:
                        continue
                    place = self._place(one, device)
                    if place is None:
                        continue
                    # Groups of varying batches may have to take their rows in several turns.
                    fixed = scope in (BLOCK, CLUSTER) or not workload.axis_varies(0, op.input_order.index("b"))
                    single = fixed and ceil_div(batch, groups_of(workload, one, scope, device)) <= chunk
                    values = {"units": units, "threads": threads, "chunk": chunk, "scope": scope, "place": place, "single": single, "mma": mma}
                    found.append(config(**values, tagged=0))
                    if scope == CLUSTER or (scope == GRID and op.hidden * size % 4 == 0):
                        found.append(config(**values, tagged=1))
        return found

    @staticmethod
    def _place(one: Division, device: DeviceSpec) -> int | None:
        registers = one.weights * one.piece * one.size // 4
        most = {256: (112, 128), 512: (48, 64)}[one.threads][one.mma]  # that do not spill
        if registers <= most and one.state_bytes <= device.shared_memory:
            return REGISTERS
        if one.state_bytes + one.weight_bytes <= device.shared_memory:
            return SHARED
        return MEMORY if one.state_bytes <= device.shared_memory else None

    def prepare(
        self, workload: Workload, config: Config, constants: Mapping[int, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        """The recurrent weights ``[D, blocks, pieces * rows_each, threads, piece]``, zeros where a block is not full."""
        op, one = operation(workload), division_of(workload, config)
        directions, hidden, r = len(op.reverse), op.hidden, constants[1]
        wide = np.zeros((directions, op.gates, one.blocks * one.units, one.width), r.dtype)
        wide[:, :, :hidden, :hidden] = r.reshape(directions, op.gates, hidden, hidden)
        by_block = wide.reshape(directions, op.gates, one.blocks, one.units, -1).swapaxes(1, 2)
        rows = np.zeros((directions, one.blocks, one.rows, wide.shape[-1]), r.dtype)
        rows[:, :, : op.gates * one.units] = by_block.reshape(directions, one.blocks, op.gates * one.units, -1)
        if one.mma:  # the fragments of PTX's m16n8k16 (of tf32: m16n8k8)
            per = 4 // one.size
            parts = rows.reshape(directions, one.blocks, one.row_warps, one.rows_each, 2, 8, one.pieces, one.k_warps, 2, 4, per)
            # direction, block, piece, tile of the thread | warp (row, k), lane (row, k) | half of k, half of the rows, element
            return (np.ascontiguousarray(parts.transpose(0, 1, 6, 3, 2, 7, 5, 9, 8, 4, 10)),)
        parts = rows.reshape(directions, one.blocks, one.row_warps, one.rows_each, 4, one.pieces, one.k_warps, 8, 4)
        # direction, block, piece, row of the thread | warp (row, k), lane (row, k) | element
        return (np.ascontiguousarray(parts.transpose(0, 1, 5, 3, 2, 6, 4, 7, 8)),)

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (time, batch), chosen = operation(workload), sizes(workload), dict(config)
        if not batch or not time:
            return Plan(())
        scope, dtype, directions = chosen["scope"], workload.inputs[0].dtype, len(op.reverse)
        one = division_of(workload, config)
        groups = groups_of(workload, one, scope, device)
        if chosen["single"] and ceil_div(batch, groups) > one.chunk:
            raise ValueError(f"{batch} rows in {groups} groups do not fit the configuration, which was chosen for a larger device")
        options = names(workload) | {
            "UNITS": one.units, "THREADS": one.threads, "K_WARPS": one.k_warps, "CHUNK": one.chunk, "TILE": one.tile, "MMA": one.mma,
            "TAGGED": chosen["tagged"],
            "PLACE": chosen["place"], "SCOPE": scope, "SINGLE": chosen["single"], "VECTOR": vector_width(dtype.itemsize, op.hidden),
        }  # fmt: skip
        found = defines(device, **options)
        if scope == GRID:  # a cooperative launch does not overlap its predecessor
            found = tuple(pair for pair in found if pair[0] != "PDL")
        kernel = Kernel(FILE, "recurrence_persistent", found, prelude(workload))
        counters = directions * groups * COUNTER if scope == GRID and not chosen["tagged"] else 0
        words = 2 * directions * batch * op.hidden * dtype.itemsize * (1 + chosen["tagged"])
        exchange = ceil_div(words, 256) * 256 if scope in (GRID, LAUNCHES) else 0
        cells = directions * batch * op.hidden * 4
        counters_space = ceil_div(counters, 256) * 256
        shared = one.state_bytes + (one.weight_bytes if chosen["place"] == SHARED else 0)
        zeroed = exchange if chosen["tagged"] else counters  # a cluster has neither
        steps: list[Step] = [Memset(Buffer("workspace"), zeroed)] if zeroed else []
        for begin, end in [(step, step + 1) for step in range(time)] if scope == LAUNCHES else [(0, time)]:
            arguments = (
                tensors(workload, Buffer("packed", 0)), strides(workload), Buffer("workspace", 0, counters_space),
                Buffer("workspace", 0, counters_space + exchange), Buffer("workspace"), Scalar(time), Scalar(batch),
                Scalar(ceil_div(batch, groups)), Scalar(begin), Scalar(end),
            )  # fmt: skip
            plain = launch(kernel, (one.blocks, groups, directions), one.threads, arguments, shared)
            steps.append(
                Launch(plain.kernel, plain.grid, plain.block, plain.arguments, plain.shared_memory,
                       (one.blocks, 1, 1) if scope == CLUSTER else (1, 1, 1), plain.dependent, scope == GRID)
            )  # fmt: skip
        return Plan(tuple(steps), counters_space + exchange + cells)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        op, (time, batch), chosen = operation(workload), sizes(workload), dict(config)
        if not batch:
            return 0.0
        one = division_of(workload, config)
        groups = groups_of(workload, one, chosen["scope"], device)
        rows = ceil_div(batch, groups)
        waves = ceil(one.blocks * groups * len(op.reverse) / max(1, device.multiprocessors))
        passes = ceil_div(rows, 8 if one.mma else one.tile)
        if one.mma:  # a chain of products, or all warps' products at two cycles each
            products = passes * max(20 * one.pieces, one.weights * one.threads // 32 * 4 // one.size * 2) / 1.7e9
        else:
            products = one.weights * one.piece * one.threads * passes * (one.tile / (0.4 * 128) + (one.size == 2) / 64) / 1.7e9
        fetched = {REGISTERS: 0.0, SHARED: passes / 1.5e11, MEMORY: 1 / 3e10}[chosen["place"]] * one.weight_bytes
        # Every block reads the whole state; tags double its bytes.
        state = rows * op.hidden * one.size * (1 + chosen["tagged"]) * one.blocks * groups * len(op.reverse) / 5e12
        meeting = TAGGED[chosen["scope"]] if chosen["tagged"] else MEETING[chosen["scope"]]
        turns = ceil_div(rows, one.chunk)
        return time * waves * (0.4e-6 * turns + meeting + state * (chosen["scope"] in (GRID, LAUNCHES)) + products + fetched)


TACTICS = (Persistent(),)
