"""A product of real numbers and the quantisation of its result, in one kernel beside the two kernels, on the GPU of this machine.

    python benchmarks/gpu/quantized_results_check.py [--device 0] [--seconds 60] [--only gemm,rows,...] [--fused 6] [--single 3] [--cubins FOLDER] [--compile-only]
                                                     [--record NAME]

FP16 operands, INT8 results (FP8 where the case says so). ``gemm``: projections of BERT-base with a residual sum, and with GELU; ``rows``: few rows over a large weight;
``conv``: convolutions of ResNet-50 with ReLU, its stem among them; ``depthwise``: those of MobileNetV2 and EfficientNet-B0; ``attention``: heads of 64. Of each kernel the first configurations are
timed: replays of a graph over rotating copies of all data, in turns, the median. ``pair`` is the fastest product and the fastest pointwise kernel one after the other,
which leaves what the second reads in the L2 cache. Every fused result is compared with the reference tactic's. Kernels compile in processes of their own; with --cubins
they are kept, so that another machine can compile (--compile-only) beforehand.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.pairs import Choice, Race, check  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.expression import Convert, Expression, Literal, Operand, apply  # noqa: E402
from fusion.network import Op, TensorType  # noqa: E402
from fusion.ops import Attention, Convolution, MatrixMultiply, Pointwise  # noqa: E402
from tactics.registry import tactics  # noqa: E402
from tactics.select import SelectOptions, candidates  # noqa: E402
from tactics.tactic import DeviceSpec, Workload  # noqa: E402

FLOAT, HALF, INT8, FP8 = DataType.FLOAT, DataType.HALF, DataType.INT8, DataType.FP8
X, Y, Z = Operand(0), Operand(1), Operand(2)
LIMITS = {INT8: (-128.0, 127.0), FP8: (-448.0, 448.0)}
# (rows, depth, columns, 1: GELU, 2: a residual sum, and bits of the result's type); (batch, channels, height, output channels, window, stride, groups)
CASES: dict[str, tuple[tuple[int, ...], ...]] = {
    "gemm": ((4096, 768, 768, 2), (4096, 3072, 768, 2), (4096, 768, 3072, 1), (128, 768, 768, 2), (128, 768, 3072, 1), (4096, 4096, 4096, 0)),
    "fp8": ((4096, 768, 3072, 1), (128, 768, 3072, 1)),
    "rows": ((1, 4096, 4096, 0), (8, 4096, 4096, 0), (16, 4096, 11008, 0)),
    "conv": ((32, 3, 224, 64, 7, 2, 1), (1, 3, 224, 64, 7, 2, 1), (32, 64, 56, 64, 3, 1, 1), (1, 64, 56, 64, 3, 1, 1), (32, 256, 14, 256, 3, 1, 1), (1, 512, 7, 512, 3, 1, 1),
             (32, 64, 56, 256, 1, 1, 1)),
    "attention": ((1, 12, 128, 64), (32, 12, 128, 64), (1, 12, 1024, 64), (8, 16, 4096, 64)),  # batch, heads, positions, head size
    "depthwise": ((32, 144, 56, 144, 3, 1, 144), (32, 672, 14, 672, 5, 1, 672), (1, 144, 56, 144, 3, 1, 144)),
}  # fmt: skip


def quantized(real: Expression, out: DataType, scale: float = 0.03) -> Expression:
    """``real``, computed in float32, quantised to ``out``."""
    steps: Expression = apply("div", Convert(FLOAT, real), Literal(scale, FLOAT))
    if out.is_integer:
        steps = apply("round", steps)
    return Convert(out, apply("clip", steps, *(Literal(limit, FLOAT) for limit in LIMITS[out])))


def workload(kind: str, sizes: tuple[int, ...]) -> Workload:
    """The product with its quantisation; a bias comes first."""
    real = apply("add", X, Y)
    if kind == "attention":
        batch, heads, positions, size = sizes
        inputs = (TensorType(HALF, (batch, positions, heads, size)),) * 3
        attention = Attention(size**-0.5, layouts=("bshd",) * 4, epilogue=quantized(X, INT8, 0.01))
        return Workload(attention, inputs, attention.infer(inputs))
    if kind in ("conv", "depthwise"):
        batch, channels, size, out, taps, stride, groups = sizes
        pad = (taps // 2,) * 2
        planes = channels < 4
        op: Op = Convolution((stride,) * 2, pad, pad, (1, 1), groups, True, quantized(apply("relu", real), INT8), input_channels_last=False if planes else None)
        shapes = [(batch, channels, size, size) if planes else (batch, size, size, channels), (out, channels // groups, taps, taps), (out,)]
    else:
        rows, depth, columns, more = sizes
        real = apply("gelu", real) if more == 1 else apply("add", real, Z) if more == 2 else real
        op = MatrixMultiply(epilogue=quantized(real, FP8 if kind == "fp8" else INT8))
        shapes = [(rows, depth), (depth, columns), (columns,), *([(rows, columns)] if more == 2 else [])]
    inputs = tuple(TensorType(HALF, shape) for shape in shapes)
    return Workload(op, inputs, op.infer(inputs), (False, True, True, False)[: len(inputs)])


def apart(one: Workload) -> tuple[Workload, Workload]:
    """The product that stores float16, and the quantisation as a layer of its own."""
    steps = one.op.epilogue  # type: ignore[attr-defined]
    real, out = _real(steps), one.outputs[0].dtype
    first = replace(one.op, epilogue=real)  # type: ignore[type-var]
    middle = first.infer(one.inputs)
    return replace(one, op=first, outputs=middle), Workload(Pointwise(quantized(X, out)), middle, one.outputs, (False,))


def _real(expression: Expression) -> Expression:
    """What :func:`quantized` was given."""
    while not (isinstance(expression, Convert) and expression.dtype is FLOAT):
        expression = expression.argument if isinstance(expression, Convert) else expression.arguments[0]  # type: ignore[union-attr]
    return expression.argument


def choices(one: Workload, spec: DeviceSpec, fused: int, single: int) -> list[Choice]:
    """The first configurations of each kernel; the reference stands first."""
    whole, known = tuple(range(len(one.inputs))), [tactic for tactic in tactics("cuda") if isinstance(one.op, tactic.ops) and not tactic.source]
    reference = next(tactic for tactic in known if tactic.reference and tactic.supports(one, spec) is None)
    chosen = [(tactic, config) for tactic in known if not tactic.reference and tactic.supports(one, spec) is None for config in tactic.configs(one, spec)[:fused]]
    found = [Choice(-1, tactic, config, tactic.plan(one, config, spec), one, whole) for tactic, config in ((reference, reference.configs(one, spec)[0]), *chosen)]
    for number, part in enumerate(apart(one)):
        best = [pair for pair in candidates(part, spec, SelectOptions(level=4))[0] if not pair[0].reference or number == 1]
        inputs = (len(whole),) if number else whole
        found += [Choice(number, tactic, config, tactic.plan(part, config, spec), part, inputs) for tactic, config in best[: single * (3 - 2 * number)]]
    return found


def report(name: str, race: Race, floor: float) -> tuple[str, str, str]:
    """The line of a case, its record's name and note."""
    (_, chosen), (first, other), (second, _) = (race.ranked[part][0] for part in (-1, 0, 1))
    line = (f"{name:28s} fused {race.fused * 1e6:6.2f} pair {race.pair * 1e6:6.2f} ({race.pair / race.fused:.2f}) alone {first * 1e6:.2f} + {second * 1e6:.2f} "
            f"({chosen.tactic.id[5:]}; {other.tactic.id[5:]}) floor {floor * 1e6:.1f}")  # fmt: skip
    note = f"{chosen.tactic.id}; floor {floor * 1e6:.2f}; {other.tactic.id} {first * 1e6:.2f} + {second * 1e6:.2f} alone"
    return line, f"quantised result {name} FP16", note


if __name__ == "__main__":
    raise SystemExit(check(__doc__, CASES, workload, choices, lambda one: apart(one)[0].outputs[0], report))
