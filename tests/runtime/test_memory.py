import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.memory import ALIGNMENT, Block, layer_order, plan_memory


@st.composite
def problems(draw, streams=1):
    """A random schedule: layers on streams with waits backwards, and blocks used at some layers."""
    count = draw(st.integers(1, 24))
    on = draw(st.lists(st.integers(0, streams - 1), min_size=count, max_size=count))
    waits = [draw(st.lists(st.integers(0, i - 1), max_size=2)) if i else [] for i in range(count)]
    uses = st.lists(st.integers(0, count - 1), min_size=1, max_size=4, unique=True).map(sorted).map(tuple)
    blocks = draw(st.lists(st.builds(Block, st.integers(0, 5000), uses), max_size=20))
    return blocks, on, waits


def ends_before(a: Block, b: Block, order) -> bool:
    return all(order[use, b.uses[0]] for use in a.uses)


@settings(max_examples=150, deadline=None)
@given(problems(streams=3))
def test_no_two_live_blocks_overlap(problem):
    blocks, on, waits = problem
    order = layer_order(on, waits)
    plan = plan_memory(blocks, order)
    for (i, a), (j, b) in itertools.combinations(enumerate(blocks), 2):
        if not a.size or not b.size or ends_before(a, b, order) or ends_before(b, a, order):
            continue
        (x, y) = plan.offsets[i], plan.offsets[j]
        assert x + a.size <= y or y + b.size <= x
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets)
    assert all(offset + block.size <= plan.size for offset, block in zip(plan.offsets, blocks, strict=True))
    assert plan.lower_bound <= plan.size <= plan.total


@settings(max_examples=100, deadline=None)
@given(problems(streams=3))
def test_order_is_what_streams_and_waits_imply(problem):
    _, on, waits = problem
    order = layer_order(on, waits)
    # the same by a closure over edges
    edges = np.zeros_like(order)
    for j, stream in enumerate(on):
        for i in range(j):
            edges[i, j] = on[i] == stream or i in waits[j]
    for k, i, j in itertools.product(range(len(on)), repeat=3):
        edges[i, j] |= edges[i, k] and edges[k, j]
    assert (edges == order).all()


def test_a_chain_needs_two_buffers():
    blocks = [Block(1000, (i, i + 1)) for i in range(10)]
    plan = plan_memory(blocks, layer_order([0] * 11))
    assert plan.size == plan.lower_bound == 2048
    assert plan.total == 10240


def test_tensors_on_another_stream_are_kept_until_the_join():
    # 0 (stream 0) -> 1 (stream 1); 2, 3 on stream 0; 4 waits for 1.
    streams, waits = [0, 0, 1, 0, 0], [(), (), (1,), (), (2,)]
    blocks = [Block(256, (0, 1)), Block(256, (1, 2)), Block(256, (3, 4))]
    parallel = plan_memory(blocks, layer_order(streams, waits))
    assert len({parallel.offsets[1], parallel.offsets[2]}) == 2  # 3 may run while 2 still reads block 1
    serial = plan_memory(blocks, layer_order([0] * 5))
    assert serial.size == 512 and parallel.size == 512


def test_random_networks_stay_near_the_bound():
    """Residual chains with branches, as convolutional networks have them: within 10 % of the lower bound."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        size, blocks = 1 << 20, []
        for layer in range(60):
            size = max(4096, int(size * random.choice([1, 1, 1, 0.5, 2, 0.25])))
            last = min(60, layer + int(random.choice([1, 1, 1, 2, 4, 8])))
            blocks.append(Block(min(size, 1 << 22), (layer, last)))
        plan = plan_memory(blocks, layer_order([0] * 61))
        assert plan.size <= 1.1 * plan.lower_bound, seed


def test_empty_blocks_take_nothing():
    plan = plan_memory([Block(0, (0,)), Block(0, (0,))], layer_order([0]))
    assert plan.size == 0 and plan.offsets == (0, 0)
    assert plan_memory([], layer_order([])).size == 0
