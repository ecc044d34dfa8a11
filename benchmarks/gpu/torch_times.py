"""How long torch takes: what the kernels of this folder are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def graph_times(calls: Sequence[Callable[[], object]], launches: int = 20, replays: int = 7) -> list[float]:
    """Seconds a call, of every replay of a CUDA graph of ``launches`` calls; the ``calls`` (of different tensors, say) take turns in it."""
    import torch

    torch.cuda.synchronize()  # the tensors are there
    stream = torch.cuda.Stream()
    times = []
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(3):
            calls[0]()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for index in range(launches):
                calls[index % len(calls)]()
        graph.replay()
        for _ in range(replays):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(begin.elapsed_time(end) / launches * 1e-3)
    return times
