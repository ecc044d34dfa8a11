"""Operators of real networks with random shapes and attributes, imported and evaluated, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.fusion.importer.test_operators import check, floats

few = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
size = st.integers(1, 5)


@few
@given(st.data())
def test_attention(data: st.DataObject) -> None:
    """4-D and 3-D, fewer key heads, causal, masks of every rank, scale and softcap."""
    batch, heads, steps, total = (data.draw(size) for _ in range(4))
    share = data.draw(st.sampled_from([1, 2]))
    depth, depth_v = data.draw(st.sampled_from([2, 8])), data.draw(st.sampled_from([3, 8]))
    causal = data.draw(st.booleans())
    flat = data.draw(st.booleans())
    total = steps if causal else total
    q, k = floats(batch, heads * share, steps, depth), floats(batch, heads, total, depth, seed=1)
    inputs = {"q": q, "k": k, "v": floats(batch, heads, total, depth_v, seed=2)}
    attributes: dict[str, object] = {"is_causal": int(causal)}
    if flat:
        inputs = {name: np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(batch, x.shape[2], -1) for name, x in inputs.items()}
        attributes |= {"q_num_heads": heads * share, "kv_num_heads": heads}
    if data.draw(st.booleans()):
        lead = data.draw(st.sampled_from([(), (1, 1), (batch, 1), (batch, heads * share)]))
        inputs["mask"] = floats(*lead, steps, total, seed=3)
    if data.draw(st.booleans()):
        attributes["scale"] = 0.3
    if data.draw(st.booleans()):
        attributes["softcap"] = 0.8
    check("Attention", inputs, opset=23, tolerance=1e-4, dynamic=False, **attributes)


@few
@given(st.data())
def test_resize(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["nearest", "linear", "cubic"]))
    rank = 2 if mode == "cubic" else data.draw(st.integers(1, 2))
    x = floats(data.draw(st.integers(1, 2)), 2, *(data.draw(st.integers(2, 6)) for _ in range(rank)))
    # Quarters are exact, so both sides find the same positions.
    scales = np.array([1, 1, *(data.draw(st.integers(2, 12)) / 4 for _ in range(rank))], np.float32)
    assume(all(int(length * scale) > 0 for length, scale in zip(x.shape, scales, strict=True)))
    transform = data.draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]))
    attributes: dict[str, object] = {"mode": mode, "coordinate_transformation_mode": transform}
    if mode == "nearest":
        attributes["nearest_mode"] = data.draw(st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]))
    if mode == "cubic":
        attributes |= {"cubic_coeff_a": data.draw(st.sampled_from([-0.5, -0.75])), "exclude_outside": data.draw(st.integers(0, 1))}
    check("Resize", {"x": x}, {"_roi": np.float32([]), "scales": scales}, opset=18, tolerance=1e-4, dynamic=False, **attributes)


@few
@given(st.data())
def test_topk(data: st.DataObject) -> None:
    """Ties too: the lower index comes first."""
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    k = data.draw(st.integers(1, shape[axis]))
    x = np.random.default_rng(k).integers(-3, 4, shape).astype(data.draw(st.sampled_from([np.float32, np.int64])))
    check("TopK", {"x": x}, {"k": np.array([k])}, outputs=2, axis=axis, largest=data.draw(st.integers(0, 1)), dynamic=False)


def _indices(data: st.DataObject, limit: int, shape: tuple[int, ...]) -> np.ndarray:
    negative = -limit if data.draw(st.booleans()) else 0
    return np.random.default_rng(limit).integers(negative, limit, shape).astype(data.draw(st.sampled_from([np.int64, np.int32])))


@few
@given(st.data())
def test_gathers(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(size, min_size=1, max_size=3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = {"x": floats(*shape)}
    wanted = tuple(data.draw(st.lists(size, min_size=0, max_size=2)))
    check("Gather", x, {"i": _indices(data, shape[axis], wanted)}, axis=axis)
    short = tuple(data.draw(st.integers(1, length)) for length in shape)
    check("GatherElements", x, {"i": _indices(data, shape[axis], short)}, axis=axis)
    depth = data.draw(st.integers(1, len(shape)))
    places = np.stack([np.random.default_rng(length).integers(0, length, 4) for length in shape[:depth]], -1)
    check("GatherND", x, {"i": places})


@few
@given(st.data())
def test_scatters(data: st.DataObject) -> None:
    """Distinct places, so that the order of writing does not matter; or reductions, where places may repeat."""
    shape = tuple(data.draw(st.lists(size, min_size=1, max_size=3)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    reduction = data.draw(st.sampled_from(["none", "add", "mul", "max", "min"]))
    short = tuple(data.draw(st.integers(1, length)) for length in shape)
    random = np.random.default_rng(sum(shape))
    if reduction == "none":
        places = np.argsort(random.random(shape), axis)
        indices = places[tuple(slice(0, length) for length in short)].astype(np.int64)
    else:
        indices = random.integers(-shape[axis], shape[axis], short)
    x, updates = {"x": floats(*shape)}, floats(*short, seed=1)
    check("ScatterElements", x, {"i": np.ascontiguousarray(indices), "u": updates}, opset=18, axis=axis, reduction=reduction)
    depth = data.draw(st.integers(1, len(shape)))
    grid = np.stack(np.unravel_index(random.permutation(int(np.prod(shape[:depth])))[:3], shape[:depth]), -1)
    check("ScatterND", x, {"i": grid, "u": floats(len(grid), *shape[depth:], seed=2)}, opset=18, reduction=reduction)


@few
@given(st.data())
def test_reductions(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(size, min_size=1, max_size=4)))
    axes = data.draw(st.lists(st.integers(-len(shape), len(shape) - 1), max_size=len(shape), unique_by=lambda axis: axis % len(shape)))
    op = data.draw(st.sampled_from(["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare"]))
    constants = {"axes": np.array(axes, np.int64)} if axes or data.draw(st.booleans()) else {}
    check(f"Reduce{op}", {"x": floats(*shape)}, constants, opset=18, tolerance=1e-4, keepdims=data.draw(st.integers(0, 1)))


@few
@given(st.data())
def test_softmax(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(size, min_size=1, max_size=4)))
    op, opset = data.draw(st.sampled_from(["Softmax", "LogSoftmax", "Hardmax"])), data.draw(st.sampled_from([11, 13]))
    check(op, {"x": floats(*shape) * np.float32(20)}, opset=opset, axis=data.draw(st.integers(-len(shape), len(shape) - 1)), dynamic=False)


@few
@given(st.data())
def test_normalizations(data: st.DataObject) -> None:
    channels = data.draw(st.sampled_from([2, 4, 6]))
    x = floats(data.draw(size), channels, *data.draw(st.lists(size, min_size=1, max_size=3)))
    per_channel = {"scale": floats(channels, seed=1), "bias": floats(channels, seed=2)}
    epsilon = data.draw(st.sampled_from([1e-5, 1e-2]))
    moments = {"mean": floats(channels, seed=3), "var": np.abs(floats(channels, seed=4)) + np.float32(0.1)}
    check("BatchNormalization", {"x": x}, {**per_channel, **moments}, opset=15, epsilon=epsilon, tolerance=1e-4)
    check("InstanceNormalization", {"x": x}, per_channel, epsilon=epsilon, tolerance=2e-4, dynamic=False)
    check("GroupNormalization", {"x": x}, per_channel, opset=21, epsilon=epsilon, num_groups=data.draw(st.sampled_from([1, 2])), tolerance=2e-4, dynamic=False)
    axis = data.draw(st.integers(1, x.ndim - 1))
    whole = {"scale": floats(*x.shape[axis:], seed=5), "bias": floats(*x.shape[axis:], seed=6)}
    check("LayerNormalization", {"x": x}, whole, axis=axis - data.draw(st.sampled_from([0, x.ndim])), epsilon=epsilon, tolerance=2e-4, dynamic=False)


@few
@given(st.data())
def test_matmul(data: st.DataObject) -> None:
    rows, depth, columns = (data.draw(st.integers(1, 9)) for _ in range(3))
    lead = data.draw(st.lists(st.integers(1, 3), max_size=2))
    other = [dim if data.draw(st.booleans()) else 1 for dim in lead][data.draw(st.integers(0, len(lead))) :]
    left, right = floats(*lead, rows, depth), floats(*other, depth, columns, seed=1)
    if data.draw(st.booleans()):
        check("MatMul", {"a": left, "b": right}, tolerance=1e-4, dynamic=False)
    else:
        check("MatMul", {"a": left}, {"b": right}, tolerance=1e-4)


@few
@given(st.data())
def test_what_data_count(data: st.DataObject) -> None:
    """Distinct slices, non-zero elements, kept slices."""
    shape = tuple(data.draw(st.lists(size, min_size=1, max_size=3)))
    x = np.random.default_rng(sum(shape)).integers(-1, 2, shape).astype(data.draw(st.sampled_from([np.float32, np.int64])))
    axis: dict[str, object] = {"axis": data.draw(st.integers(-len(shape), len(shape) - 1))} if data.draw(st.booleans()) else {}
    check("Unique", {"x": x}, outputs=4, sorted=data.draw(st.integers(0, 1)), dynamic=False, **axis)
    check("NonZero", {"x": x}, dynamic=False)
    length = shape[axis["axis"]] if axis else x.size  # type: ignore[call-overload]
    kept = np.random.default_rng(length).random(data.draw(st.integers(1, length))) < 0.5
    check("Compress", {"x": x, "c": kept}, dynamic=False, **axis)
