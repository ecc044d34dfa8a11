"""Running sums and products: a scan by part of a warp up to a block per line, or one thread per line across neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from fusion.expression import compute_type
from fusion.ops import Cumulative
from tactics.cuda.codegen import STORAGE_TYPES
from tactics.cuda.order.argreduce import refusal_of, view
from tactics.cuda.simple import OUT, block_of, ceil_div, defines, divider, launch
from tactics.tactic import Buffer, Config, DeviceSpec, Kernel, Plan, Refusal, Scalar, Struct, Tactic, Workload, config

FILE = "order/cumulative.cu"
PRELUDE = '#include "vector.cuh"\n'
KINDS = ("sum", "prod")


class Scan(Tactic):
    """Cumulative along any axis; group 0 is one thread per line."""

    id = "cuda.cumulative.scan"
    device = "cuda"
    ops = (Cumulative,)
    reference = True

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        kind = workload.op.kind  # type: ignore[attr-defined]
        if kind not in KINDS:
            return Refusal(f"cumulative {kind!r}; this kernel has {', '.join(KINDS)}")
        return refusal_of(workload)

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        outer, n, inner = view(workload)
        threads = config(group=0, items=1)
        items = 4 if n >= 128 else 1
        groups = [config(group=group, items=items) for group in (8, 32, 256, 1024) if group == 8 or group * items < 2 * n]
        groups.reverse()
        if outer * inner >= device.multiprocessors * 128:  # many lines: a warp or less for each
            groups.reverse()
        by_column = inner >= 32 and (outer * inner >= device.multiprocessors * 256 or n <= 64)
        return [threads, *groups] if by_column or n <= 4 else [*groups, threads]

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, chosen, (outer, n, inner) = workload.op, dict(config), view(workload)
        assert isinstance(op, Cumulative)
        group, dtype = chosen["group"], workload.inputs[0].dtype
        threads = block_of(group) if group else 128
        names = defines(device, KIND=0 if group else 1, IN_T=STORAGE_TYPES[dtype], WORK=STORAGE_TYPES[compute_type(dtype)],
                        PRODUCT=op.kind == "prod", EXCLUSIVE=op.exclusive, REVERSE=op.reverse, THREADS=threads,
                        **({"GROUP": group, "ITEMS": chosen["items"]} if group else {}))  # fmt: skip
        kernel = Kernel(FILE, "scan_lines" if group else "scan_columns", names, PRELUDE)
        lines = outer * inner
        arguments = (Buffer("input"), OUT, Scalar(lines, "u32"), Scalar(n, "u32"), Struct(divider(inner)))
        return Plan((launch(kernel, ceil_div(lines, threads // max(1, group)), threads, arguments),))


TACTICS = (Scan(),)
