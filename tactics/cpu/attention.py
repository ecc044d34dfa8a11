"""Scaled dot-product attention: per batch element and head, rows of scores that stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fusion.ops import Attention
from tactics.cpu.epilogue import make_epilogue
from tactics.cpu.steps import Arrays, Call, Scratch, one_step, spans, threads_of
from tactics.cpu.threads import Action, parallel
from tactics.tactic import Config, DeviceSpec, Plan, Refusal, Tactic, Workload, config


class AttentionRows(Tactic):
    """``rows`` queries at once: scores, softmax, product with the values."""

    id = "cpu.attention.rows"
    device = "cpu"
    ops = (Attention,)

    def supports(self, workload: Workload, device: DeviceSpec) -> Refusal | None:
        if workload.op.parts:  # type: ignore[attr-defined]
            return Refusal("q, k and v are parts of other tensors; this tactic reads three")
        if not workload.inputs[0].dtype.is_float:
            return Refusal(
                f"{workload.inputs[0].dtype.label} queries: attention multiplies floating-point numbers only"
            )
        return None

    def configs(self, workload: Workload, device: DeviceSpec) -> Sequence[Config]:
        threads = threads_of(device)
        sizes = _sizes(workload)
        rows = max(1, min(sizes["s"], (1 << 17) // max(1, sizes["t"])))
        found = [
            config(rows=rows, threads=threads),
            config(rows=min(64, rows), threads=threads),
            config(rows=rows, threads=1),
        ]
        return tuple(dict.fromkeys(found))

    def plan(self, workload: Workload, config: Config, device: DeviceSpec) -> Plan:
        op, values, sizes = workload.op, dict(config), _sizes(workload)
        assert isinstance(op, Attention)
        held = np.dtype(np.float64 if workload.inputs[0].dtype.itemsize == 8 else np.float32)
        rows, threads = values["rows"], values["threads"]
        b, h, s, t, d, e = (sizes[name] for name in ("b", "h", "s", "t", "d", "e"))
        shared = h // max(1, sizes["k"])  # query heads that one key head serves
        types = [workload.inputs[i].dtype.numpy for i in range(3)]
        epilogue = make_epilogue(op.epilogue, held, (), workload.outputs[0])
        scratch = Scratch()
        spaces = [
            {
                "q": scratch.take((rows, d), held),
                "k": scratch.take((t, d) if types[1] != held else (0,), held),
                "v": scratch.take((t, e) if types[2] != held else (0,), held),
                "scores": scratch.take((rows, t), held),
                "small": scratch.take((2, rows, 1), held),
                "flags": scratch.take((rows, 1), bool),
                "out": scratch.take((rows, e), held),
                "mask": scratch.take((rows, t) if op.masked else (0,), held),
                "hidden": scratch.take((rows, t) if op.masked else (0,), bool),
                "spare": scratch.take((epilogue.scratch_bytes,), np.uint8),
            }
            for _ in range(threads)
        ]
        ahead = np.arange(t) - np.arange(s)[:, None] - (t - s)
        late = ahead > 0 if op.causal else None
        if op.window:
            late = ahead <= -op.window if late is None else late | (ahead <= -op.window)
        minus = held.type(-np.inf)

        def bind(inputs: Arrays, outputs: Arrays, packed: Arrays, workspace: np.ndarray) -> Call:
            q, k, v = (
                array.transpose([layout.index(axis) for axis in "bhsd"])
                for array, layout in zip(inputs[:3], op.layouts, strict=False)
            )
            out = outputs[0].transpose([op.layouts[3].index(axis) for axis in "bhsd"])
            mask = np.broadcast_to(inputs[3], (b, h, s, t)) if op.masked else None
            units = [(i, j, r, min(r + rows, s)) for i in range(b) for j in range(h) for r in range(0, s, rows)]
            jobs: list[list[Action]] = []
            for (low, high), slots in zip(spans(len(units), threads), spaces, strict=False):
                space = {name: slot.view(workspace) for name, slot in slots.items()}
                job: list[Action] = []
                before = None
                for i, j, r0, r1 in units[low:high]:
                    count = r1 - r0
                    keys, values_ = k[i, j // shared], v[i, j // shared]
                    if types[1] != held:
                        if before != (i, j // shared):
                            job.append(partial(np.copyto, space["k"], keys, casting="unsafe"))
                        keys = space["k"]
                    if types[2] != held:
                        if before != (i, j // shared):
                            job.append(partial(np.copyto, space["v"], values_, casting="unsafe"))
                        values_ = space["v"]
                    before = (i, j // shared)
                    query, scores = space["q"][:count], space["scores"][:count]
                    peak, total = space["small"][:, :count]
                    flags = space["flags"][:count]
                    job += [
                        partial(np.copyto, query, q[i, j, r0:r1], casting="unsafe"),
                        partial(np.multiply, query, held.type(op.scale), out=query),
                        partial(np.matmul, query, keys.T, out=scores),
                    ]
                    if op.softcap:
                        cap = held.type(op.softcap)
                        job += [partial(np.divide, scores, cap, out=scores), partial(np.tanh, scores, out=scores),
                                partial(np.multiply, scores, cap, out=scores)]  # fmt: skip
                    if mask is not None:
                        part = mask[i, j, r0:r1]
                        if part.dtype == np.bool_:
                            hidden = space["hidden"][:count]
                            job.append(partial(np.logical_not, part, out=hidden))
                            job.append(partial(np.copyto, scores, minus, where=hidden))
                        else:
                            wide = space["mask"][:count]
                            job.append(partial(np.copyto, wide, part, casting="unsafe"))
                            job.append(partial(np.add, scores, wide, out=scores))
                    if late is not None:
                        job.append(partial(np.copyto, scores, minus, where=late[r0:r1]))
                    target = out[i, j, r0:r1]
                    result = target if epilogue.in_place else space["out"][:count]
                    job += [
                        partial(np.maximum.reduce, scores, axis=1, out=peak, keepdims=True),
                        partial(np.isneginf, peak, out=flags),
                        partial(np.copyto, peak, held.type(0), where=flags),
                        partial(np.subtract, scores, peak, out=scores),
                        partial(np.exp, scores, out=scores),
                        partial(np.add.reduce, scores, axis=1, out=total, keepdims=True),
                        partial(np.copyto, total, held.type(1), where=flags),
                        partial(np.divide, scores, total, out=scores),
                        partial(np.matmul, scores, values_, out=result),
                    ]
                    job += epilogue.actions(result, [], target, space["spare"])
                jobs.append(job)
            return parallel(jobs, threads)

        return one_step(bind, self.id, scratch.size)


def _sizes(workload: Workload) -> dict[str, int]:
    """Sizes by letter: b, h, s, d of the queries, k (key heads), t (keys), e (values' width)."""
    op = workload.op
    assert isinstance(op, Attention)
    named = [
        dict(zip(layout, (int(dim) for dim in tensor.shape), strict=True))  # type: ignore[arg-type]
        for layout, tensor in zip(op.layouts, workload.inputs[:3], strict=False)
    ]
    return {**named[0], "k": named[1]["h"], "t": named[1]["s"], "e": named[2]["d"]}


TACTICS: tuple[Tactic, ...] = (AttentionRows(),)
