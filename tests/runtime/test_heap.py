import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.device import DeviceMemoryError
from runtime.heap import Heap
from runtime.interop import foreign

STEPS = st.lists(st.tuples(st.sampled_from(("take", "drop", "share")), st.integers(0, 5000)), max_size=40)


def play(heap, steps, stream):
    """Runs ``steps``; the addresses that were given out, in order. No two blocks that are held ever overlap."""
    heap.begin(stream)
    held: list[list[int]] = []  # address, size, holders
    found = []
    for what, number in steps:
        if what == "take":
            address = heap.take(number)
            found.append(address)
            assert number == 0 or address % 256 == 0
            assert not [one for one in held if one[0] < address + number and address < one[0] + one[1]]
            if number:
                held.append([address, number, 1])
        elif held:
            one = held[number % len(held)]
            inside = one[0] + number % one[1]
            (heap.share if what == "share" else heap.drop)(inside)
            one[2] += 1 if what == "share" else -1
            held = [one for one in held if one[2]]
    return found


@settings(max_examples=60, deadline=None)
@given(STEPS, STEPS)
def test_blocks_never_overlap_and_come_back_where_they_were(cpu, first, second):
    heap, stream = Heap(cpu), cpu.stream()
    play(heap, first, stream)
    play(heap, second, stream)  # may need more than the first
    for _ in range(8):  # several pieces become one; a few times, where holes were left between blocks
        size = heap.size
        once = play(heap, first, stream), play(heap, second, stream)
        if heap.size == size:
            break
    assert (play(heap, first, stream), play(heap, second, stream)) == once  # the same sizes in the same order: the same places
    assert heap.size == size and heap.peak <= size


def test_memory_of_the_callers(cpu):
    heap, stream = Heap(cpu, given=True), cpu.stream()
    with pytest.raises(DeviceMemoryError, match="set_device_memory gave 0"):
        heap.take(1)
    memory = cpu.allocate(1024)
    heap.lie_in(foreign(memory), 1024)
    heap.begin(stream)
    assert [heap.take(size) for size in (1, 512, 0)] == [memory.address, memory.address + 256, 0]
    with pytest.raises(DeviceMemoryError, match="512 bytes beside the 768 that are in use, set_device_memory gave 1024"):
        heap.take(500)
    heap.drop(memory.address + 300)
    assert heap.take(500) == memory.address + 256
    with pytest.raises(ValueError, match="not a multiple of 256"):
        heap.lie_in(foreign(memory.address + 16), 512)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_blocks_held_at_a_time_bound_where_a_heap_ends(cpu, sizes, draw):
    """Whatever was taken and given back before, each of them over and over and smaller at times."""
    heap, held = Heap(cpu, given=True), {}
    heap.lie_in(foreign(1 << 20), 1 << 30)
    aligned = [-(-size // 256) * 256 for size in sizes]
    bound = sum(aligned) + (len(sizes) - 1) * (max(aligned) - 256)
    for _ in range(200):
        which = draw.randrange(len(sizes))
        if which in held:
            heap.drop(held.pop(which))
        else:
            size = draw.choice((sizes[which], draw.randint(1, sizes[which])))
            held[which] = heap.take(size)
            assert held[which] + size <= (1 << 20) + bound
