"""Formats of inputs and outputs: shapes, strides and bytes, and the layers that they become."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.expression import Operand, apply
from fusion.formats import CHANNELS_LAST, Format
from fusion.io_formats import IOType, with_io_types
from fusion.layout_choice import undecided_layers
from fusion.network import Network
from fusion.ops import Convolution, Gather, Pooling, Reformat, Shuffle
from fusion.passes import FusionOptions, optimize
from fusion.reference import run
from fusion.serial import network_from_json, network_to_json
from fusion.validation import validate
from tests.fusion.fusing import kinds
from tests.fusion.networks import Build
from trtcli.values import IO_LAYOUTS, IO_TYPES

HALF, FLOAT = DataType.HALF, DataType.FLOAT
ONE = (1, 1)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(CHANNELS_LAST)), st.data())
def test_memory_is_what_the_strides_say(name: str, data: st.DataObject) -> None:
    rank = data.draw(st.integers(Format(name).least_rank, 5))
    shape = tuple(data.draw(st.integers(1, 9)) for _ in range(rank))
    channel = Format(name).order(rank)[-1]
    layout = Format(name, shape[channel] if Format(name).multiple > 1 else 0)
    array = np.arange(1, np.prod(shape) + 1, dtype=np.int32).reshape(shape)
    packed = layout.pack(array)
    assert packed.flags.c_contiguous and packed.shape == layout.in_memory(shape) and packed.shape[-1] % layout.multiple == 0
    assert layout.known_as(packed.shape) == shape
    seen = np.lib.stride_tricks.as_strided(packed, shape, [stride * 4 for stride in layout.strides(shape)])
    np.testing.assert_array_equal(seen, array)
    assert packed.sum() == array.sum(), "padding holds zeros"
    np.testing.assert_array_equal(layout.unpack(packed), array)


def test_strides_as_documented() -> None:
    assert Format("hwc").strides((2, 3, 8, 6)) == (144, 1, 18, 3)
    assert Format("hwc8", 3).strides((2, 3, 8, 6)) == (384, 1, 48, 8)
    assert Format("hwc16", 17).in_memory((2, 17, 8, 6)) == (2, 8, 6, 32)
    assert Format("dhwc8", 9).strides((2, 9, 4, 8, 6)) == (3072, 1, 768, 96, 16)
    assert set(IO_LAYOUTS) == {"chw", *CHANNELS_LAST} and {DataType(value) for value in IO_TYPES.values()}


def image_network(channels: int = 3, middle: int = 8) -> Network:
    """Two convolutions with ReLU, a maximum pool between them; the output is read inside, too."""
    build = Build()
    x = build.input("x", 2, channels, 9, 7)
    a = build.layer("conv", Convolution(ONE, ONE, ONE, ONE), x, build.constant("w", (middle, channels, 3, 3)))
    b = build.layer("pool", Pooling("max", (2, 2), ONE, (0, 0), (0, 0), ONE), build.pointwise("relu", "relu", a))
    y = build.layer("last", Convolution(ONE, (0, 0), (0, 0), ONE), b, build.constant("v", (5, middle, 1, 1)))
    return build.network(y, build.pointwise("tanh", "tanh", y))


def compare(before: Network, after: Network, tolerance: float = 1e-6) -> None:
    """``after``, fed and read in the formats of its ends, computes what ``before`` does."""
    validate(after)
    rng = np.random.default_rng(1)
    inputs = {name: rng.integers(0, 9, [int(str(dim)) for dim in before.tensors[name].shape]) for name in before.inputs}

    def held(name: str) -> np.ndarray:
        value = inputs[name].astype(after.tensors[name].dtype.numpy)
        return after.formats[name].pack(value) if name in after.formats else value

    wanted = run(before, {name: value.astype(before.tensors[name].dtype.numpy) for name, value in inputs.items()})
    found = run(after, {name: held(name) for name in after.inputs})
    for name, value in wanted.items():
        array = np.asarray(found[name])
        assert array.shape == tuple(after.tensors[name].shape)
        if name in after.formats:
            rest = array[..., after.formats[name].channels or array.shape[-1] :]
            assert not rest.any(), "padding of outputs is zero"
            array = after.formats[name].unpack(array)
        assert array.shape == value.shape == after.io_shape(name)
        np.testing.assert_allclose(array.astype(np.float64), value, rtol=tolerance, atol=tolerance * np.abs(value).max())


@pytest.mark.parametrize(
    ("x", "y", "tolerance"),
    [(IOType(None, "hwc"), IOType(None, "hwc8"), 1e-6), (IOType(HALF, "hwc8"), IOType(HALF), 2e-3), (IOType(DataType.UINT8, "hwc16"), IOType(), 1e-6),
     (IOType(DataType.BF16), IOType(DataType.BF16, "hwc"), 1e-2)],
)  # fmt: skip
def test_ends_become_layers_that_compute_the_same(x: IOType, y: IOType, tolerance: float) -> None:
    before = image_network()
    outputs = before.outputs
    after = with_io_types(before, {"x": x, outputs[0]: y})
    assert (after.inputs, after.outputs) == (before.inputs, outputs)
    compare(before, after, tolerance)
    for device in ("cpu", "cuda"):
        for precision in (None, HALF):
            fused = optimize(after, FusionOptions(device=device, precision=precision)).network
            assert fused.formats == after.formats
            compare(before, fused, max(tolerance, 1e-5 if precision is None else 2e-2))


def test_what_is_there_already_changes_nothing() -> None:
    before = image_network()
    assert with_io_types(before, {"x": IOType(FLOAT), before.outputs[0]: IOType()}) is before


def test_channels_last_ends_leave_no_reformat_on_a_gpu() -> None:
    before = image_network(channels=16)
    last = IOType(HALF, "hwc")
    after = with_io_types(before, dict.fromkeys((*before.inputs, *before.outputs), last))
    fused = optimize(after, FusionOptions(device="cuda", precision=HALF)).network
    assert kinds(fused) == ["Convolution", "Pooling", "Convolution", "Pointwise"]
    assert kinds(optimize(before, FusionOptions(device="cuda", precision=HALF)).network).count("Reformat") >= 1


@pytest.mark.parametrize("dtype", [HALF, FLOAT, DataType.UINT8])
def test_a_stem_reads_a_channels_last_image_as_it_is(dtype: DataType) -> None:
    fused = optimize(with_io_types(image_network(), {"x": IOType(dtype, "hwc")}), FusionOptions(device="cuda", precision=HALF)).network
    assert kinds(fused)[: 1 if dtype is HALF else 2] == (["Convolution"] if dtype is HALF else ["Pointwise", "Convolution"])
    first = only_convolution(fused)
    assert first.reads_channels_last and first.channels_last
    planes = optimize(image_network(), FusionOptions(device="cuda", precision=HALF)).network
    assert not only_convolution(planes).reads_channels_last


def only_convolution(network: Network) -> Convolution:
    """The first one."""
    return next(layer.op for layer in network.layers if isinstance(layer.op, Convolution))


def test_a_cast_at_a_channels_first_end_joins_the_transpose() -> None:
    before = image_network(channels=16)
    fused = optimize(with_io_types(before, {"x": IOType(DataType.UINT8)}), FusionOptions(device="cuda", precision=HALF)).network
    first = fused.layers[0]
    assert isinstance(first.op, Reformat) and first.inputs == ("x",) and "input-format" in first.fusions


def test_a_channels_last_input_counts_as_a_neighbour_of_that_layout() -> None:
    build = Build()
    x = build.input("x", 2, 16, 9, 7)
    y = build.pointwise("relu", "relu", build.layer("pool", Pooling("max", (2, 2), ONE, (0, 0), (0, 0), ONE), x))
    before = build.network(y)
    last = with_io_types(before, {"x": IOType(None, "hwc"), y: IOType(None, "hwc")})
    fused = optimize(last, FusionOptions(device="cuda")).network
    assert not any(isinstance(layer.op, Shuffle | Reformat) for layer in fused.layers)
    assert not undecided_layers(optimize(last, FusionOptions(device="cuda")).planar or last), "there is nothing left to decide"


def test_formats_are_saved() -> None:
    network = with_io_types(image_network(), {"x": IOType(HALF, "hwc8")})
    bare = replace(network, constants={})
    assert network_from_json(network_to_json(bare)).formats == network.formats == {"x": Format("hwc8", 3)}


def test_a_dense_format_takes_any_number_of_channels() -> None:
    build = Build()
    x = build.input("x", symbol("n"), symbol("c"), 4, 4)
    network = build.network(build.pointwise("relu", "relu", x))
    assert with_io_types(network, {"x": IOType(None, "hwc")}).io_shape("x") == (symbol("n"), symbol("c"), 4, 4)
    with pytest.raises(ValueError, match="input 'x' has c channels, which hwc8 must know at build"):
        with_io_types(network, {"x": IOType(None, "hwc8")})


@pytest.mark.parametrize(
    ("wanted", "text"),
    [(IOType(DataType.INT8), "is FP32 in the model and cannot be INT8 .*need a scale"), (IOType(DataType.INT64), r"\(FP32, FP16, BF16, UINT8 can be\)"),
     (IOType(None, "dhwc"), r"has 4 dimensions, dhwc needs 5 \(chw, hwc, hwc8, hwc16 can be\)")],
)  # fmt: skip
def test_refusals_name_what_is_allowed(wanted: IOType, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        with_io_types(image_network(), {"x": wanted})


def test_token_numbers_need_no_cast() -> None:
    build = Build()
    i, table = build.input("i", 4, dtype=DataType.INT64), build.constant("t", (50, 8))
    y = build.layer("rows", Gather(0), table, i)
    before = build.network(y)
    after = with_io_types(before, {"i": IOType(DataType.INT32)})
    validate(after)
    assert after.layers == before.layers and after.tensors["i"].dtype is DataType.INT32
    numbers = np.array([3, 0, 49, 7])
    np.testing.assert_array_equal(run(after, {"i": numbers.astype(np.int32)})[y], before.constants["t"][numbers])
    other = build.network(y, build.pointwise("double", apply("add", Operand(0), Operand(0)), i))
    assert kinds(with_io_types(other, {"i": IOType(DataType.INT32)})) == ["Pointwise", "Gather", "Pointwise"]


def test_a_tensor_at_both_ends_stays_as_it_is() -> None:
    build = Build()
    x = build.input("x", 2, 3, 4, 4)
    with pytest.raises(ValueError, match="an input and an output of the network at once"):
        with_io_types(build.network(x), {"x": IOType(None, "hwc")})
