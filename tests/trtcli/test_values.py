"""Readers of flag values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtcli.values import (
    Choice,
    Device,
    FileSpec,
    FusionRules,
    Integer,
    MemoryPools,
    Names,
    Number,
    Percentiles,
    Pins,
    ShapeSpec,
    Share,
    byte_size,
    split_quoted,
)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("10", 10), ("+7", 7), (" 5 ", 5)])
def test_integer(text: str, value: int) -> None:
    assert Integer(1, 10)(text) == value


@pytest.mark.parametrize("text", ["0", "11", "-3", "99999999999999999999"])
def test_integer_out_of_range_names_the_range(text: str) -> None:
    with pytest.raises(ValueError, match=r"out of range \(1\.\.10\)"):
        Integer(1, 10)(text)


@pytest.mark.parametrize("text", ["", "10k", "1.5", "abc", "0x1", "1e3", "１２x"])
def test_integer_is_read_whole(text: str) -> None:
    with pytest.raises(ValueError, match="not a whole number"):
        Integer(1, 10)(text)


def test_number() -> None:
    assert Number(0, 5)("2.5") == 2.5
    assert Number(0, 5, also=-1)("-1") == -1
    for text in ("-0.5", "5.1", "nan", "inf", "-1"):
        with pytest.raises(ValueError, match="out of range"):
            Number(0, 5)(text)
    with pytest.raises(ValueError, match="not a number"):
        Number(0, 5)("3s")


def test_choice_takes_old_words() -> None:
    choice = Choice(("none", "detailed"), old=(("verbose", "detailed"),))
    assert choice("none") == "none"
    assert choice("verbose") == "detailed"
    with pytest.raises(ValueError, match="'all' is none of none, detailed"):
        choice("all")


@pytest.mark.parametrize(("text", "value"), [("0", "0"), ("03", "3"), ("CPU", "cpu"), ("auto", "auto")])
def test_device(text: str, value: str) -> None:
    assert Device()(text) == value


@pytest.mark.parametrize("text", ["-1", "gpu", "", "0,1"])
def test_device_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="no device"):
        Device()(text)


@pytest.mark.parametrize("text", ["1", "64", "50%", "12.5%", "100%"])
def test_share(text: str) -> None:
    assert Share()(text) == text


@pytest.mark.parametrize("text", ["0", "0%", "101%", "half", "", "-3", "1.5"])
def test_share_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="no share"):
        Share()(text)


def test_percentiles() -> None:
    read = Percentiles((90.0, 99.0))
    assert read("") == (90.0, 99.0)
    assert read("0,50, 99.9,100") == (0, 50, 99.9, 100)
    for text in ("101", "-1", "50,,60", "a"):
        with pytest.raises(ValueError, match=r"0\.\.100"):
            read(text)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("input:1x3x224x224", {"input": (1, 3, 224, 224)}),
        ("'images':1x3x640x640", {"images": (1, 3, 640, 640)}),
        ("a:1x2,b:3", {"a": (1, 2), "b": (3,)}),
        ("in:0:4x5", {"in:0": (4, 5)}),
        ("'in:0':4x5", {"in:0": (4, 5)}),
        ("'a,b':7", {"a,b": (7,)}),
        ("s:", {"s": ()}),
        ("s:scalar,t:0x4", {"s": (), "t": (0, 4)}),
        ("in*:8", {"in*": (8,)}),
    ],
)
def test_shape_spec(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assert ShapeSpec()(text) == shapes


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a,b", ["a", "b"]),
        ("fusedPointwiseNode(add1, relu1), b", ["fusedPointwiseNode(add1, relu1)", "b"]),
        ("c + fusedPointwiseNode(a, b):cpu.x[k=1,t=2],d:cpu.y", ["c + fusedPointwiseNode(a, b):cpu.x[k=1,t=2]", "d:cpu.y"]),
        ("f(a,b", ["f(a", "b"]),
        ("'f(a',b,g(c,d)", ["'f(a'", "b", "g(c,d)"]),
        (")a,b(", [")a", "b("]),
    ],
)
def test_lists_of_names(text: str, pieces: list[str]) -> None:
    """Names of fused layers and tactics are taken as they are printed; brackets that do not match are letters."""
    assert split_quoted(text) == pieces


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1x3x224x224", "names no input"),
        (":1x3", "names no input"),
        ("", "empty entry"),
        ("a:1,", "empty entry"),
        ("'a:1x2", "unbalanced '"),
        ("a:1x-1", "'-1' in '1x-1' is no dimension"),
        ("a:1,3", "names no input"),
        ("a:1X3", "no dimension"),
        ("a:1x2,a:1x3", "given twice"),
        ("*a*:1", r"more than one \*"),
        ("a:4294967296", "out of range"),
    ],
)
def test_shape_spec_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ShapeSpec()(text)


names = st.text(st.characters(codec="ascii", exclude_characters="',* ", categories=("L", "N", "P")), min_size=1)
extents = st.lists(st.integers(0, 10**6), max_size=6).map(tuple)


@given(st.dictionaries(names, extents, min_size=1, max_size=4))
def test_shape_spec_round_trip(shapes: dict[str, tuple[int, ...]]) -> None:
    quoted = ",".join(f"'{name}':{'x'.join(map(str, dims)) or 'scalar'}" for name, dims in shapes.items())
    assert ShapeSpec()(quoted) == shapes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 2**20), ("512", 512 * 2**20), ("1.5G", 3 * 2**29), ("512k", 2**19), ("48K", 48 * 2**10), ("100B", 100),
        ("16MiB", 2**24), ("16MB", 2**24), ("2 gib", 2**31), ("0", 0), (".5M", 2**19), ("3KB", 3072),
    ],
)  # fmt: skip
def test_byte_size(text: str, count: int) -> None:
    assert byte_size(text) == count


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("10X", "unknown unit 'X'"), ("", "not a size"), ("M", "not a size"), ("-1", "out of range"), ("1e3", "not a size"),
     ("9999999999G", "out of range"), ("1 Bi", "unknown unit"), ("5TB", "unknown unit")],
)  # fmt: skip
def test_byte_size_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        byte_size(text)


def test_memory_pools() -> None:
    assert MemoryPools()("workspace:1G,tacticSharedMem:48K") == {"workspace": 2**30, "tacticSharedMem": 48 * 2**10}
    for text, complaint in [
        ("dlaSRAM:1", "DLA"),
        ("heap:1", "unknown memory pool 'heap'"),
        ("workspace", "no size"),
        ("workspace:", "no size"),
        ("workspace:1,workspace:2", "given twice"),
        ("workspace:-5", "out of range"),
        ("", "unknown memory pool"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            MemoryPools()(text)


def test_files() -> None:
    assert FileSpec()("a:b.bin,'c:0':/tmp/d:e.bin") == {"a": "b.bin", "c:0": "/tmp/d:e.bin"}
    assert FileSpec()("in:0:x.bin") == {"in:0": "x.bin"}
    for text in ("a", ":b", "a:", "a:b,a:c"):
        with pytest.raises(ValueError, match=r"not name:file|given twice"):
            FileSpec()(text)


def test_rules_pins_and_names() -> None:
    assert FusionRules()("all") == (("all", ""),)
    assert FusionRules()("mish@conv1 + relu1,gelu") == (("mish", "conv1 + relu1"), ("gelu", ""))
    assert Pins()("/model/conv:0:cuda.conv.mma") == (("/model/conv:0", "cuda.conv.mma"),)
    assert Pins()("'fusedPointwiseNode(a, b)':cuda.pointwise") == (("fusedPointwiseNode(a, b)", "cuda.pointwise"),)
    assert Names()("a,'b,c'") == ("a", "b,c")
    for read, text in ((FusionRules(), "@a"), (FusionRules(), "mish@"), (Pins(), "conv1"), (Pins(), ":x"), (Names(), "a,,b")):
        with pytest.raises(ValueError, match=r"is not|empty entry"):
            read(text)
