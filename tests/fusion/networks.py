"""For tests: networks written in a few lines, and the check that two of them compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion.dims import Shape, bind
from fusion.dtypes import DataType, data_type
from fusion.expression import Expression, Operand, apply
from fusion.network import Fate, Layer, Network, Op, TensorType
from fusion.ops import Pointwise
from fusion.reference import run

X0, X1, X2, X3 = (Operand(index) for index in range(4))


class Build:
    """Collects layers; every layer gets an origin of the same name as it."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.inputs: list[str] = []
        self.layers: list[Layer] = []
        self.tensors: dict[str, TensorType] = {}
        self.constants: dict[str, np.ndarray] = {}

    def input(self, name: str, *shape: object, dtype: DataType = DataType.FLOAT) -> str:
        self.inputs.append(name)
        self.tensors[name] = TensorType(dtype, tuple(shape))  # type: ignore[arg-type]
        return name

    def constant(self, name: str, value: np.ndarray | Sequence[int]) -> str:
        """A constant: an array, or the shape of a random one."""
        array = value if isinstance(value, np.ndarray) else self.random.standard_normal(tuple(value)).astype(np.float32)
        self.constants[name] = np.asarray(array)
        self.tensors[name] = TensorType(data_type(array.dtype), array.shape)
        return name

    def layer(self, name: str, op: Op, *inputs: str, outputs: int = 1) -> str:
        types = op.infer([self.tensors[tensor] for tensor in inputs])
        names = tuple(f"{name}:{index}" if index else f"{name}:out" for index in range(outputs))
        self.tensors.update(zip(names, types, strict=True))
        self.layers.append(Layer(name, op, inputs, names, (name,)))
        return names[0]

    def pointwise(self, name: str, expression: Expression | str, *inputs: str) -> str:
        if isinstance(expression, str):
            expression = apply(expression, *(Operand(index) for index in range(len(inputs))))
        return self.layer(name, Pointwise(expression), *inputs)

    def network(self, *outputs: str) -> Network:
        fates = {layer.name: Fate("layer", layer.name) for layer in self.layers}
        return Network("test", tuple(self.inputs), outputs, tuple(self.layers), self.tensors, self.constants, fates)


def random_inputs(network: Network, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Values for the inputs: normal, or 0 and 1 for integers and booleans."""
    random = np.random.default_rng(seed)
    values = {}
    for name in network.inputs:
        kind = network.tensors[name]
        shape = tuple(bind(dim, sizes or {}) for dim in kind.shape)
        array = random.standard_normal(shape) if kind.dtype.is_float else random.integers(0, 2, shape)
        values[name] = array.astype(kind.dtype.numpy)
    return values


def assert_same(
    before: Network, after: Network, tolerance: float = 2e-5, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> None:
    """Both networks have the same interface and give the same results for random inputs."""
    assert before.inputs == after.inputs
    assert before.outputs == after.outputs
    for name in (*before.inputs, *before.outputs):
        assert before.tensors[name].dtype is after.tensors[name].dtype
        assert shape_of(before, name, sizes) == shape_of(after, name, sizes)
    inputs = random_inputs(before, seed, sizes)
    expected, found = run(before, inputs), run(after, inputs)
    for name in before.outputs:
        assert expected[name].dtype == found[name].dtype
        np.testing.assert_allclose(
            found[name].astype(np.float64),
            expected[name].astype(np.float64),
            rtol=tolerance,
            atol=tolerance,
            err_msg=name,
        )


def shape_of(network: Network, name: str, sizes: Mapping[str, int] | None) -> Shape:
    return tuple(bind(dim, sizes or {}) for dim in network.tensors[name].shape)
