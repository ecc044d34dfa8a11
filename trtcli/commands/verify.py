"""``trtcli verify``: an engine against a reference, per output and per layer. Exit 0 when all outputs agree, else 1."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtcli.answer import answer
from trtcli.errors import FAILED, PASSED
from trtcli.log import Log
from trtcli.parse import Parsed
from trtcli.session.engines import obtain_engine
from trtcli.session.given import check_files
from trtcli.session.inference import inference_shapes, make_contexts, make_inputs

if TYPE_CHECKING:
    from runtime.engine import Engine
    from trtcli.verification import Difference

SCHEMA = 1
WIDTH = 100
_WORST = 10  # layers shown


def run(parsed: Parsed, log: Log) -> int:
    """Run both, compare, print."""
    from trtcli.verification import choose_reference, compare, engine_values, reference_values

    config = parsed.config
    check_files(config)
    against = choose_reference(parsed.get("against", "auto"))
    engine, device, _ = obtain_engine(config, log)
    model = _model(config.model.onnx, engine)
    shapes = inference_shapes(config, engine, log)
    inputs = make_inputs(config, engine, shapes, log)
    context = make_contexts(config, engine, device, shapes, log)[0]
    found = engine_values(context, inputs)
    wanted = reference_values(model, inputs, against, found.keys())
    compared = compare(engine, found, wanted, parsed.get("rtol"), parsed.get("atol"))
    outputs = [one for one in compared if one.tensor in engine.network.outputs]
    layers = [one for one in compared if one.layer]
    missing = sorted(set(engine.network.outputs) - {one.tensor for one in outputs})
    passed = not missing and all(one.ok for one in outputs)
    answer(
        parsed,
        lambda: {
            "schema": SCHEMA, "passed": passed, "against": against, "model": str(model), "device": device.spec.name,
            "outputs": [_object(one) for one in outputs], "missing": missing, "layers": [_object(one) for one in layers],
        },
        lambda: lines(engine, against, outputs, layers, missing),
    )  # fmt: skip
    return PASSED if passed else FAILED


def _model(given: str, engine: Engine) -> Path:
    """The model that the engine was built from.

    Raises:
        ValueError: it is not where it was, or has changed since.
    """
    if given:
        path = Path(given)
    else:
        path = Path(str(engine.record.get("model", "")))
        if not path.is_file():
            raise ValueError(f"the engine was built from {str(path)!r}, which is not there: give the model with --onnx=FILE")
    wanted = engine.record.get("modelSha256")
    if wanted and hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise ValueError(f"{path} is not the model that the engine was built from (its contents differ): give that one with --onnx=FILE")
    return path


def lines(
    engine: Engine, against: str, outputs: Sequence[Difference], layers: Sequence[Difference], missing: Sequence[str]
) -> list[str]:
    """The comparison for people: every output, then the layers that are furthest off."""
    text = [f"{len(engine.layers)} layers on {engine.device.name} against {against}", ""]
    text += _rows(("Output", *_HEAD), [(one.tensor, one) for one in outputs])
    text += [f"{name}: the reference has no such output" for name in missing]
    inner = [one for one in layers if one.tensor not in engine.network.outputs]
    worst = sorted(inner, key=lambda one: (one.ok, -one.relative))[:_WORST]
    if worst:
        text += ["", *_rows(("Layer" if len(inner) == len(worst) else f"Layer ({len(worst)} worst of {len(inner)})", *_HEAD),
                            [(one.layer, one) for one in worst])]  # fmt: skip
    first = next((one for one in layers if not one.ok), None)
    wrong = sum(not one.ok for one in outputs) + len(missing)
    if first is not None:
        text += ["", f"first layer outside of the tolerance: {first.layer} (tensor {first.tensor})", *_advice(engine, first.layer)]
    text += ["", f"{len(outputs) + len(missing) - wrong} of {len(outputs) + len(missing)} outputs agree"]
    return text


def _advice(engine: Engine, layer: str) -> list[str]:
    """How to keep a layer of an engine with narrow types in FP32."""
    options = engine.record.get("options")
    nodes = next((one.origins for one in engine.network.layers if one.name == layer), ())
    if not nodes or not isinstance(options, dict) or not (options.get("fp16") or options.get("bf16")):
        return []
    named = ",".join(f"'{node}':fp32" if "," in node or ":" in node else f"{node}:fp32" for node in nodes)
    return [f'to keep it in FP32, build with --layerPrecisions="{named}" --precisionConstraints=obey']


_HEAD = ("type", "max error", "mean error", "relative", "NaN", "Inf", "wrong")


def _rows(head: Sequence[str], rows: Sequence[tuple[str, Difference]]) -> list[str]:
    cells = [tuple(head)]
    for name, one in rows:
        if one.problem:
            cells.append((name, one.dtype, one.problem))
            continue
        wrong = f"{one.wrong} of {_count(one.shape)}" if one.wrong else "-"
        cells.append((
            name, one.dtype, f"{one.max_error:.2e}", f"{one.mean_error:.2e}", f"{one.relative:.2e}",
            _not_finite(one.nan, one.nan_wanted), _not_finite(one.inf, one.inf_wanted), wrong,
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in cells if len(row) == len(head)) for column in range(len(head))]
    widths[0] = min(max(len(row[0]) for row in cells), WIDTH - sum(widths[1:]) - 2 * (len(head) - 1))
    return [
        "  ".join((_cut(cell, widths[0]) if not column else cell).ljust(widths[column]) for column, cell in enumerate(row)).rstrip()
        for row in cells
    ]


def _cut(cell: str, width: int) -> str:
    half = (width - 1) // 2
    return cell if len(cell) <= width else f"{cell[:half]}…{cell[len(cell) - (width - 1 - half):]}"


def _not_finite(found: int, wanted: int) -> str:
    return f"{found}" if found == wanted else f"{found} (not {wanted})"


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for dim in shape:
        count *= dim
    return count


def _object(one: Difference) -> dict[str, Any]:
    return {**asdict(one), "ok": one.ok}
