"""What single fusions gain in blocks of transformers: built with and without them, on the GPU of this machine.

    python benchmarks/gpu/blocks_check.py [NAME ...] [--device 0] [--level 1] [--cache FILE] [--no-record]

Both engines are compared (outputs of random inputs), then timed in turns as graph replays; one JSON line each: ours is the engine as it is built,
the peer the one with ``--disableFusion`` of the rules that the case names. FP16 models of random weights. No torch is needed.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.engines import arguments, largest_error, raced  # noqa: E402
from benchmarks.runner import record  # noqa: E402
from runtime.devices import open_device  # noqa: E402
from tests.language_models import Block, Widths, inputs_of, llama, mmdit, model, sam, swin_v2, yolo11  # noqa: E402
from trtcli.builder import build  # noqa: E402
from trtcli.config import BuildConfig  # noqa: E402
from trtcli.log import Log  # noqa: E402

QWEN3 = Widths(1024, 16, 8, 128, 3072, 1024)  # 0.6B


@dataclass(frozen=True)
class Case:
    """A block, its named sizes, and the rules without which it is built once more."""

    block: Block
    without: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...] = ()


CASES = {
    "qwen3-decode": Case(llama(True, 1, 1, "head", QWEN3), ("rotary-normalization", "cache-append"), (("past", 511), ("total", 512))),
    "qwen3-decode-norm": Case(llama(True, 1, 1, "head", QWEN3), ("rotary-normalization",), (("past", 511), ("total", 512))),
    "qwen3-prefill": Case(llama(False, 1, 512, "head", QWEN3), ("rotary-normalization", "packed-attention"), (("past", 0),)),
    "swin-v2": Case(swin_v2(96, 3, 8, 8, 1), ("batch-operands", "l2-normalization", "roll", "gather-rows")),
    "swin-v2-rolls": Case(swin_v2(96, 3, 8, 8, 8), ("roll", "gather-rows")),
    "sd3": Case(mmdit(False, False, 1, 1536, 24, (1024, 154)), ("packed-streams",)),
    "sd3-cfg": Case(mmdit(False, False, 2, 1536, 24, (1024, 154)), ("packed-streams",)),
    "flux": Case(mmdit(True, True, 1, 3072, 24, (1024, 512)), ("packed-streams", "rotary-streams")),
    "yolo11-attention": Case(yolo11(128, 2, 20, 1), ("convolution-split",)),
    "yolo11-attention-b8": Case(yolo11(256, 4, 20, 8), ("convolution-split",)),
    "sam-windows": Case(sam(768, 12, 14, 25), ("score-operands",)),
    "sam-whole": Case(sam(768, 12, 32, 1), ("score-operands",)),
}


def main() -> int:
    """Build, compare, time, record."""
    parser = arguments(__doc__, level=1)
    parser.add_argument("names", nargs="*", default=list(CASES), metavar="NAME", help=", ".join(CASES))
    given = parser.parse_args()
    device, results, wrong = open_device(given.device), [], 0
    with tempfile.TemporaryDirectory() as folder:
        cache = given.cache or str(Path(folder) / "timings.json")
        for name in given.names:
            case = CASES[name]
            data, inputs = model(case.block, np.float16).SerializeToString(), inputs_of(case.block, np.float16, dict(case.sizes))
            shapes = {one: value.shape for one, value in inputs.items()}
            config = BuildConfig(
                optimization_level=given.level, timing_cache_file=cache, max_aux_streams=0, min_shapes=shapes, opt_shapes=shapes, max_shapes=shapes,
            )  # fmt: skip
            ours = build(data, config, device, log=Log(to_stderr=True))
            plain = build(data, replace(config, disable_fusion=tuple((rule, "") for rule in case.without)), device, log=Log(to_stderr=True))
            found, wanted = ({one: np.array(value, np.float64) for one, value in engine.create_execution_context(device).execute(inputs).items()} for engine in (ours, plain))
            error = largest_error(found, wanted)
            right = error < 1e-2
            wrong += not right
            note = f"{len(ours.network.layers)} layers with views, {len(plain.network.layers)} without these rules; outputs differ by {error:.1e}"
            result = raced(device, ours, plain, f"{name}, FP16, graph", "ms", f"trtcli without {', '.join(case.without)}", note)
            results.append(result)
            print(f"{'right' if right else 'WRONG'} {name}: {result.ours:.4f} ms, without {result.peer:.4f} ({result.ratio:.3f}x); {result.note}", flush=True)
    if not given.no_record:
        record("blocks", results)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
