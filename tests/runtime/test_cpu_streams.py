"""Concurrent streams of the CPU device: threads that keep order, wait for events, take part in graphs and report failures."""

import threading
import time

import pytest

from runtime.device import CaptureError


def test_work_runs_beside_the_caller_in_order(cpu):
    stream, seen, gate = cpu.stream(concurrent=True), [], threading.Event()
    stream.add(gate.wait)
    for number in range(10):
        stream.add(lambda number=number: seen.append(number))
    assert not seen
    gate.set()
    stream.synchronize()
    assert seen == list(range(10))


def test_events_order_streams_and_tell_time(cpu):
    main, aux = cpu.stream(), cpu.stream(concurrent=True)
    start, end, seen = cpu.event(), cpu.event(), []
    start.record(aux)
    aux.add(lambda: time.sleep(0.02))
    aux.add(lambda: seen.append("aux"))
    end.record(aux)
    main.wait(end)  # blocks the caller: the main stream is its own thread
    main.add(lambda: seen.append("main"))
    assert seen == ["aux", "main"] and 0.02 <= end.seconds_since(start) < 5
    other = cpu.stream(concurrent=True)
    start.record(main)
    other.wait(start)  # long reached
    other.wait(end)
    other.synchronize()


def test_a_graph_replays_forks_on_their_streams(cpu):
    main, aux = cpu.stream(), cpu.stream(concurrent=True)
    fork, join, threads = cpu.event(), cpu.event(), []

    def note():
        threads.append(threading.current_thread().name)

    def enqueue():
        fork.record(main)
        aux.wait(fork)
        main.add(note)
        aux.add(note)
        join.record(aux)
        main.wait(join)

    graph = cpu.capture(main, enqueue)
    assert not threads and graph.nodes == 2
    for turn in range(1, 3):
        graph.launch(main)
        assert sorted(threads) == sorted(["MainThread", "trtcli-stream"] * turn)
    with pytest.raises(CaptureError):
        cpu.capture(aux, aux.synchronize)


def test_failures_reach_whoever_waits(cpu):
    stream, main, event = cpu.stream(concurrent=True), cpu.stream(), cpu.event()
    seen = []
    stream.add(lambda: 1 / 0)
    stream.add(lambda: seen.append("dropped"))
    event.record(stream)
    with pytest.raises(ZeroDivisionError):
        main.wait(event)
    with pytest.raises(ZeroDivisionError):
        event.synchronize()
    with pytest.raises(ZeroDivisionError):
        stream.synchronize()
    stream.add(lambda: seen.append("again"))
    stream.synchronize()
    assert seen == ["again"]


def test_threads_end_with_their_stream(cpu):
    """Also those that a parallel step started for the stream's thread."""
    import gc

    from tactics.cpu.threads import parallel

    before = set(threading.enumerate())
    stream = cpu.stream(concurrent=True)
    stream.add(parallel([[lambda: None], [lambda: None], [lambda: None]], 3))
    stream.synchronize()
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    del stream
    gc.collect()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
