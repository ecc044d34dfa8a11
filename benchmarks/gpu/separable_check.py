"""Depthwise and pointwise convolution in one kernel beside the two kernels, on the GPU of this machine.

    python benchmarks/gpu/separable_check.py [--device 0] [--seconds 60] [--layers MobileNetV2,...] [--batches 1,32] [--types int8,fp16]
                                             [--fused 8] [--single 2] [--cubins FOLDER] [--compile-only] [--record NAME]

Every pair of MobileNetV2 and EfficientNet-B0 (whose pairs have a squeeze between them, which EfficientNet-Lite0 leaves out), quantised or in FP16, with scale,
bias, activation and requantisation as a build makes them. Of each kernel the first configurations are timed: replays of a graph over rotating copies of all data,
in turns, the median. ``pair`` is the fastest depthwise and the fastest pointwise kernel one after the other, which leaves what the second reads in the L2
cache; ``sum`` adds the times of each alone; the builder compares that less what lies between at the rate of memory, where L2 holds it. Every fused result is compared with the reference tactic's.
Kernels compile in processes of their own; with --cubins they are kept, so that another machine can compile (--compile-only) beforehand.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.pairs import Choice, Layer, arguments, cubins_of, opened, raced, recorded  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.expression import Convert, Expression, Literal, Operand, apply  # noqa: E402
from fusion.network import TensorType  # noqa: E402
from fusion.ops import Convolution, SeparableConvolution  # noqa: E402
from tactics.candidates import SelectOptions, candidates  # noqa: E402
from tactics.cuda.conv.depthwise import Depthwise  # noqa: E402
from tactics.cuda.conv.separable import MmaSeparable, SimtSeparable  # noqa: E402
from tactics.separable import parts  # noqa: E402
from tactics.tactic import Config, DeviceSpec, Workload, workload_bytes  # noqa: E402

FLOAT, HALF, INT8 = DataType.FLOAT, DataType.HALF, DataType.INT8
# (channels, height and width, output channels, window, stride) and how often the network has the pair, images of 224 x 224.
LAYERS = {
    "MobileNetV2": (
        ((32, 112, 16, 3, 1), 1), ((96, 112, 24, 3, 2), 1), ((144, 56, 24, 3, 1), 1), ((144, 56, 32, 3, 2), 1), ((192, 28, 32, 3, 1), 2),
        ((192, 28, 64, 3, 2), 1), ((384, 14, 64, 3, 1), 3), ((384, 14, 96, 3, 1), 1), ((576, 14, 96, 3, 1), 2), ((576, 14, 160, 3, 2), 1),
        ((960, 7, 160, 3, 1), 2), ((960, 7, 320, 3, 1), 1),
    ),
    "EfficientNet-B0": (
        ((32, 112, 16, 3, 1), 1), ((96, 112, 24, 3, 2), 1), ((144, 56, 24, 3, 1), 1), ((144, 56, 40, 5, 2), 1), ((240, 28, 40, 5, 1), 1),
        ((240, 28, 80, 3, 2), 1), ((480, 14, 80, 3, 1), 2), ((480, 14, 112, 5, 1), 1), ((672, 14, 112, 5, 1), 2), ((672, 14, 192, 5, 2), 1),
        ((1152, 7, 192, 5, 1), 3), ((1152, 7, 320, 3, 1), 1),
    ),
    "five": (((32, 112, 16, 3, 1), 1), ((96, 112, 24, 3, 2), 1), ((144, 56, 24, 3, 1), 1), ((384, 14, 64, 3, 1), 1), ((960, 7, 160, 3, 1), 1)),
}  # fmt: skip


def epilogue(dtype: DataType, activation: bool) -> Expression:
    """Bias (and ReLU6), for 8 bits behind the scale and before the requantisation."""
    total: Expression = Operand(0) if dtype is HALF else apply("mul", Convert(FLOAT, Operand(0)), Operand(2))
    real = apply("add", total, Operand(1))
    if activation:
        real = apply("clip", real, Literal(0.0, real_type(dtype)), Literal(6.0, real_type(dtype)))
    if dtype is HALF:
        return real
    return Convert(dtype, apply("clip", apply("round", apply("div", real, Literal(0.047, FLOAT))), Literal(-128.0, FLOAT), Literal(127.0, FLOAT)))


def real_type(dtype: DataType) -> DataType:
    """The type of the epilogue's constants."""
    return HALF if dtype is HALF else FLOAT


def workload(layer: tuple[int, int, int, int, int], batch: int, dtype: DataType) -> Workload:
    """A pair as one layer."""
    channels, size, out, window, stride = layer
    pad = (window // 2,) * 2
    first = Convolution((stride,) * 2, pad, pad, (1, 1), channels, True, epilogue(dtype, True))
    second = Convolution((1, 1), (0, 0), (0, 0), (1, 1), 1, True, epilogue(dtype, False))
    extras = 1 if dtype is HALF else 2
    op = SeparableConvolution(first, second, extras)
    inputs = (
        TensorType(dtype, (batch, size, size, channels)), TensorType(dtype, (channels, 1, window, window)), TensorType(dtype, (out, channels, 1, 1)),
        *(TensorType(real_type(dtype), (channels,)) for _ in range(extras)), *(TensorType(real_type(dtype), (out,)) for _ in range(extras)),
    )  # fmt: skip
    return Workload(op, inputs, op.infer(inputs), (False, *(True for _ in inputs[1:])))


def values(one: Workload, random: np.random.Generator) -> list[np.ndarray]:
    """All inputs; scales that keep results in range."""
    op = one.op
    assert isinstance(op, SeparableConvolution)
    found = []
    for number, kind in enumerate(one.inputs):
        shape = tuple(int(dim) for dim in kind.shape)  # type: ignore[arg-type]
        depth = int(np.prod(shape[1:])) if number in (1, 2) else 1
        if kind.dtype is INT8:
            found.append(random.integers(-128, 128, shape, dtype=np.int8))
        elif op.operands == 2 and number in (4, 6):
            taps = int(np.prod(one.inputs[1].shape[1:] if number == 4 else one.inputs[2].shape[1:]))  # type: ignore[arg-type]
            found.append(np.full(shape, (3000.0 if number == 4 else 2000.0) ** -1 * taps**-0.5, np.float32))
        else:
            found.append((random.standard_normal(shape, dtype=np.float32) * depth**-0.5).astype(kind.dtype.numpy))
    return found


def spread(ranked: Sequence[Config]) -> list[Config]:
    """The best of each kind of tile first."""
    first: dict[tuple[int, ...], Config] = {}
    for config in ranked:
        chosen = dict(config)
        first.setdefault(tuple(chosen[name] for name in ("bm", "bk", "splits")), config)
    best = list(first.values())
    return best + [one for one in ranked if one not in best]


def choices(one: Workload, spec: DeviceSpec, fused: int, single: int, wide: bool) -> list[Choice]:
    """The first configurations of each kernel; the reference stands first."""
    op, whole = one.op, tuple(range(len(one.inputs)))
    assert isinstance(op, SeparableConvolution)
    first, second = op.split(whole)
    found = [Choice(-1, SimtSeparable(), (), SimtSeparable().plan(one, (), spec), one, whole)]
    tactic = MmaSeparable()
    found += [Choice(-1, tactic, config, tactic.plan(one, config, spec), one, whole) for config in (spread(tactic.ranked(one, spec)) if wide else tactic.configs(one, spec))[:fused]]
    for number, part in enumerate(parts(one)):
        best = [pair for pair in candidates(part, spec, SelectOptions(level=4))[0] if not pair[0].reference]
        if number == 0:  # products with the filters on the diagonal never win
            best = [pair for pair in best if isinstance(pair[0], Depthwise)]
        inputs = (len(whole), *second) if number else first
        found += [Choice(number, tactic, config, tactic.plan(part, config, spec), part, inputs) for tactic, config in best[: single + number]]
    return found


def short(config: Config) -> str:
    """A configuration in few letters."""
    names = {"bm": "m", "bn": "n", "bk": "k", "warps_m": "wm", "warps_n": "wn", "stages": "s", "splits": "c", "tile_y": "y", "tile_x": "x"}
    chosen = dict(config)
    return " ".join(f"{letter}{chosen[name]}" for name, letter in names.items() if name in chosen)


def main() -> int:
    """Compile, check, time; 1 when a result is wrong."""
    parser = arguments(__doc__)
    parser.add_argument("--layers", default="MobileNetV2,EfficientNet-B0")
    parser.add_argument("--batches", default="32,1")
    parser.add_argument("--types", default="int8,fp16")
    parser.add_argument("--fused", type=int, default=8, help="configurations of the fused kernel")
    parser.add_argument("--single", type=int, default=2, help="configurations of each of the two kernels")
    parser.add_argument("--all", action="store_true", help="print every configuration")
    parser.add_argument("--wide", action="store_true", help="configurations of many kinds, not the most promising ones")
    options = parser.parse_args()
    begin = time.monotonic()
    device, spec = opened(options)
    kinds = {"int8": INT8, "fp16": HALF}
    layers = list(dict.fromkeys(layer for name in options.layers.split(",") for layer, _ in LAYERS[name]))
    cases = [(layer, int(batch), kinds[kind]) for batch in options.batches.split(",") for kind in options.types.split(",") for layer in layers]
    made = {case: choices(workload(*case), spec, options.fused, options.single, options.wide) for case in cases}
    cubins = cubins_of((choice for found in made.values() for choice in found), spec.arch, options, begin)
    return 0 if device is None else measured(device, made, cubins, options, begin)


def measured(device: Any, made: dict[tuple, list[Choice]], cubins: dict[str, bytes], options: argparse.Namespace, begin: float) -> int:
    """Checks and times every case that there is time for."""
    random, lines, mistakes, times = np.random.default_rng(0), [], 0, {}
    for case, found in made.items():
        (c, size, out, window, stride), batch, dtype = case
        name = f"b{batch} {c}x{size} -> {out} k{window} s{stride} {dtype.label}"
        if time.monotonic() - begin > options.seconds - 1:
            print("no time left for", name)
            break
        one = found[0].workload
        race = raced(Layer(device, one, parts(one)[1].inputs[0], values(one, random), cubins), name, found, 5, 9)
        mistakes += race.mistakes
        (_, chosen), (first, before), (second, after) = (race.ranked[part][0] for part in (-1, 0, 1))
        floor = workload_bytes(one) / device.spec.bandwidth
        times[case] = (race.fused, race.pair)
        print(f"{name:34s} fused {race.fused * 1e6:6.2f} pair {race.pair * 1e6:6.2f} ({race.pair / race.fused:.2f}) sum {first * 1e6:.2f}+{second * 1e6:.2f} "
              f"floor {floor * 1e6:.1f} | {next(number for number, choice in enumerate(found) if choice is chosen) - 1}: {short(chosen.config)}", flush=True)  # fmt: skip
        if options.all:
            print("    " + ", ".join(f"{seconds * 1e6:.2f} [{short(choice.config)}]" for seconds, choice in race.ranked[-1][1:7]), flush=True)
        singles = f"{before.tactic.id} {first * 1e6:.2f} + {after.tactic.id} {second * 1e6:.2f} alone"
        lines.append((f"depthwise + pointwise {name}", race.fused, race.pair, f"{short(chosen.config)}; floor {floor * 1e6:.2f}; {singles}"))
    for network, layers in LAYERS.items():
        for batch in dict.fromkeys(case[1] for case in made):
            for dtype in dict.fromkeys(case[2] for case in made):
                whole = [(times.get((layer, batch, dtype)), count) for layer, count in layers]
                if network == "five" or any(one is None for one, _ in whole):
                    continue
                fused, both = (sum(one[place] * count for one, count in whole if one is not None) for place in (0, 1))
                kept = sum(min(one) * count for one, count in whole if one is not None)
                print(f"{network} b{batch} {dtype.label}: fused {fused * 1e6:.1f} us, pairs {both * 1e6:.1f} ({both / fused:.2f}); the faster of each {kept * 1e6:.1f}")
                lines.append((f"depthwise + pointwise pairs of {network} b{batch} {dtype.label}", kept, both, f"all fused {fused * 1e6:.2f}"))
    print(f"{mistakes} wrong; total {time.monotonic() - begin:.0f} s")
    if options.record:
        recorded(options.record, lines)
    return 1 if mistakes else 0


if __name__ == "__main__":
    raise SystemExit(main())
