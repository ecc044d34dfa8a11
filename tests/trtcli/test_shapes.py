"""From typed shapes to optimization profiles."""

from __future__ import annotations

import pytest

from fusion.dims import symbol
from fusion.dtypes import DataType
from fusion.network import Network, TensorType
from runtime.engine import InputRange
from tests.harness.log import Lines
from trtcli.config import BuildConfig
from trtcli.shapes import inference_shapes, match_names, optimization_profile

N, S = symbol("N"), symbol("S")


def network(**shapes: tuple) -> Network:
    tensors = {name: TensorType(DataType.FLOAT, shape) for name, shape in shapes.items()}
    return Network("net", tuple(shapes), (), (), tensors)


def profile(net: Network, **config: dict) -> tuple[dict[str, InputRange], list[str]]:
    log = Lines()
    return optimization_profile(net, BuildConfig(**config), log), log


DYNAMIC = network(ids=(N, S), mask=(N, S))


def test_all_three_given() -> None:
    net = network(x=(N, 3))
    found, warnings = profile(net, min_shapes={"x": (1, 3)}, opt_shapes={"x": (4, 3)}, max_shapes={"x": (8, 3)})
    assert found == {"x": InputRange((1, 3), (4, 3), (8, 3))}
    assert not warnings


@pytest.mark.parametrize(
    ("given", "expected", "sources"),
    [
        ({"opt_shapes": 4}, (4, 4, 4), ["optShapes>minShapes", "optShapes>maxShapes"]),
        ({"min_shapes": 2}, (2, 2, 2), ["minShapes>optShapes", "minShapes>maxShapes"]),
        ({"max_shapes": 9}, (9, 9, 9), ["maxShapes>minShapes", "maxShapes>optShapes"]),
        ({"min_shapes": 2, "max_shapes": 9}, (2, 9, 9), ["maxShapes>optShapes"]),
        ({"opt_shapes": 4, "max_shapes": 9}, (4, 4, 9), ["optShapes>minShapes"]),
        ({"min_shapes": 2, "opt_shapes": 4}, (2, 4, 4), ["optShapes>maxShapes"]),
    ],
)
def test_missing_bounds_are_broadcast_with_a_warning(
    given: dict[str, int], expected: tuple[int, ...], sources: list[str]
) -> None:
    found, warnings = profile(network(x=(N,)), **{field: {"x": (size,)} for field, size in given.items()})
    assert found["x"] == InputRange(*((size,) for size in expected))
    expected_lines = [
        f"{source.split('>')[0]} is being broadcasted to {source.split('>')[1]} for tensor x" for source in sources
    ]
    assert sorted(warnings) == sorted(expected_lines)


def test_shapes_alone_are_the_profile() -> None:
    found, warnings = profile(DYNAMIC, shapes={"*": (2, 16)})
    assert found == dict.fromkeys(("ids", "mask"), InputRange((2, 16), (2, 16), (2, 16)))
    assert not warnings


def test_nothing_given_means_one() -> None:
    found, warnings = profile(network(x=(N, 3, S)))
    assert found["x"].opt == (1, 3, 1)
    assert warnings == [
        "Dynamic dimensions required for input: x, but no shapes were provided. Automatically overriding shape to: 1x3x1"
    ]


def test_static_inputs() -> None:
    net = network(x=(1, 3))
    assert profile(net)[0] == {"x": InputRange((1, 3), (1, 3), (1, 3))}
    assert profile(net, shapes={"x": (1, 3)})[0]["x"].max == (1, 3)
    with pytest.raises(ValueError, match=r"--maxShapes: input 'x' is fixed at 1x3 by the model, not 8x3"):
        profile(net, max_shapes={"x": (8, 3)})


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"min_shapes": {"y": (1,)}}, "--minShapes: the model has no input 'y'; it has ids, mask"),
        ({"shapes": {"z*": (1,)}}, r"no input 'z\*'"),
        ({"opt_shapes": {"*": (1,)}}, "--optShapes: input 'ids' is NxS in the model, 1 has 1 dimensions"),
        ({"min_shapes": {"*": (4, 1)}, "max_shapes": {"*": (2, 1)}}, "dimension 0: min 4, opt 2, max 2"),
        ({"shapes": {"ids": (2, 4), "mask": (3, 4)}}, "dimension 0 is 3, but N is 2 in another input"),
    ],
)
def test_refusals(config: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        profile(DYNAMIC, **config)


def test_fixed_dimensions_stay() -> None:
    with pytest.raises(ValueError, match="dimension 1 cannot be 4"):
        profile(network(x=(N, 3)), shapes={"x": (1, 4)})


def test_names_with_stars_and_brackets() -> None:
    inputs = dict.fromkeys(("in_a", "in_b", "x[0]", "held"))
    assert match_names({"in*": (1,), "in_b": (2,)}, inputs, "--shapes") == {"in_a": (1,), "in_b": (2,)}
    assert match_names({"he*ld": (1,)}, inputs, "--shapes") == {"held": (1,)}
    assert match_names({"x[*": (1,)}, inputs, "--shapes") == {"x[0]": (1,)}
    with pytest.raises(ValueError, match="no input"):
        match_names({"x?0]": (1,)}, inputs, "--shapes")


def test_inference_shapes_stay_inside_of_the_profile() -> None:
    net = network(x=(N,))
    ranges = {"x": InputRange((2,), (4,), (8,))}
    assert inference_shapes(net, ranges, {}) == {"x": (4,)}
    assert inference_shapes(net, ranges, {"x": (8,)}) == {"x": (8,)}
    for shape in ((9,), (1,), (4, 4)):
        with pytest.raises(ValueError, match=r"outside of what the engine was built for \(2 to 8\)"):
            inference_shapes(net, ranges, {"x": shape})
