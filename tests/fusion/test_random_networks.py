"""Networks made at random: all passes on both devices keep their results, their contract, and one fate per node; reports never fail."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.dtypes import DataType
from fusion.expression import Literal, Operand, apply
from fusion.network import Network, Op
from fusion.ops import Concatenation, Convolution, Expand, MatrixMultiply, Pooling, Reduce, Shuffle, Slice, Softmax
from fusion.passes import OPTIONAL, FusionOptions, optimize
from fusion.validation import validate
from tests.fusion.fates import check_fates
from tests.fusion.networks import Build, assert_same

ONE = ("relu", "tanh", "sigmoid", "abs", "softplus", "erf", "sin", "neg", "gelu")  # nothing that grows fast or divides by little
TWO = ("add", "sub", "mul", "min", "max")
NUMBERS = (0.0, 1.0, 0.5, -1.0, 3.0, 6.0)
OPTIONS = [
    FusionOptions(device=device, enabled=tuple(rule.name for rule in OPTIONAL) if measured else ()) for device in ("cpu", "cuda") for measured in (False, True)
]


def _random_op(pick: random.Random, build: Build, shape: tuple[int, ...], number: int) -> tuple[Op, tuple[str, ...]]:
    """An operation on a tensor of ``shape``, and constants that it reads."""
    rank, axis = len(shape), pick.randrange(len(shape))
    image = rank == 4 and min(shape[2:]) > 1
    kind = pick.choice(("reduce", "softmax", "transpose", "reshape", "slice", "expand", *(("product",) if rank > 1 else ()), *(("convolution", "convolution", "pooling", "mean") if image else ())))
    if kind == "reduce":
        return Reduce(pick.choice(("sum", "mean", "max")), (axis,), rank == 1 or pick.random() < 0.7), ()
    if kind == "softmax":
        return Softmax(axis), ()
    if kind == "transpose":
        return Shuffle(tuple(pick.sample(range(rank), rank))), ()
    if kind == "reshape":
        count = int(np.prod(shape))
        return Shuffle(reshape=pick.choice([(1, count), (count,), *((count // one, one) for one in (2, 6) if count % one == 0)])), ()
    if kind == "slice":
        size = max(shape[axis] // 2, 1)
        start = pick.choice((0, shape[axis] - size))
        starts = tuple(start if one == axis else 0 for one in range(rank))
        return Slice(starts, tuple(size if one == axis else dim for one, dim in enumerate(shape)), (1,) * rank), ()
    if kind == "expand":
        return Expand((2, *shape)), ()
    if kind == "pooling":
        return Pooling(pick.choice(("max", "average")), (2, 2), pick.choice(((1, 1), (2, 2))), (0, 0), (0, 0), (1, 1)), ()
    if kind == "mean":
        return Reduce("mean", (2, 3), pick.random() < 0.7), ()
    if kind == "product":
        return MatrixMultiply(), (build.constant(f"w{number}", build.random.standard_normal((shape[-1], pick.choice((4, 8)))).astype(np.float32) * 0.3),)
    window, groups = pick.choice((1, 3)), pick.choice((1, 1, shape[1]))
    out = shape[1] if groups > 1 else pick.choice((4, 8, 16))
    weights = build.random.standard_normal((out, shape[1] // groups, window, window)).astype(np.float32) * 0.3
    pads = (window // 2,) * 2
    return Convolution((1, 1), pads, pads, (1, 1), groups), (build.constant(f"w{number}", weights),)


def _random_network(seed: int) -> Network:
    pick, build = random.Random(seed), Build()
    shape = pick.choice(((2, 8, 6, 6), (2, 4, 6)))
    tensors = [build.input("x", *shape), build.input("z", *shape)]
    for number in range(pick.randint(3, 12)):
        tensor = pick.choice(tensors[-4:])
        dims, name = build.tensors[tensor].shape, f"l{number}"
        others = [one for one in tensors if len(build.tensors[one].shape) == len(dims)]
        like = [one for one in others if all(a == b or 1 in (a, b) for a, b in zip(build.tensors[one].shape, dims, strict=True))]
        joined = [one for one in others if build.tensors[one].shape[1:] == dims[1:]]
        kind = pick.choice(("one", "two", "literal", "constant", "concatenation", "op", "op", "op"))
        if kind == "one":
            made = build.pointwise(name, pick.choice(ONE), tensor)
        elif kind == "two":
            made = build.pointwise(name, pick.choice(TWO), tensor, pick.choice(like))
        elif kind == "literal":
            made = build.pointwise(name, apply(pick.choice(TWO), Operand(0), Literal(pick.choice(NUMBERS), DataType.FLOAT)), tensor)
        elif kind == "constant":
            made = build.pointwise(name, pick.choice(TWO), tensor, build.constant(f"c{number}", dims[pick.randrange(len(dims)) :]))
        elif kind == "concatenation":
            made = build.layer(name, Concatenation(0), tensor, *(pick.choice(joined) for _ in range(pick.randint(1, 2))))
        else:
            op, constants = _random_op(pick, build, dims, number)  # type: ignore[arg-type]
            made = build.layer(name, op, tensor, *constants)
        tensors.append(made)
    return build.network(*dict.fromkeys([tensors[-1], *(one for one in tensors[2:-1] if pick.random() < 0.15)]))


@pytest.mark.parametrize("options", OPTIONS, ids=["cpu", "cpu-measured", "cuda", "cuda-measured"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_results_stay(options: FusionOptions, seed: int) -> None:
    network = _random_network(seed)
    result = optimize(network, options)
    validate(result.network)
    check_fates(network, result.network)
    assert_same(network, result.network, 1e-3)
    assert set(result.misses) <= {layer.name for layer in result.network.layers}
