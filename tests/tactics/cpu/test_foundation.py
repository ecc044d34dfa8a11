"""Blocks, threads and workspaces of the CPU tactics."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tactics.cpu.steps import Scratch, blocks, elements, spans
from tactics.cpu.threads import blas_threads, parallel, sequence, stages


@given(st.lists(st.integers(0, 7), max_size=4), st.integers(1, 60), st.data())
def test_blocks_cover_an_array_once(shape, limit, data):
    whole = tuple(sorted(data.draw(st.sets(st.sampled_from(range(len(shape))) if shape else st.nothing()))))
    counts = np.zeros(shape, np.int64)
    fixed = int(np.prod([shape[axis] for axis in whole]))
    for cut in blocks(shape, limit, 1 << 30, whole):
        counts[cut] += 1
        assert elements(cut, shape) == counts[cut].size <= max(limit, fixed)
        assert all(counts[cut].shape[axis] == shape[axis] for axis in whole)
    assert (counts == 1).all()


def test_blocks_grow_when_there_would_be_too_many():
    assert len(list(blocks((1000, 1000), 10, most=64))) <= 128


@given(st.integers(0, 50), st.integers(1, 9))
def test_spans(count, parts):
    found = spans(count, parts)
    assert [i for low, high in found for i in range(low, high)] == list(range(count))
    assert len(found) <= parts and max((b - a for a, b in found), default=0) <= -(-count // parts)


def test_scratch_is_aligned_and_does_not_overlap():
    scratch = Scratch()
    slots = [
        scratch.take((3, 5), np.float32),
        scratch.take((), bool),
        scratch.take((0,), np.int8),
        scratch.take((2,), np.float64),
    ]
    memory = np.zeros(scratch.size, np.uint8)
    for number, slot in enumerate(slots):
        assert slot.offset % 64 == 0
        slot.view(memory)[...] = number
    assert [slot.view(memory).tolist() for slot in slots] == [[[0.0] * 5] * 3, True, [], [3.0, 3.0]]


def test_parallel_runs_every_job_in_order_on_several_threads():
    seen, names = [[] for _ in range(5)], set()
    barrier = threading.Barrier(3, timeout=20)

    def note(job: int, step: int) -> None:
        seen[job].append(step)
        names.add(threading.current_thread().name)

    jobs = [[lambda job=job, step=step: note(job, step) for step in range(4)] for job in range(5)]
    for job in (0, 1, 3):  # the first job of each of three threads waits for the others
        jobs[job].insert(0, barrier.wait)
    run = parallel(jobs, 3)
    run()
    run()
    assert seen == [[0, 1, 2, 3] * 2] * 5
    assert len(names) == 3


def test_an_error_on_a_thread_reaches_the_caller_and_the_thread_lives_on():
    def fail() -> None:
        raise ValueError("broken")

    run = parallel([[lambda: None], [fail]], 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            run()
    done = []
    parallel([[lambda: done.append(1)], [lambda: done.append(2)]], 2)()
    assert sorted(done) == [1, 2]


def test_products_run_on_one_core_and_the_setting_comes_back():
    before = blas_threads(2)
    try:
        inside = []
        note = lambda: inside.append(blas_threads(1))
        for threads in (1, 2):
            parallel([[note], [note]], threads)()
        assert inside == [1] * 4
        assert blas_threads(2) == 2
    finally:
        blas_threads(before)


def test_no_warnings_from_steps():
    with np.errstate(all="raise"):
        sequence([lambda: np.log(np.zeros(3))])()
        parallel([[lambda: np.log(np.zeros(3))]] * 2, 2)()
        stages(sequence([lambda: np.divide(np.ones(2), 0)]))()
