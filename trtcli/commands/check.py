"""``trtcli check``: can one CUDA graph hold the network? Exit 0 yes, 2 no, 1 error."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from fusion.importer import UnsupportedModel, import_onnx
from fusion.importer.graph import node_names
from runtime.segments import parts_of
from trtcli import host
from trtcli.answer import answer
from trtcli.capture import Obstacle, Verdict, obstacle_of, verdict_of, verdict_of_nodes
from trtcli.config import Config
from trtcli.errors import NOT_CAPTURABLE, PASSED
from trtcli.log import Log
from trtcli.parse import Parsed
from trtcli.session.engines import obtain_engine
from trtcli.session.given import check_files
from trtcli.session.inference import inference_shapes, make_contexts, make_inputs

SCHEMA = 1


def run(parsed: Parsed, log: Log) -> int:
    """Print the verdict."""
    config = parsed.config
    check_files(config)
    verdict = static_verdict(config)
    if verdict.buildable and config.system.device != "cpu" and host.cuda_version():
        verdict = measured_verdict(config, log) or verdict
    if verdict.how == "static":
        idle = [parsed.builds_in_vain() if config.model.onnx else "", "--monitorMemory" if config.system.monitor_memory else ""]
        if any(idle):
            log.warning(f"The answer is static, nothing was built: no effect of {', '.join(filter(None, idle))}")
    answer(parsed, lambda: verdict_json(verdict), lambda: verdict_lines(verdict))
    return PASSED if verdict.capturable else NOT_CAPTURABLE


def static_verdict(config: Config) -> Verdict:
    """The verdict from the file alone.

    Raises:
        UnsupportedModel: nodes stand in the way of importing that are no obstacle to capture: the question has no answer.
    """
    if config.model.load_engine:
        from runtime.engine import Engine
        from runtime.graph import engine_parts

        engine = Engine.load(config.model.load_engine)
        return verdict_of(engine_parts(engine))
    try:
        return verdict_of(parts_of(import_onnx(Path(config.model.onnx))))
    except UnsupportedModel as error:
        obstacles = [obstacle_of(problem) for problem in error.problems]
        if not all(obstacles):
            raise
        from onnx import load

        nodes = load(config.model.onnx, load_external_data=False).graph.node
        return verdict_of_nodes(node_names(nodes), [one for one in obstacles if one])


def measured_verdict(config: Config, log: Log) -> Verdict | None:
    """The verdict of a real capture: build (or load), run plainly, capture, replay, compare. None for a CPU engine."""
    from runtime.graph import compare_replay, engine_parts

    engine, device, _ = obtain_engine(config, log)
    if device.spec.kind != "cuda":
        return None
    shapes = inference_shapes(config, engine, log)
    context = make_contexts(config, engine, device, shapes, log)[0]
    replay = compare_replay(context, make_inputs(config, engine, shapes, log))
    static = verdict_of(engine_parts(engine))
    how = f"captured, replayed and compared on {device.spec.name}: {replay.nodes} graph nodes"
    obstacles = static.obstacles
    if not context.is_segmented or not replay.nodes:
        obstacles += tuple(Obstacle("capture", "the whole network", text) for text in replay.warnings)
    obstacles += tuple(Obstacle("replay", name, "a replay gives other values than plain execution") for name in replay.differing)
    return Verdict(static.layers, obstacles, static.segments, how)


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict for people."""
    source = "answer is static: no GPU here" if verdict.how == "static" else verdict.how
    if verdict.capturable:
        return [f"capturable: all {verdict.layers} layers ({source})"]
    count, held = len(verdict.obstacles), sum(verdict.segments)
    layers = sum(one.operator != "Input" for one in verdict.obstacles)
    what = f"{layers} of {verdict.layers} layers" if layers else "shapes depend on the values of inputs"
    lines = [f"not capturable: {what} ({source})"]
    width = max(len(one.operator) for one in verdict.obstacles)
    lines += [f"  {one.operator:<{width}}  {one.name}  {one.reason}" for one in verdict.obstacles]
    if verdict.segments:
        plural = "s" if len(verdict.segments) != 1 else ""
        ending = "s" if held != 1 else ""
        verb = "can be" if verdict.how == "static" else "were"
        lines.append(f"  {len(verdict.segments)} segment{plural} ({held} layer{ending}) {verb} captured around {'it' if count == 1 else 'them'}")
    return lines


def verdict_json(verdict: Verdict) -> dict[str, object]:
    """The verdict for programs."""
    return {"schema": SCHEMA, "capturable": verdict.capturable, **{name: part for name, part in asdict(verdict).items() if name != "buildable"}}
