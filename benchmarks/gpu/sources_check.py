"""Our own kernels beside those of cuBLASLt and cuDNN as tactic sources, each layer through the same tactic selection.

    python benchmarks/gpu/sources_check.py [--seconds 40] [--level 3] [--only gemm] [--results FILE]

Per workload one line: the best time of each source, as the builder would find them (checked against the reference tactic, interleaved).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.selection import Case, arguments, decisions  # noqa: E402
from benchmarks.runner import compare, record  # noqa: E402
from fusion.dtypes import DataType  # noqa: E402
from fusion.expression import Expression, Operand, apply  # noqa: E402
from fusion.network import Op, TensorType  # noqa: E402
from fusion.ops import Convolution, MatrixMultiply  # noqa: E402
from runtime.device import DeviceError  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from tactics.candidates import SelectOptions  # noqa: E402
from tactics.registry import source_of  # noqa: E402
from tactics.tactic import Workload  # noqa: E402

BIAS = apply("add", Operand(0), Operand(1))
SUM = apply("add", BIAS, Operand(2))
EPILOGUES: dict[str, Expression] = {
    "bias": BIAS, "relu": apply("relu", BIAS), "gelu": apply("gelu", BIAS), "gelu_tanh": apply("gelu_tanh", BIAS), "sum": SUM,
    "sum relu": apply("relu", SUM),
}  # fmt: skip


def gemm(m: int, n: int, k: int, epilogue: str) -> Case:
    """A product with constant weights."""
    shapes = [(m, k), (k, n), (n,), *([(m, n)] if "sum" in epilogue else [])]
    return case_of(f"gemm {m}x{n}x{k} {epilogue}", MatrixMultiply(epilogue=EPILOGUES[epilogue]), shapes)


def conv(batch: int, size: int, channels: int, out: int, taps: int, stride: int, epilogue: str) -> Case:
    """A square convolution, channels-last."""
    pad = (taps // 2,) * 2
    op = Convolution((stride,) * 2, pad, pad, (1, 1), 1, True, EPILOGUES[epilogue])
    last = (batch, -(-size // stride), -(-size // stride), out)
    shapes = [(batch, size, size, channels), (out, channels, taps, taps), (out,), *([last] if "sum" in epilogue else [])]
    return case_of(f"conv b{batch} {size}x{size}x{channels}->{out} {taps}x{taps}/{stride} {epilogue}", op, shapes)


def case_of(name: str, op: Op, shapes: Sequence[tuple[int, ...]]) -> Case:
    """A float16 layer whose inputs 1 and 2 (weights and bias) are constants."""
    types = tuple(TensorType(DataType.HALF, shape) for shape in shapes)

    def values() -> dict[int, np.ndarray]:
        generator = np.random.default_rng(1)
        return {n: (generator.normal(size=shapes[n]) * 0.05).astype(np.float16) for n in (1, 2)}

    return Case(f"{name} float16", Workload(op, types, op.infer(types), tuple(n in (1, 2) for n in range(len(shapes)))), values)


CASES = [
    gemm(128, 768, 768, "bias"), gemm(128, 3072, 768, "gelu"), gemm(128, 3072, 768, "gelu_tanh"), gemm(128, 768, 3072, "sum"),
    gemm(4096, 3072, 768, "gelu_tanh"), gemm(4096, 768, 3072, "sum"), gemm(4096, 4096, 4096, "bias"), gemm(1, 4096, 4096, "bias"),
    gemm(1, 11008, 4096, "bias"), gemm(8, 4096, 4096, "bias"), gemm(16, 11008, 4096, "bias"),
    conv(1, 56, 64, 64, 3, 1, "relu"), conv(1, 14, 256, 256, 3, 1, "relu"), conv(1, 7, 512, 2048, 1, 1, "sum relu"),
    conv(32, 56, 64, 64, 3, 1, "relu"), conv(32, 28, 512, 128, 1, 1, "relu"), conv(32, 14, 1024, 2048, 1, 2, "bias"),
]  # fmt: skip


def main() -> None:
    given, device, sources = arguments(__doc__, "sources", 40), open_device("0"), []
    for name in ("CUBLAS_LT", "CUDNN"):
        try:
            print(f"{name} {device.library(name).version}")
            sources.append(name)
        except DeviceError as error:
            print(error)
    driver = str(device.properties().get("driver", ""))
    for case, decision in decisions(CASES, device, SelectOptions(level=given.level, sources=tuple(sources)), given):
        best: dict[str, float] = {}
        for row in decision.timings:
            source = source_of(row.tactic)
            if row.seconds is not None:
                best[source or "own"] = min(row.seconds, best.get(source or "own", row.seconds))
            elif source:
                print(f"    {row.tactic} {dict(row.config)}: {row.reason[:110]}")
        library = min((source for source in best if source != "own"), key=lambda source: best[source], default="")
        peer = [best[library] * 1e6] if library else []
        result = compare(case.name, [best["own"] * 1e6], "us", peer, library, device=device.spec.name, driver=driver, note=f"winner {decision.tactic}")
        record(given.results, [result])
        each = ", ".join(f"{source} {seconds * 1e6:.1f}" for source, seconds in sorted(best.items()))
        print(f"{case.name}: {each} us; {decision.tactic}", flush=True)


if __name__ == "__main__":
    main()
