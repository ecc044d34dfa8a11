"""Recurrences of any cell, size and type: one block per row of the batch and direction."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.ops import Recurrence
from tactics.cuda.recurrent.common import names, operation, prelude, refusal_of, sizes, strides, tensors
from tactics.cuda.simple import ceil_div, defines, launch
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Tactic, Workload, config

FILE = "recurrent/rows.cu"


class Rows(Tactic):
    """The weights are read from memory at every step."""

    id = "cuda.recurrence.rows"
    device = "cuda"
    ops = (Recurrence,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        needed = self._shared(workload)
        if device.shared_memory and needed > device.shared_memory:
            return Refusal(f"the state needs {needed} bytes of shared memory, there are {device.shared_memory}")
        return refusal_of(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        return [config(threads=threads) for threads in (512, 256, 1024)]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, (time, batch), threads = operation(workload), sizes(workload), dict(config)["threads"]
        states = len(op.reverse) * batch * op.hidden * self._wide(workload)
        gates = ceil_div(states * op.gates, 256) * 256
        kernel = Kernel(FILE, "recurrence_rows", defines(device, THREADS=threads, **names(workload)), prelude(workload))
        arguments = (tensors(workload, Buffer("input", 1)), strides(workload), Buffer("workspace"), Buffer("workspace", 0, gates),
                     Scalar(time), Scalar(batch))  # fmt: skip
        if not batch:
            return Plan(())
        return Plan((launch(kernel, (batch, len(op.reverse)), threads, arguments, self._shared(workload)),), gates + states)

    def estimate(self, workload: Workload, config: Config, device: DeviceSpec) -> float:
        op, (time, batch) = operation(workload), sizes(workload)
        waves = ceil_div(batch * len(op.reverse), max(1, device.multiprocessors))
        return time * waves * (3e-6 + op.gates * op.hidden**2 * workload.inputs[0].dtype.itemsize / 40e9)

    @staticmethod
    def _wide(workload: Workload) -> int:
        return max(4, workload.inputs[0].dtype.itemsize)

    def _shared(self, workload: Workload) -> int:
        return 2 * operation(workload).hidden * self._wide(workload)


TACTICS = (Rows(),)
