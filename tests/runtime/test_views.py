"""Concatenations, slices and reshapes that share memory with what they read: which do, and that results stay right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dims import symbol
from fusion.expression import Operand, apply
from fusion.ops import Concatenation, MatrixMultiply, Pointwise, Reduce, Shuffle, Slice
from runtime.resolution import outline, resolve
from runtime.views import Place, intermediate_bytes, share_memory, with_missed_views
from tactics.tactic import Copy
from tests.runtime.conftest import ADD, RELU, Graph
from tests.runtime.test_context import check

BATCH = symbol("batch")
NEG = Pointwise(apply("neg", Operand(0)))


def values(**shapes):
    random = np.random.default_rng(3)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def sharing(build, *outputs):
    return share_memory(build.network(*outputs))


def fire(build, x, channels):
    """Two producers, joined along the channels of one image."""
    left = build.layer(RELU, x, name=f"{x}.left")
    right = build.layer(NEG, x, name=f"{x}.right")
    return build.layer(Concatenation(1), left, right, name=f"{x}.concat")


def test_producers_write_into_a_concatenation(cpu):
    build = Graph()
    x = build.layer(RELU, build.input("x", (1, 4, 3, 3)))
    joined = fire(build, x, 4)
    y = build.layer(Reduce("max", (1,), True), joined)
    found = sharing(build, y)
    assert found.elided == {f"{x}.concat"}
    assert found.places[f"{x}.left_out0"] == Place(joined, 0)
    assert found.places[f"{x}.right_out0"] == Place(joined, 36)
    context = check(build, [y], cpu, values(x=(1, 4, 3, 3)))
    assert len(context.resolution().steps) == 4


def test_branches_on_streams_write_parts_of_one_block(cpu):
    build = Graph()
    x = build.layer(RELU, build.input("x", (1, 4, 8, 8)))
    first = fire(build, x, 4)
    second = fire(build, first, 8)
    y = build.layer(NEG, second)
    streams = {f"{x}.right": 1, f"{first}.right": 2}
    context = check(build, [y], cpu, values(x=(1, 4, 8, 8)), streams=streams, workspace=500)
    steps = context.resolution().steps
    reader = steps[-1]
    assert len(reader.needs) == 2, "it reads what two layers wrote"
    assert len(reader.waits) == 1


def test_a_concatenation_of_concatenations_is_one_piece(cpu):
    build = Graph()
    x = build.input("x", (1, 4))
    a, b, c = (build.layer(op, x) for op in (RELU, NEG, RELU))
    inner = build.layer(Concatenation(1), a, b)
    outer = build.layer(Concatenation(1), c, inner)
    y = build.layer(NEG, outer)
    found = sharing(build, y)
    assert {found.places[name].root for name in (a, b, c, inner, outer)} == {outer}
    assert found.places[b] == Place(outer, 8)
    check(build, [y], cpu, values(x=(1, 4)))


def test_a_network_output_takes_its_parts_where_the_caller_wants_them(cpu):
    build = Graph()
    x = build.input("x", (2, 4))
    y = build.layer(Concatenation(0), build.layer(RELU, x), build.layer(NEG, x))
    assert sharing(build, y).elided
    context = check(build, [y], cpu, values(x=(2, 4)))
    assert context.resolution().memory.size == 0


def test_slices_are_read_in_place(cpu):
    build = Graph()
    x = build.input("x", (6, 8))
    top = build.layer(Slice((0, 0), (2, 8), (1, 1)), x)
    row = build.layer(Slice((3, 0), (1, 4), (1, 1)), x)
    y = build.layer(ADD, build.layer(NEG, top), build.layer(Concatenation(1), row, row))
    found = sharing(build, y)
    assert found.places[row] == Place("x", 24)
    assert found.places[top] == Place("x", 0)
    assert len(found.elided) == 2, "of the same part twice at most one could lie there"
    check(build, [y], cpu, values(x=(6, 8)))


@pytest.mark.parametrize(
    "op",
    [
        Slice((0, 1), (6, 2), (1, 1)),  # columns
        Slice((0, 0), (3, 8), (2, 1)),  # every second row
        Slice((5, 0), (6, 8), (-1, 1)),  # backwards
        Slice((0, 4), (2, 4), (1, 1)),  # parts of two rows
        Slice((0, 4), (6, 0), (1, 1)),  # no columns at all
    ],
)
def test_other_slices_are_not(cpu, op):
    build = Graph()
    y = build.layer(NEG, build.layer(op, build.input("x", (6, 8))))
    assert not sharing(build, y).views
    check(build, [y], cpu, values(x=(6, 8)))


def test_addresses_stay_aligned(cpu):
    build = Graph()
    x = build.input("x", (1, 3))
    y = build.layer(NEG, build.layer(Concatenation(1), build.layer(RELU, x), build.layer(NEG, x)))
    found = sharing(build, y)
    assert found.views and not found.elided, "12 bytes are no place for a tensor: it is copied there"
    check(build, [y], cpu, values(x=(1, 3)))


def test_what_belongs_to_the_caller_is_copied(cpu):
    build = Graph()
    x, z = build.input("x", (2, 4)), build.input("z", (2, 4))
    made = build.layer(NEG, z)
    y = build.layer(Concatenation(0), x, made)
    part = build.layer(Slice((1, 0), (1, 4), (1, 1)), y)
    assert [len(pieces) for pieces in sharing(build, y, part).copies.values()] == [1, 1]
    context = check(build, [y, part], cpu, values(x=(2, 4), z=(2, 4)))
    views = sharing(build, y, part).copies
    kept = [one.plan for one in context.resolution().steps if context.engine.network.layers[one.layer].name in views]
    assert kept and all(isinstance(step, Copy) for plan in kept for step in plan.steps), "it needs no kernel"


def test_two_copies_are_one_kernel(cpu):
    build = Graph()
    x, z = build.input("x", (2, 4)), build.input("z", (2, 4))
    y = build.layer(Concatenation(0), x, build.layer(NEG, z), z)
    found = sharing(build, y)
    assert not found.views
    assert all(found.places[name] == Place(name) for name in found.places)
    check(build, [y], cpu, values(x=(2, 4), z=(2, 4)))


def test_sizes_known_at_run_time(cpu):
    build = Graph()
    x = build.input("x", (BATCH, 4))
    joined = build.layer(Concatenation(0), build.layer(RELU, x), build.layer(NEG, x))
    y = build.layer(Slice((BATCH, 0), (BATCH, 4), (1, 1)), joined)
    out = build.layer(MatrixMultiply(), y, build.constant("w", np.eye(4, dtype=np.float32)))
    found = sharing(build, out)
    assert len(found.elided) == 2
    assert found.places[y] == Place(joined, 4 * BATCH)
    for batch in (1, 3, 5):
        check(build, [out], cpu, values(x=(batch, 4)), sizes={"batch": (1, 2, 8)})


def test_a_batch_is_no_outermost_axis_of_length_one(cpu):
    build = Graph()
    x = build.input("x", (2, 4))
    y = build.layer(Concatenation(1), build.layer(RELU, x), build.layer(NEG, x))
    assert not sharing(build, y).views


def test_what_is_no_view_says_why():
    build = Graph()
    x, z = build.input("x", (2, 4)), build.input("z", (2, 4))
    made = build.layer(NEG, z, name="neg")
    columns = build.layer(Concatenation(1), made, build.layer(RELU, x, name="relu"), name="columns")
    copied = build.layer(Concatenation(0), x, made, name="copied")
    part = build.layer(Slice((0, 1), (2, 2), (1, 1)), columns, name="part")
    twice = build.layer(Concatenation(0), z, made, x, name="twice")
    middle = build.layer(Concatenation(1), build.input("w", (2, 4, 3)), build.layer(NEG, "w"), name="middle")
    found = {name: one for name, (one,) in with_missed_views({}, build.network(columns, copied, part, twice, middle)).items()}
    assert {name: (miss.rule, miss.condition) for name, miss in found.items()} == {
        "columns": ("concatenation-view", "kernel"), "copied": ("concatenation-view", "caller's memory"),
        "part": ("slice-view", "caller's memory"), "middle": ("concatenation-view", "layout"), "twice": ("concatenation-view", "caller's memory"),
    }  # fmt: skip
    assert found["columns"].layers == ("neg", "relu", "columns")
    assert found["middle"].detail.startswith("along axis 1 of 2x8x3 every input lies in several pieces")
    assert found["copied"].detail == "x lies in x, which is a network input, a network output or a constant"
    assert found["twice"].detail.endswith(", and 2 more")


def test_intermediate_bytes_count_memory_once():
    build = Graph()
    x = build.layer(RELU, build.input("x", (1, 4)))
    joined = build.layer(Concatenation(1), build.layer(RELU, x), build.layer(NEG, x))
    y = build.layer(NEG, build.layer(Shuffle(reshape=(8,)), joined))
    assert intermediate_bytes(build.network(y), {}) == 16 + 32


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_networks(cpu, data):
    build = Graph()
    pool = [build.input("x", (1, 4, 2)), build.input("z", (1, 4, 2))]
    for _ in range(data.draw(st.integers(2, 12))):
        x = data.draw(st.sampled_from(pool))
        shape = build.tensors[x].shape
        kind = data.draw(st.sampled_from(["relu", "neg", "concat", "concat", "slice", "shape", "add"]))
        if kind == "concat":
            parts = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=3))
            pool.append(build.layer(Concatenation(1), x, *parts))
        elif kind == "slice":
            start = data.draw(st.integers(0, shape[1] - 1))
            size = data.draw(st.integers(1, shape[1] - start))
            pool.append(build.layer(Slice((0, start, 0), (1, size, 2), (1, 1, 1)), x))
        elif kind == "shape" and shape[1] % 2 == 0:
            middle = build.layer(Shuffle(reshape=(1, shape[1] // 2, 4)), x)
            pool.append(build.layer(Shuffle(reshape=shape), build.layer(NEG, middle)))
        elif kind == "add":
            pool.append(build.layer(ADD, x, x))
        else:
            pool.append(build.layer(RELU if kind == "relu" else NEG, x))
        if build.tensors[pool[-1]].shape[1] > 64:
            pool.pop()
    outputs = data.draw(st.lists(st.sampled_from(pool[2:] or [build.layer(NEG, "x")]), min_size=1, max_size=3, unique=True))
    streams = {layer.name: data.draw(st.integers(0, 2)) for layer in build.layers}
    context = check(build, outputs, cpu, values(x=(1, 4, 2), z=(1, 4, 2)), streams=streams, workspace=100)
    found = resolve(context.engine, outline(context.engine), {"x": (1, 4, 2), "z": (1, 4, 2)}, cpu.spec)
    assert all(start % 16 == 0 for start in found.starts.values())


# --- columns: parts along the last axis ------------------------------------------------------------------------------


def anyone(number, pitches):
    """Every layer can work with columns."""
    return ""


def dense_block(build, x, layers=3, growth=8):
    """What DenseNet does: every layer reads all before it; the concatenations grow."""
    for number in range(layers):
        made = build.layer(Slice((0, 0, 0), (2, 3, growth), (1, 1, 1)), build.layer(NEG, x, name=f"wide{number}"), name=f"cut{number}")
        x = build.layer(Concatenation(2), x, build.layer(RELU, made, name=f"narrow{number}"), name=f"join{number}")
    return x


def test_producers_write_columns(cpu):
    build = Graph()
    x = build.input("x", (2, 3, 8))
    a, b = build.layer(RELU, x, name="a"), build.layer(NEG, x, name="b")
    joined = build.layer(Concatenation(2), a, b, name="join")
    y = build.layer(Reduce("max", (1,), True), joined)
    found = share_memory(build.network(y), ask=anyone)
    assert found.elided == {"join"}
    assert found.places[a] == Place(joined, 0, 16, 8) and found.places[b] == Place(joined, 8, 16, 8)
    assert found.pitches == {a: 16, b: 16}
    assert share_memory(build.network(y), views=found.views) == found, "an engine finds what its build found"
    context = check(build, [y], cpu, values(x=(2, 3, 8)), ask=anyone, workspace=64)
    assert [context.engine.network.layers[step.layer].name for step in context.resolution().steps] == ["a", "b", "layer3"]


def test_a_part_without_columns(cpu):
    build = Graph()
    x = build.input("x", (6, 8))
    empty = build.layer(RELU, build.layer(Slice((0, 4), (6, 0), (1, 1)), x))
    y = build.layer(NEG, build.layer(Concatenation(1), build.layer(RELU, x), empty, build.layer(NEG, x)))
    found = share_memory(build.network(y), ask=anyone)
    assert empty not in found.pitches
    check(build, [y], cpu, values(x=(6, 8)), ask=anyone)


def test_readers_read_columns(cpu):
    build = Graph()
    x = build.layer(RELU, build.input("x", (2, 3, 16)))
    halves = [build.layer(Slice((0, 0, start), (2, 3, 8), (1, 1, 1)), x, name=f"half{start}") for start in (0, 8)]
    y = build.layer(ADD, *halves)
    found = share_memory(build.network(y), ask=anyone)
    assert found.elided == {"half0", "half8"} and found.places[halves[1]] == Place(x, 8, 16, 8)
    check(build, [y], cpu, values(x=(2, 3, 16)), ask=anyone)


def test_columns_of_columns(cpu):
    build = Graph()
    x = build.layer(RELU, build.input("x", (2, 3, 8)), name="first")
    joined = dense_block(build, x)
    y = build.layer(NEG, joined)
    found = share_memory(build.network(y), ask=anyone)
    assert {f"join{number}" for number in range(3)} <= found.elided
    assert found.places[x] == Place(joined, 0, 32, 8), "a tensor moves with the one that it lies in"
    check(build, [y], cpu, values(x=(2, 3, 8)), ask=anyone, workspace=32)


def test_rows_of_columns_under_other_shapes(cpu):
    """What only joins or cuts whole rows goes along; what would cut them does not."""
    build = Graph()
    x = build.input("x", (2, 4, 8))
    flat = build.layer(Shuffle(reshape=(8, 8)), build.layer(RELU, x), name="flat")
    whole = build.layer(Shuffle(reshape=(2, 4, 8)), build.layer(NEG, flat, name="neg"), name="whole")
    joined = build.layer(Concatenation(2), whole, build.layer(NEG, x), name="join")
    row = build.layer(Slice((1, 0, 0), (1, 4, 8), (1, 1, 1)), whole, name="row")
    y = build.layer(NEG, build.layer(Shuffle(reshape=(4, 8)), row, name="lines"))
    z = build.layer(NEG, joined)
    found = share_memory(build.network(y, z), ask=anyone)
    assert {"whole", "join", "row", "lines"} <= found.elided
    assert found.places[row] == Place(joined, 4 * 16, 16, 8)
    check(build, [y, z], cpu, values(x=(2, 4, 8)), ask=anyone)


@pytest.mark.parametrize("case", ["channels", "output", "input", "twice", "kernel", "reshape", "dynamic", "other reader"])
def test_what_cannot_be_columns(cpu, case):
    build = Graph()
    width = {"channels": 3, "dynamic": BATCH}.get(case, 8)
    x = build.input("x", (2, 3, width))
    a, b = build.layer(RELU, x, name="a"), build.layer(NEG, x, name="b")
    parts = {"input": (x, b), "twice": (a, a)}.get(case, (a, b))
    if case == "reshape":
        flat = build.layer(Shuffle(reshape=(6 * 8,)), x, name="copy")
        parts = (build.layer(Shuffle(reshape=(2, 3, 8)), build.layer(RELU, flat, name="flat"), name="back"), b)
    joined = build.layer(Concatenation(2), *parts, name="join")
    y = build.layer(NEG, joined, name="y")
    outputs = (y, a) if case == "output" else (y, build.layer(NEG, a, name="reader")) if case == "other reader" else (y,)
    unable = {"kernel": "b", "other reader": "reader"}.get(case)
    network = build.network(*outputs)

    def ask(number, pitches):
        return f"{unable} cannot" if network.layers[number].name == unable else ""

    found = share_memory(network, ask=ask)
    expected = {"channels": "alignment", "output": "caller's memory", "input": "caller's memory", "twice": "two places", "reshape": "rows"}
    assert "join" not in found.views and not found.pitches
    assert found.refusals["join"][:2] == ("concatenation-view", expected.get(case, "kernel" if unable else case))
    assert found.refusals["join"][2], "with the values found"
    if case != "dynamic":
        check(build, outputs, cpu, values(x=(2, 3, width)), ask=ask)


@pytest.mark.parametrize("disabled", ["concatenation-view", "concatenation-view@join", "all", "slice-view", "shuffle-view"])
def test_views_can_be_switched_off(disabled):
    build = Graph()
    x = build.layer(RELU, build.input("x", (1, 3, 8)))
    joined = build.layer(Concatenation(2), build.layer(RELU, x), build.layer(NEG, x), name="join")
    flat = build.layer(Shuffle(reshape=(3, 16)), joined, name="flat")
    y = build.layer(NEG, build.layer(Slice((1, 0), (2, 16), (1, 1)), flat, name="rows"))
    off = {"concatenation-view": {"join"}, "all": {"join", "flat", "rows"}, "slice-view": {"rows"}, "shuffle-view": {"flat"}}
    found = share_memory(build.network(y), ask=anyone, disabled=[disabled])
    assert found.views == {"join", "flat", "rows"} - off[disabled.split("@")[0]]
    if "concatenation" in disabled:
        assert found.refusals["join"][1] == "disabled"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_networks_with_columns(cpu, data):
    build = Graph()
    pool = [build.input("x", (2, 3, 8)), build.input("z", (2, 3, 8))]
    for _ in range(data.draw(st.integers(2, 12))):
        x = data.draw(st.sampled_from(pool))
        rows, lines, width = build.tensors[x].shape
        kind = data.draw(st.sampled_from(["relu", "neg", "join", "join", "cut", "shape", "flat", "stack", "row", "add"]))
        if kind == "join":
            parts = data.draw(st.lists(st.sampled_from([one for one in pool if build.tensors[one].shape[:2] == (rows, lines)]), min_size=1, max_size=3))
            made = build.layer(Concatenation(2), x, *parts)
        elif kind == "cut":
            start = data.draw(st.integers(0, width // 4 - 1)) * 4
            size = data.draw(st.sampled_from([4, 8, 6]))
            made = build.layer(Slice((0, 0, start), (rows, lines, min(size, width - start)), (1, 1, 1)), x)
        elif kind in ("shape", "flat"):
            middle = build.layer(Shuffle(reshape=(rows * lines, width) if kind == "shape" else (rows * lines * width,)), x)
            made = build.layer(Shuffle(reshape=(rows, lines, width)), build.layer(NEG, middle))
        elif kind == "stack":
            made = build.layer(Concatenation(0), x, x if data.draw(st.booleans()) else build.layer(NEG, x))
        elif kind == "row":
            made = build.layer(Slice((rows - 1, 0, 0), (1, lines, width), (1, 1, 1)), x)
        else:
            made = build.layer(ADD, x, x) if kind == "add" else build.layer(RELU if kind == "relu" else NEG, x)
        shape = build.tensors[made].shape
        if shape[0] <= 8 and shape[2] <= 64:
            pool.append(made)
    outputs = data.draw(st.lists(st.sampled_from(pool[2:] or [build.layer(NEG, "x")]), min_size=1, max_size=3, unique=True))
    streams = {layer.name: data.draw(st.integers(0, 2)) for layer in build.layers}
    tactics = {layer.name: "test.in_place" for layer in build.layers if data.draw(st.booleans())}
    unable = {number for number in range(len(build.layers)) if data.draw(st.integers(0, 5)) == 0}
    given_ = values(x=(2, 3, 8), z=(2, 3, 8))
    context = check(build, outputs, cpu, given_, streams=streams, tactics=tactics, workspace=100, ask=lambda number, _: "cannot" if number in unable else "")
    found = resolve(context.engine, outline(context.engine), {"x": (2, 3, 8), "z": (2, 3, 8)}, cpu.spec)
    assert all(start % 16 == 0 for start in found.starts.values())
    for number in unable:
        layer = build.layers[number]
        if layer.name not in outline(context.engine).views:
            assert not any(found.types[name].pitch for name in (*layer.inputs, *layer.outputs))
