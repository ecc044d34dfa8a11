"""Measurements over batches: random requests that are batched as they come (``--requestRate``), and a sweep over batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from trtcli.config import Config, InferenceConfig
from trtcli.files import write_json, write_text
from trtcli.inputs import make_inputs
from trtcli.log import Log
from trtcli.report import requests as report

if TYPE_CHECKING:
    from fusion.network import Network
    from runtime.benchmark import BenchmarkOptions
    from runtime.context import ExecutionContext
    from runtime.engine import InputRange

Shapes = dict[str, tuple[int, ...]]


_ADVICE = "build with --minShapes and --maxShapes that hold them"


def check_batches(inference: InferenceConfig, network: Network, ranges: Mapping[str, InputRange]) -> None:
    """Refuse a model that cannot take the batches of ``--sweepBatch`` or ``--maxBatch``, before anything is built.

    Raises:
        ValueError: it has no batch dimension, or another range.
    """
    from runtime.batching import batches_of

    if not inference.request_rate and not inference.sweep_batch:
        return
    low, high = batches_of(network, ranges)
    fixed = "the model fixes the batch; export it with a dynamic first dimension"
    advice = fixed if all(network.tensors[name].is_static for name in network.inputs) else _ADVICE
    if inference.sweep_batch:
        first, last = inference.sweep_batch
        if not low <= first <= last <= high:
            raise ValueError(f"--sweepBatch={first}:{last}: the model takes batches of {low} to {high}: {advice}")
    elif inference.max_batch and inference.max_batch > high:
        raise ValueError(f"--maxBatch={inference.max_batch}: the model takes batches of {low} to {high}: {advice}")


def run_requests(
    config: Config, contexts: Sequence[ExecutionContext], shapes: Shapes, options: BenchmarkOptions, command_line: str, log: Log
) -> None:
    """Serve ``--requestRate`` and report latencies against throughput.

    Raises:
        ValueError: the engine has no batch dimension, or not of that size.
    """
    from runtime.batching import BatchingOptions, batch_range, serve

    inference = config.inference
    smallest, largest = batch_range(contexts[0].engine, contexts[0].profile)
    batching = BatchingOptions(inference.request_rate or 1.0, inference.max_queue_delay, inference.max_batch or largest)
    inputs = _inputs(config, contexts[0], shapes, min(largest, max(smallest, batching.max_batch)))
    result = serve(contexts, inputs, options, batching)
    log.info(f"Warmup completed {result.warm_up_requests} requests over {inference.warm_up:g} ms")
    lines = report.request_lines(result, batching, config.report.percentiles)
    for line in lines:
        log.report(line)
    for line in report.request_warnings(result):
        log.warning(line)
    if config.report.export_times:
        write_json(config.report.export_times, report.requests_json(result))
    if config.report.export_report:
        from trtcli.report.html import requests_html

        page = requests_html(contexts[0].engine, shapes, command_line, lines, result, config.report.percentiles)
        write_text(config.report.export_report, page)


def run_sweep(
    config: Config, contexts: Sequence[ExecutionContext], shapes: Shapes, options: BenchmarkOptions, command_line: str, log: Log
) -> None:
    """Benchmark the batch sizes of ``--sweepBatch``, one after the other, and print a table.

    Raises:
        ValueError: the engine has no batch dimension, or its range does not hold the sweep.
    """
    from runtime.batching import batch_range
    from runtime.benchmark import run_benchmark
    from trtcli.report.summary import measure

    first, last = config.inference.sweep_batch or (1, 1)
    low, high = batch_range(contexts[0].engine, contexts[0].profile)
    if not low <= first <= last <= high:
        raise ValueError(f"--sweepBatch={first}:{last}: the engine takes batches of {low} to {high}; {_ADVICE}")
    percentage = max(config.report.percentiles, default=99.0)
    rows = []
    for size in batch_sizes(first, last):
        performance = measure(run_benchmark(contexts, _inputs(config, contexts[0], shapes, size), options).queries, (percentage,))
        rows.append(
            report.SweepRow(
                size, performance.throughput, performance.latency.median, performance.compute.median,
                performance.latency.percentiles[0][1], percentage,
            )
        )  # fmt: skip
        log.info(f"Batch {size}: {rows[-1].latency:.4g} ms, {rows[-1].items:.5g} items/s")
    for line in report.sweep_lines(rows):
        log.report(line)
    if config.report.export_times:
        write_json(config.report.export_times, report.sweep_json(rows))
    if config.report.export_report:
        from trtcli.report.html import sweep_html

        write_text(config.report.export_report, sweep_html(contexts[0].engine, shapes, command_line, rows))


def batch_sizes(first: int, last: int) -> list[int]:
    """``first``, then doubling, and ``last``."""
    sizes = [first]
    while sizes[-1] * 2 < last:
        sizes.append(sizes[-1] * 2)
    return sizes if last == first else [*sizes, last]


def _inputs(config: Config, context: ExecutionContext, shapes: Shapes, batch: int) -> dict[str, np.ndarray]:
    from runtime.batching import batched_inputs

    batched = batched_inputs(context.engine.network)
    at = {name: (batch, *shape[1:]) if name in batched else shape for name, shape in shapes.items()}
    return make_inputs(context.engine.network, at, config.inference.load_inputs)
