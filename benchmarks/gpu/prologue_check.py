"""A function in front of a product, in one kernel beside the two kernels, on the GPU of this machine.

    python benchmarks/gpu/prologue_check.py [--device 0] [--seconds 60] [--only dense,gate,...] [--fused 6] [--single 3] [--cubins FOLDER] [--compile-only]
                                            [--record NAME]

FP16. ``dense``: a normalisation, ReLU and the 1x1 convolution of DenseNet-121's blocks; ``window``: the same before a 3x3 convolution of ResNet V2; ``gate``: the factor
per image and channel of EfficientNet-B0's squeezes before the projection; ``gelu``: a GELU before a product. Of each kernel the first configurations are timed:
replays of a graph over rotating copies of all data, in turns, the median. ``pair`` is the fastest pointwise and the fastest product kernel one after the other,
which leaves what the second reads in the L2 cache; ``sum`` adds the times of each alone; the builder compares that less what lies between at the rate of memory, where L2 holds it. Every fused result is compared with the reference tactic's.
Kernels compile in processes of their own; with --cubins they are kept, so that another machine can compile (--compile-only) beforehand.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.pairs import Choice, Race, check  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.expression import Expression, Operand, apply  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from fusion.ops import Convolution, MatrixMultiply, Pointwise, PrologueProduct  # noqa: E402
from tactics.cuda.gemm.prologue import SimtPrologue  # noqa: E402
from tactics.prologue import product  # noqa: E402
from tactics.registry import tactics  # noqa: E402
from tactics.select import SelectOptions, candidates  # noqa: E402
from tactics.tactic import DeviceSpec, Workload  # noqa: E402

HALF = DataType.HALF
X, Y, Z = Operand(0), Operand(1), Operand(2)
SCALED = apply("relu", apply("add", apply("mul", X, Y), Z))
# (batch, channels, height, output channels), or (rows, depth, columns)
CASES: dict[str, tuple[tuple[int, ...], ...]] = {
    "dense": ((32, 64, 56, 128), (32, 256, 56, 128), (32, 512, 28, 128), (32, 1024, 14, 128), (32, 1024, 7, 128), (32, 512, 28, 256), (1, 128, 56, 128), (1, 512, 28, 128), (1, 1024, 7, 128)),
    "window": ((32, 64, 56, 64), (1, 64, 56, 64), (1, 256, 14, 256)),
    "gate": ((32, 32, 112, 16), (32, 144, 56, 24), (32, 480, 14, 112), (32, 1152, 7, 192), (1, 144, 56, 24), (1, 672, 14, 112)),
    "gelu": ((4096, 3072, 768), (197, 3072, 768), (8, 4096, 4096), (1, 4096, 4096)),
}  # fmt: skip


def workload(kind: str, sizes: tuple[int, ...]) -> Workload:
    """One layer of a case; the product has a bias and a ReLU behind it."""
    epilogue = apply("relu", apply("add", X, Y))
    if kind == "gelu":
        rows, depth, columns = sizes
        return _workload(PrologueProduct(MatrixMultiply(epilogue=epilogue), apply("gelu", X)), (rows, depth), (depth, columns), (columns,))
    batch, channels, size, out = sizes
    taps = 3 if kind == "window" else 1
    op = Convolution((1, 1), (taps // 2,) * 2, (taps // 2,) * 2, (1, 1), 1, True, epilogue)
    prologue: Expression = apply("mul", X, Y) if kind == "gate" else SCALED
    operands = [(batch, 1, 1, channels)] if kind == "gate" else [(channels,), (channels,)]
    return _workload(PrologueProduct(op, prologue, len(operands)), (batch, size, size, channels), (out, channels, taps, taps), (out,), *operands)


def _workload(op: PrologueProduct, *shapes: tuple[int, ...]) -> Workload:
    inputs = tuple(TensorType(HALF, shape) for shape in shapes)
    return Workload(op, inputs, op.infer(inputs), (False, *(len(shape) != 4 or number == 1 for number, shape in enumerate(shapes) if number)))


def choices(one: Workload, spec: DeviceSpec, fused: int, single: int) -> list[Choice]:
    """The first configurations of each kernel; the reference stands first."""
    op, whole = one.op, tuple(range(len(one.inputs)))
    assert isinstance(op, PrologueProduct)
    first, second = op.split(whole)
    reference = SimtPrologue()
    found = [Choice(-1, reference, (), reference.plan(one, (), spec), one, whole)]
    for tactic in tactics("cuda"):
        if isinstance(op, tactic.ops) and not tactic.reference and tactic.supports(one, spec) is None:
            found += [Choice(-1, tactic, config, tactic.plan(one, config, spec), one, whole) for config in tactic.configs(one, spec)[:fused]]
    types, _ = op.split(one.inputs)
    known, _ = op.split(one.constant)
    pointwise = Workload(Pointwise(op.prologue), types, (op.middle(types),), known)
    for number, part in enumerate((pointwise, product(one))):
        best = [pair for pair in candidates(part, spec, SelectOptions(level=4))[0] if not pair[0].reference or number == 0]
        inputs = (len(whole), *second) if number else first
        found += [Choice(number, tactic, config, tactic.plan(part, config, spec), part, inputs) for tactic, config in best[: single * (1 + 2 * number)]]
    return found


def report(name: str, race: Race, floor: float) -> tuple[str, str, str]:
    """The line of a case, its record's name and note."""
    (_, chosen), (first, _), (second, other) = (race.ranked[part][0] for part in (-1, 0, 1))
    each: dict[str, float] = {}
    for seconds, choice in race.ranked[-1]:
        each.setdefault(choice.tactic.id.rsplit(".", 1)[1], seconds)
    kinds = ", ".join(f"{which} {seconds * 1e6:.2f}" for which, seconds in each.items())
    line = (f"{name:22s} fused {race.fused * 1e6:6.2f} pair {race.pair * 1e6:6.2f} ({race.pair / race.fused:.2f}) sum {first * 1e6:.2f}+{second * 1e6:.2f} ({other.tactic.id[5:]}) "
            f"floor {floor * 1e6:.1f} | {kinds}")  # fmt: skip
    note = f"{chosen.tactic.id}; floor {floor * 1e6:.2f}; {first * 1e6:.2f} + {other.tactic.id} {second * 1e6:.2f} alone"
    return line, f"prologue {name} FP16", note


if __name__ == "__main__":
    raise SystemExit(check(__doc__, CASES, workload, choices, lambda one: product(one).inputs[0], report))
