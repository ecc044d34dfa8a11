"""Operators that read at computed positions, against ONNX Runtime: shapes and attributes by hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fusion.importer import import_onnx
from fusion.reference import run
from tests.models import onnxruntime_outputs

SETTINGS = settings(max_examples=12, deadline=None)


def compare(op: str, inputs: dict[str, np.ndarray], constants: dict[str, Any] | None = None, opset: int = 20, **attributes: Any) -> None:
    entries = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for name, array in inputs.items()]
    weights = [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in (constants or {}).items()]
    node = helper.make_node(op, [*inputs, *(constants or {})], ["y"], **attributes)
    graph = helper.make_graph([node], "g", entries, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    (wanted,) = onnxruntime_outputs(model, inputs).values()
    found = run(import_onnx(model), inputs)["y"]
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, 1e-4, 1e-5)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@SETTINGS
@given(
    seed=st.integers(0, 99), height=st.integers(2, 6), width=st.integers(2, 6), mode=st.sampled_from(["linear", "nearest", "cubic"]),
    padding=st.sampled_from(["zeros", "border", "reflection"]), align=st.integers(0, 1),
)  # fmt: skip
def test_grid_sample(seed: int, height: int, width: int, mode: str, padding: str, align: int) -> None:
    inputs = {"x": normal(seed, 2, 3, height, width), "grid": normal(seed + 1, 2, 3, 4, 2, scale=0.8)}
    compare("GridSample", inputs, mode=mode, padding_mode=padding, align_corners=align)


@SETTINGS
@given(seed=st.integers(0, 99), mode=st.sampled_from(["linear", "nearest"]), padding=st.sampled_from(["zeros", "border", "reflection"]))
def test_grid_sample_in_space(seed: int, mode: str, padding: str) -> None:
    inputs = {"x": normal(seed, 1, 2, 3, 4, 5), "grid": normal(seed + 1, 1, 2, 3, 2, 3, scale=0.8)}
    compare("GridSample", inputs, mode=mode, padding_mode=padding)


def boxes(seed: int, count: int) -> np.ndarray:
    corners = np.sort(np.random.default_rng(seed).uniform(0, 12, (count, 2, 2)), 1)
    return corners.reshape(count, 4).astype(np.float32)


@SETTINGS
@given(
    seed=st.integers(0, 99), size=st.tuples(st.integers(1, 4), st.integers(1, 4)), samples=st.integers(0, 3), scale=st.sampled_from([0.5, 1.0]),
    mode=st.sampled_from(["half_pixel", "output_half_pixel"]),
)  # fmt: skip
def test_roi_align(seed: int, size: tuple[int, int], samples: int, scale: float, mode: str) -> None:
    inputs = {"x": normal(seed, 2, 3, 9, 8), "rois": boxes(seed, 5), "images": np.array([0, 1, 1, 0, 1])}
    compare("RoiAlign", inputs, output_height=size[0], output_width=size[1], sampling_ratio=samples, spatial_scale=scale,
            coordinate_transformation_mode=mode)  # fmt: skip


@SETTINGS
@given(seed=st.integers(0, 99), size=st.tuples(st.integers(1, 4), st.integers(1, 4)), scale=st.sampled_from([0.5, 0.75, 1.0]))
def test_max_roi_pool(seed: int, size: tuple[int, int], scale: float) -> None:
    regions = np.concatenate([np.float32([[0], [1], [1], [0]]), boxes(seed, 4)], 1)
    compare("MaxRoiPool", {"x": normal(seed, 2, 3, 9, 8), "rois": regions}, opset=17, pooled_shape=size, spatial_scale=scale)


@SETTINGS
@given(
    seed=st.integers(0, 99), window=st.tuples(st.integers(1, 3), st.integers(1, 3)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)), pads=st.tuples(*[st.integers(0, 2)] * 4),
)  # fmt: skip
def test_col2im(seed: int, window: Any, stride: Any, dilation: Any, pads: Any) -> None:
    image = (7, 6)
    counts = [(image[a] + pads[a] + pads[a + 2] - dilation[a] * (window[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)]
    inputs = {"x": normal(seed, 2, 3 * window[0] * window[1], counts[0] * counts[1])}
    compare("Col2Im", inputs, {"image": image, "window": window}, opset=18, strides=stride, dilations=dilation, pads=pads)


@SETTINGS
@given(seed=st.integers(0, 99), size=st.integers(1, 6))
def test_det(seed: int, size: int) -> None:
    compare("Det", {"x": normal(seed, 3, size, size)})
