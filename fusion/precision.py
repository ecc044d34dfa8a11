"""The precision pass: a float32 network computed in float16 or bfloat16, for ``--fp16`` and ``--bf16``.

Tensors and weights become narrow; inputs and outputs of the network keep their types. What narrow numbers would spoil
stays in float32: index arithmetic (conversions between integers and real numbers), ranges, running sums, and statistics
(sums and means, which are small, and what is computed of them alone): a variance that is written as a difference of
means would otherwise cancel to nothing. So do the coordinates at which tensors are sampled; what is read there is narrow. Inside their layers sums and softmax are float32 anyway (:mod:`fusion.expression`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Apply, Convert, Expression, Literal, Operand, apply, operands, substitute, type_of
from fusion.network import ControlFlow, Layer, Network, Op, TensorType
from fusion.ops import (
    Attention,
    Convolution,
    Cumulative,
    Custom,
    Deconvolution,
    Determinant,
    GridSample,
    Inverse,
    MatrixMultiply,
    NonMaxSuppression,
    NonZero,
    Pointwise,
    Random,
    Range,
    Reduce,
    Reinterpret,
    RoiAlign,
    RoiPool,
    Shuffle,
    Unique,
)

_WIDE = DataType.FLOAT
_QUANTIZED = (DataType.FP8, DataType.FP8_E5M2)
_SUMS = ("sum", "mean")  # the reductions whose results are statistics


@dataclass(frozen=True)
class LayerTypes:
    """Which layers are computed in which type: what was asked for by name, and the type of all others.

    Attributes:
        given: (name, type): a layer, an ONNX node that is in it, or a pattern with ``*``; an exact name wins over a pattern, and of
            several names in one fused layer FLOAT wins.
        others: the type of layers that no name fits.
        obey: whether a layer that cannot have its type is an error, not a warning.
        outputs: as ``given``: the type that a layer's results are rounded to, whatever it is computed in.
    """

    given: tuple[tuple[str, DataType], ...] = ()
    others: DataType | None = None
    obey: bool = False
    outputs: tuple[tuple[str, DataType], ...] = ()

    def of(self, layer: Layer) -> DataType | None:
        """The type that was asked for ``layer`` by name, or None."""
        return _named(self.given, layer)

    def of_outputs(self, layer: Layer) -> DataType | None:
        """The type that was asked for the results of ``layer`` by name, or None."""
        return _named(self.outputs, layer)

    def unknown(self, network: Network) -> tuple[list[str], list[str]]:
        """The names that fit no layer of ``network``, in ``given`` and in ``outputs``."""
        names = {one for layer in network.layers for one in (layer.name, *layer.origins)}

        def missing(pairs: Sequence[tuple[str, DataType]]) -> list[str]:
            return [name for name, _ in pairs if name not in names and not ("*" in name and any(fnmatchcase(one, name) for one in names))]

        return missing(self.given), missing(self.outputs)


def _named(pairs: Sequence[tuple[str, DataType]], layer: Layer) -> DataType | None:
    names = (layer.name, *layer.origins)
    exact = [dtype for name, dtype in pairs if name in names]
    found = exact or [dtype for name, dtype in pairs if "*" in name and any(fnmatchcase(one, name) for one in names)]
    return _WIDE if _WIDE in found else found[-1] if found else None


def to_half(network: Network, dtype: DataType, types: LayerTypes | None = None) -> tuple[Network, tuple[str, ...]]:
    """``network`` with float32 replaced by ``dtype`` inside, and one warning per kind of value that did not fit.

    ``types`` keeps layers in float32, by name or all that are not named.

    Raises:
        ValueError: ``dtype`` is not HALF or BF16; or ``types`` must be obeyed and a layer cannot be computed in ``dtype``.
    """
    if dtype not in (DataType.HALF, DataType.BF16):
        raise ValueError(f"a network can be computed in float16 or bfloat16, not in {dtype.value}")
    if not any(kind.dtype is _WIDE for kind in network.tensors.values()):
        return network, ()
    return _Narrowing(network, dtype, types or LayerTypes()).run()


class _Narrowing:
    """One run of the pass: the layers made so far, and the float32 twins of narrow tensors."""

    def __init__(self, network: Network, dtype: DataType, types: LayerTypes) -> None:
        self.network, self.dtype, self.types = network, dtype, types
        self.largest = float(np.finfo(np.float16).max) if dtype is DataType.HALF else float("inf")
        self.layers: list[Layer] = []
        self.tensors: dict[str, TensorType] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.narrow: dict[str, str] = {}  # float32 tensor of the model -> its narrow version
        self.statistics: set[str] = set()  # tensors that stay float32 although layers around them are narrow
        self.clamped: dict[str, float] = {}  # constants that did not fit, and their largest magnitude

    def run(self) -> tuple[Network, tuple[str, ...]]:
        network = self.network
        stubborn: list[str] = []
        other = [
            layer.name
            for layer in network.layers
            if self.types.of_outputs(layer) and not any(network.tensors[name].dtype is _WIDE for name in layer.outputs)
        ]
        for name in network.inputs:
            self.tensors[name] = network.tensors[name]
        for layer in network.layers:
            if not any(network.tensors[name].dtype is _WIDE for name in (*layer.inputs, *layer.outputs)):
                self._copy(layer)
            elif self._is_asked_wide(layer):
                self._keep(layer)
            elif _is_delicate(network, layer):
                if self.types.of(layer) not in (None, _WIDE):
                    stubborn.append(layer.name)
                self._keep(layer, self._narrow_operands(layer))
            elif isinstance(layer.op, GridSample | RoiAlign | RoiPool):
                self._narrow(layer, wide=range(1, len(layer.inputs)))  # coordinates; what is read at them may be narrow
            elif self._is_statistic(layer) and self.types.of_outputs(layer) is not self.dtype:
                self._copy(layer)
                self.statistics.update(layer.outputs)
            else:
                self._narrow(layer)
        for name in network.outputs:
            if name not in self.tensors:  # a float32 result that exists only in its narrow version
                self._convert(self.narrow[name], name, _WIDE, f"{name} to FP32")
        if other and self.types.obey:
            raise ValueError(f"--precisionConstraints=obey: results of {', '.join(other)} are not FP32 in the model: --layerOutputTypes cannot change them")
        if stubborn and self.types.obey:
            raise ValueError(
                f"--precisionConstraints=obey: {', '.join(stubborn)} cannot be computed in {self.dtype.label}, which would spoil "
                "exact integers or coordinates; use prefer, or name other layers"
            )
        warnings = tuple(f"{name} stays in FP32: {self.dtype.label} would spoil exact integers or coordinates" for name in stubborn)
        warnings += tuple(f"--layerOutputTypes: the results of {name} are not FP32 in the model and stay as they are" for name in other)
        warnings += tuple(
            f"{name}: magnitudes up to {value:.4g} do not fit {self.dtype.value} and became {self.largest:.0f}"
            for name, value in self.clamped.items()
        )
        done = replace(network, layers=tuple(self.layers), tensors=self.tensors, constants=self.constants)
        return done, warnings

    # --- layers ------------------------------------------------------------------------------------------------------

    def _is_asked_wide(self, layer: Layer) -> bool:
        return (self.types.of(layer) or self.types.others) is _WIDE

    def _copy(self, layer: Layer) -> None:
        for name in layer.inputs:
            self._wide(name)
        self._add(layer)

    def _keep(self, layer: Layer, narrow: Collection[int] = ()) -> None:
        """The layer as it is; its float32 inputs are widened again where only narrow versions exist, but for the ``narrow`` ones of its epilogue."""
        inputs = tuple(self.narrow[name] if index in narrow else self._wide(name) for index, name in enumerate(layer.inputs))
        if narrow:
            first = layer.op.arity - 1  # type: ignore[attr-defined]
            wide: dict[int, Expression] = {index - first: Convert(_WIDE, Operand(index - first)) for index in narrow}
            layer = replace(layer, op=replace(layer.op, epilogue=substitute(layer.op.epilogue, wide)))  # type: ignore[attr-defined, type-var]
        if self.types.of_outputs(layer) is self.dtype:  # readers get its results rounded
            raw = {name: f"{name}.unrounded" for name in layer.outputs if self.network.tensors[name].dtype is _WIDE}
            self._add(replace(layer, inputs=inputs, outputs=tuple(raw.get(name, name) for name in layer.outputs)))
            for name, unrounded in raw.items():
                self.narrow[name] = self._twin(name)
                self._convert(unrounded, self.narrow[name], self.dtype, f"{name} to {self.dtype.label}")
            return
        self._add(replace(layer, inputs=inputs))
        for name in layer.outputs:
            if self.network.tensors[name].dtype is _WIDE:
                self.narrow[name] = self._twin(name)
                self._convert(name, self.narrow[name], self.dtype, f"{name} to {self.dtype.label}")

    def _narrow_operands(self, layer: Layer) -> set[int]:
        """The inputs that a product of 8-bit numbers adds (a residual sum) and that are narrow already: it reads them so."""
        op, constants = layer.op, self.network.constants
        if not isinstance(op, Convolution | Deconvolution | MatrixMultiply):
            return set()
        return {index for index, name in enumerate(layer.inputs) if index >= op.arity and name in self.narrow and name not in constants}

    def _is_statistic(self, layer: Layer) -> bool:
        """Whether the layer's only real inputs are statistics (and constants)."""
        if not isinstance(layer.op, Pointwise | Shuffle | Reduce):
            return False
        constants = self.network.constants
        reals = [n for n in layer.inputs if self.network.tensors[n].dtype is _WIDE and n not in constants]
        return bool(reals) and all(name in self.statistics for name in reals)

    def _narrow(self, layer: Layer, wide: Collection[int] = ()) -> None:
        """The layer in the narrow type, but for its inputs ``wide``."""
        narrower = {self.network.tensors[name].dtype for name in layer.inputs[:1]} - {self.dtype, _WIDE}
        if isinstance(layer.op, Attention) and narrower and self.network.tensors[layer.outputs[0]].dtype is _WIDE:
            self._keep(layer)
            return
        old = [self.network.tensors[name].dtype for name in layer.inputs]
        # Expressions read statistics as they are; products and data movements want one type.
        free = (
            0
            if isinstance(layer.op, Pointwise)
            else getattr(layer.op, "arity", 0)
            if hasattr(layer.op, "epilogue")
            else 99
        )
        inputs = tuple(
            self._wide(name) if index in wide else name if index >= free and name in self.statistics else self._half(name)
            for index, name in enumerate(layer.inputs)
        )
        new = [self.tensors[name].dtype for name in inputs]
        stored = self.types.of_outputs(layer)
        op = self._narrow_op(layer, old, new, stored)
        outputs = []
        for name, kind in zip(layer.outputs, op.infer([self.tensors[name] for name in inputs]), strict=True):
            if stored is _WIDE and kind.dtype is _WIDE:
                outputs.append(name)  # narrow readers round it themselves
            elif kind.dtype is _WIDE and isinstance(op, Reduce) and op.kind in _SUMS:
                self.statistics.add(name)
                outputs.append(name)
            elif self.network.tensors[name].dtype is _WIDE:
                # A network output keeps its name for the float32 version that follows at the end.
                self.narrow[name] = self._twin(name) if name in self.network.outputs else name
                outputs.append(self.narrow[name])
            else:
                outputs.append(name)
        self._add(Layer(layer.name, op, inputs, tuple(outputs), layer.origins, layer.fusions))

    def _add(self, layer: Layer) -> None:
        types = layer.op.infer([self.tensors[name] for name in layer.inputs])
        self.tensors.update(zip(layer.outputs, types, strict=True))
        self.layers.append(layer)

    def _convert(self, source: str, target: str, dtype: DataType, name: str) -> None:
        value: Expression = Operand(0)
        if dtype is DataType.HALF and source not in self.statistics:
            # Masks such as -1e9 must stay finite: zero times infinity is no number. What is infinite stays so.
            finite = apply("clip", value, Literal(-self.largest, _WIDE), Literal(self.largest, _WIDE))
            infinite = apply("isinf", value, Literal(1.0, _WIDE), Literal(1.0, _WIDE))
            value = apply("where", infinite, value, finite)
        self._add(Layer(name, Pointwise(Convert(dtype, value)), (source,), (target,), fusions=("precision",)))

    # --- tensors -----------------------------------------------------------------------------------------------------

    def _half(self, name: str) -> str:
        """The narrow version of ``name`` (itself when it is no float32)."""
        if self.network.tensors[name].dtype is not _WIDE:
            return self._wide(name)
        if name in self.narrow:
            return self.narrow[name]
        if name in self.network.constants:
            self.narrow[name] = self._twin(name)
            self._constant(self.narrow[name], self._rounded(name, self.network.constants[name]))
            return self.narrow[name]
        self.narrow[name] = self._twin(name)  # a network input, or a statistic that a product reads
        self._convert(name, self.narrow[name], self.dtype, f"{name} to {self.dtype.label}")
        return self.narrow[name]

    def _wide(self, name: str) -> str:
        """``name`` in the model's own type."""
        if name in self.network.constants:
            self._constant(name, self.network.constants[name])
            return name
        if self.network.tensors[name].dtype is not _WIDE or self.narrow.get(name) != name:
            if name not in self.tensors:  # a network output: its float32 version is needed early
                self._convert(self.narrow[name], name, _WIDE, f"{name} to FP32")
            return name
        twin = f"{name}.float32"
        if twin not in self.tensors:
            self._convert(name, twin, _WIDE, f"{name} to FP32")
        return twin

    def _twin(self, name: str) -> str:
        return f"{name}.{self.dtype.value}"

    def _constant(self, name: str, value: np.ndarray) -> None:
        if name not in self.tensors:
            self.constants[name] = value
            self.tensors[name] = TensorType(DataType(value.dtype.name), value.shape)

    def _rounded(self, name: str, value: np.ndarray) -> np.ndarray:
        finite = np.abs(value[np.isfinite(value)])
        if finite.size and finite.max() > self.largest:
            self.clamped[name] = float(finite.max())
        clipped = np.clip(value, -self.largest, self.largest)
        return np.where(np.isinf(value), value, clipped).astype(self.dtype.numpy)

    # --- operations --------------------------------------------------------------------------------------------------

    def _narrow_op(self, layer: Layer, old: Sequence[DataType], new: Sequence[DataType], stored: DataType | None) -> Op:
        """The operation of ``layer`` on its narrow inputs; ``stored`` is the type that was asked for its results, if any was."""
        op = layer.op
        assert is_dataclass(op)
        changes: dict[str, object] = {}
        for item in fields(op):
            value = getattr(op, item.name)
            if value is _WIDE:
                changes[item.name] = self.dtype
        if isinstance(op, Pointwise):
            changes["expression"] = self._result(op.expression, old, new, stored)
            return replace(op, **changes)
        if hasattr(op, "epilogue"):
            before = after = None
            if hasattr(op, "prologue"):
                changes["prologue"] = self._changed(op.prologue, old[:1], new[:1])
                before, after = type_of(op.prologue, old[:1]), type_of(changes["prologue"], new[:1])
            before, after = before or old[0], after or new[0]
            types = [before, *old[op.arity :]], [after, *new[op.arity :]]
            changes["epilogue"] = self._result(op.epilogue, *types, stored)
            if isinstance(op, Reduce) and op.kind in _SUMS and type_of(op.epilogue, types[0]) is _WIDE and stored is not self.dtype:
                changes["epilogue"] = Convert(_WIDE, self._changed(op.epilogue, *types))
        return replace(op, **changes) if changes else op

    def _result(self, expression: Expression, old: Sequence[DataType], new: Sequence[DataType], stored: DataType | None) -> Expression:
        """The expression of a whole layer, whose result is narrow even where statistics come first in it, unless it is ``stored`` wide."""
        changed = self._changed(expression, old, new)
        if stored is _WIDE and type_of(expression, old) is _WIDE:
            return changed if type_of(changed, new) is _WIDE else Convert(_WIDE, changed)
        return Convert(self.dtype, changed) if type_of(changed, new) is _WIDE else changed

    def _changed(self, expression: Expression, old: Sequence[DataType], new: Sequence[DataType]) -> Expression:
        """``expression`` of operands that became narrow. One that quantises or dequantises stays as it is, for a rounded scale is another scale."""
        if not _converts_integers(expression, old):
            return self._expression(expression, old, new)
        narrowed = (index for index in operands(expression) if old[index] is _WIDE and new[index] is not _WIDE)
        return substitute(expression, {index: Convert(_WIDE, Operand(index)) for index in narrowed})

    def _expression(self, expression: Expression, old: Sequence[DataType], new: Sequence[DataType]) -> Expression:
        if isinstance(expression, Literal) and expression.dtype is _WIDE:
            value = expression.value
            if np.isfinite(value) and abs(value) > self.largest:
                value = float(np.copysign(self.largest, value))
            return Literal(value, self.dtype)
        if isinstance(expression, Convert):
            inner = self._expression(expression.argument, old, new)
            target = self.dtype if expression.dtype is _WIDE else expression.dtype
            return inner if type_of(inner, new) is target else Convert(target, inner)
        if isinstance(expression, Apply):
            return Apply(
                expression.function, tuple(self._expression(child, old, new) for child in expression.arguments)
            )
        return expression


def _is_delicate(network: Network, layer: Layer) -> bool:
    """Whether float32 must stay: exact integers beyond 2048 (256) do not exist in float16 (bfloat16), nor do exact coordinates, and
    scales of quantised numbers are applied in float32."""
    op = layer.op
    if isinstance(op, Convolution | Deconvolution | MatrixMultiply):
        return network.tensors[layer.inputs[0]].dtype.itemsize == 1
    if isinstance(op, Range | Cumulative | Custom | Determinant | Inverse | Random | Reinterpret):
        return True
    if isinstance(op, ControlFlow | NonZero | NonMaxSuppression | Unique):
        return True
    if not isinstance(op, Pointwise):
        return False
    types = [network.tensors[name].dtype for name in layer.inputs]
    return _converts_integers(op.expression, types)


def _converts_integers(expression: Expression, types: Sequence[DataType]) -> bool:
    if isinstance(expression, Convert):
        ends = (type_of(expression.argument, types), expression.dtype)
        if any(kind.is_float for kind in ends) and any(kind.is_integer or kind in _QUANTIZED for kind in ends):
            return True
        return _converts_integers(expression.argument, types)
    if isinstance(expression, Apply):
        return any(_converts_integers(child, types) for child in expression.arguments)
    return False
