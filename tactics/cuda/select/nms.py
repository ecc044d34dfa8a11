"""Non-maximum suppression: candidates sorted, greedy selection by a block per batch and class, then all rows put together."""

from __future__ import annotations

from fusion.dtypes import DataType
from fusion.ops import NonMaxSuppression
from tactics.cuda.select.sort import PRELUDE, THREADS, TILE, Sorting
from tactics.cuda.simple import LIMIT, defines, dims, launch
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Memset, Plan, Refusal, Scalar, Tactic, Workload

FILE = "select/nms.cu"
KEPT = 1024  # taken boxes that a block keeps in shared memory


class Greedy(Tactic):
    """NonMaxSuppression in float32."""

    id = "cuda.nms.greedy"
    device = "cuda"
    ops = (NonMaxSuppression,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if any(workload.inputs[number].dtype is not DataType.FLOAT for number in (0, 1, 3, 4)):
            return Refusal("boxes, scores and thresholds must be float32")
        batch, classes, n = dims(workload.inputs[1])
        blocks = batch * classes
        return Refusal(f"{blocks} x {n} scores; this kernel counts to {LIMIT - 1}") if blocks * max(n, 1) >= LIMIT else None

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op = workload.op
        assert isinstance(op, NonMaxSuppression)
        batch, classes, n = dims(workload.inputs[1])
        blocks, room = batch * classes, min(int(op.most), n)  # type: ignore[arg-type]
        rows, found = Buffer("output"), Buffer("output", 1)
        if not blocks * room:
            return Plan((Memset(found, 8),))
        lines = Sorting(blocks, n, 4, workload.axis_varies(1, 2), Buffer("workspace", 0, 16 * blocks * n + 4 * blocks * room))
        counts, taken = lines.counts, Buffer("workspace", 0, 16 * blocks * n)
        first, second = Buffer("workspace"), Buffer("workspace", 0, 8 * blocks * n)
        assert counts is not None

        def kernel(step: int, entry: str, **more: int) -> Kernel:
            return Kernel(FILE, entry, defines(device, STEP=step, THREADS=THREADS, KEY_BYTES=4, CENTER=op.center, **more), PRELUDE)

        boxes, scores, most, overlap, least = (Buffer("input", number) for number in range(5))
        sizes = (Scalar(classes, "u32"), Scalar(room, "u32"))
        steps = (
            launch(kernel(0, "gather_candidates", LIMITED=op.score_limit), blocks, THREADS, (scores, least, first, counts, Scalar(n, "u32"))),
            *lines.steps(device, first, second),
            launch(kernel(1, "take_boxes", TILE=TILE, KEPT=KEPT), blocks, THREADS,
                   (boxes, most, overlap, first, second, taken, counts, Scalar(n, "u32"), *sizes)),
            launch(kernel(2, "write_rows"), blocks, THREADS, (taken, counts, rows, found, *sizes)),
        )  # fmt: skip
        return Plan(steps, 16 * blocks * n + 4 * blocks * (room + 1))


TACTICS = (Greedy(),)
