"""Non-maximum suppression: greedy selection by a block per batch and class, then all rows put together."""

from __future__ import annotations

from fusion.dtypes import DataType
from fusion.ops import NonMaxSuppression
from tactics.cuda.simple import LIMIT, defines, dims, launch
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Memset, Plan, Refusal, Scalar, Tactic, Workload

FILE = "select/nms.cu"
THREADS = 256


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
        scores, candidates = Buffer("workspace"), Buffer("workspace", 0, 4 * blocks * n)
        taken, counts = Buffer("workspace", 0, 8 * blocks * n), Buffer("workspace", 0, 8 * blocks * n + 4 * blocks * room)

        def kernel(step: int, entry: str) -> Kernel:
            return Kernel(FILE, entry, defines(device, STEP=step, THREADS=THREADS, CENTER=op.center, LIMITED=op.score_limit))

        inputs = tuple(Buffer("input", number) for number in range(5))
        sizes = (Scalar(classes, "u32"), Scalar(room, "u32"))
        steps = (
            launch(kernel(0, "take_boxes"), blocks, THREADS, (*inputs, scores, candidates, taken, counts, Scalar(n, "u32"), *sizes)),
            launch(kernel(1, "write_rows"), blocks, THREADS, (taken, counts, rows, found, *sizes)),
        )
        return Plan(steps, 8 * blocks * n + 4 * blocks * (room + 1))


TACTICS = (Greedy(),)
