"""Does an engine compute what a reference computes? Values of every output and of every layer, and how far they are apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fusion.dtypes import DataType, data_type
from runtime.context import ExecutionContext
from runtime.engine import Engine

Arrays = Mapping[str, np.ndarray]

# By the type that values were computed in: the largest relative error that rounding explains in a deep network.
TOLERANCES = {
    DataType.DOUBLE: 1e-6, DataType.FLOAT: 1e-4, DataType.HALF: 1e-2, DataType.BF16: 6e-2, DataType.FP8: 2e-1, DataType.FP8_E5M2: 3e-1,
}  # fmt: skip
TF32_TOLERANCE = 5e-3


@dataclass(frozen=True)
class Tolerance:
    """An element agrees when ``|found - wanted| <= absolute + relative * |wanted|``; ``absolute`` counts in units of the root mean square
    of what is wanted unless ``exact_absolute``."""

    relative: float
    absolute: float
    exact_absolute: bool = False


@dataclass(frozen=True)
class Difference:
    """One tensor compared.

    Attributes:
        tensor, layer, dtype, shape: what was compared; ``layer`` wrote it.
        max_error, mean_error: of the absolute difference, over elements that are finite on both sides.
        relative: the norm of the difference over the norm of what was wanted.
        wrong: elements outside of the tolerance (all of them when the shapes differ).
        nan, inf: elements of the engine that are not finite; ``nan_wanted``, ``inf_wanted`` those of the reference.
        problem: what keeps them from being compared, or nothing.
    """

    tensor: str
    layer: str
    dtype: str
    shape: tuple[int, ...]
    max_error: float = 0.0
    mean_error: float = 0.0
    relative: float = 0.0
    wrong: int = 0
    nan: int = 0
    inf: int = 0
    nan_wanted: int = 0
    inf_wanted: int = 0
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether every element agrees."""
        return not self.wrong and not self.problem


def choose_reference(name: str) -> str:
    """``auto`` is ONNX Runtime where it is installed, else our own reference.

    Raises:
        ValueError: ONNX Runtime was asked for and is missing.
    """
    installed = find_spec("onnxruntime") is not None
    if name == "onnxruntime" and not installed:
        raise ValueError("--against=onnxruntime: it is not installed (pip install onnxruntime); --against=reference needs nothing")
    return ("onnxruntime" if installed else "reference") if name == "auto" else name


def reference_values(model: Path, inputs: Arrays, against: str, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The model's outputs, and those of the tensors ``wanted`` that it has; ``inputs`` of other data types than the model's are converted.

    Raises:
        fusion.importer.ModelError: the model cannot be read.
        ValueError: ONNX Runtime cannot run it.
    """
    if against == "onnxruntime":
        return _onnxruntime(model, inputs, wanted)
    from fusion.importer import import_onnx
    from fusion.reference import run

    network = import_onnx(model)
    values = run(network, {name: array.astype(network.tensors[name].dtype.numpy) for name, array in inputs.items()}, keep=True)
    return {**{name: values[name] for name in network.outputs}, **{name: values[name] for name in wanted if name in values}}


def _onnxruntime(model: Path, inputs: Arrays, wanted: Collection[str]) -> dict[str, np.ndarray]:
    import onnx
    import onnxruntime

    proto = onnx.load(str(model))
    known = {output.name for output in proto.graph.output}
    computed = {name for node in proto.graph.node for name in node.output if name} - known
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name in computed)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        types = {one.name: onnx.helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type) for one in proto.graph.input}
        given = {one.name: inputs[one.name].astype(types[one.name]) for one in session.get_inputs()}
        return dict(zip(names, session.run(names, given), strict=True))
    # ONNX Runtime raises classes of its own for whatever it dislikes; the user needs its text and the way out.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"ONNX Runtime cannot run {model}: {text}; --against=reference does without it") from error


def engine_values(context: ExecutionContext, inputs: Arrays) -> dict[str, np.ndarray]:
    """Every tensor that the engine computes, from one inference."""
    seen: dict[str, np.ndarray] = {}
    network = context.engine.network
    context.set_debug_listener(lambda name, array: seen.update({name: array}))
    for layer in network.layers:
        for name in layer.outputs:
            context.set_tensor_debug_state(name, True)
    outputs = context.execute(inputs)
    context.set_debug_listener(None)
    return {**seen, **outputs}


def compare(engine: Engine, found: Arrays, wanted: Arrays, rtol: float | None, atol: float | None) -> list[Difference]:
    """Every tensor that both have, in the order in which layers write them. Without ``rtol`` and ``atol`` the data type decides."""
    writer = {name: layer.name for layer in engine.network.layers for name in layer.outputs}
    order = [name for name in (*writer, *engine.network.outputs) if name in found and name in wanted]
    narrowest = _narrowest(engine)
    return [
        difference(name, writer.get(name, ""), found[name], wanted[name], _tolerance(engine, narrowest, rtol, atol))
        for name in dict.fromkeys(order)
    ]


def _narrowest(engine: Engine) -> DataType:
    """The floating-point type with the largest rounding error that the engine computes in."""
    types = {engine.network.tensors[name].dtype for layer in engine.network.layers for name in (*layer.inputs, *layer.outputs)}
    return max(types & set(TOLERANCES), key=TOLERANCES.__getitem__, default=DataType.FLOAT)


def _tolerance(engine: Engine, narrowest: DataType, rtol: float | None, atol: float | None) -> Tolerance:
    usual = TOLERANCES[narrowest]
    if engine.tf32 and engine.device.kind == "cuda":
        usual = max(usual, TF32_TOLERANCE)
    if rtol is None and atol is None:
        return Tolerance(usual, usual)
    return Tolerance(usual if rtol is None else rtol, 0.0 if atol is None else atol, True)


def difference(name: str, layer: str, found: np.ndarray, wanted: np.ndarray, tolerance: Tolerance) -> Difference:
    """``found`` against ``wanted``; integers and booleans must be equal. A tensor that the engine keeps channels-last is turned back."""
    about = (name, layer, data_type(found.dtype).label, found.shape)
    candidates = [found] if found.shape == wanted.shape else []
    if found.ndim > 2 and np.moveaxis(found, -1, 1).shape == wanted.shape:
        candidates.append(np.moveaxis(found, -1, 1))
    if not candidates:
        shapes = ("x".join(map(str, array.shape)) or "scalar" for array in (found, wanted))
        return Difference(*about, wrong=found.size, problem="shape {}, the reference has {}".format(*shapes))
    return min((_difference(about, one, wanted, tolerance) for one in candidates), key=lambda one: (one.wrong, one.relative))


def _difference(
    about: tuple[str, str, str, tuple[int, ...]], found: np.ndarray, wanted: np.ndarray, tolerance: Tolerance
) -> Difference:
    if found.dtype.kind in "iub" and wanted.dtype.kind in "iub":
        unequal = found != wanted
        errors = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
        count = int(unequal.sum())
        return Difference(*about, float(errors.max(initial=0)), float(errors.mean()) if errors.size else 0.0, float(count > 0), count)
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    with np.errstate(invalid="ignore"):
        errors = np.where(finite, np.abs(a - b), 0.0)
    norm = float(np.linalg.norm(b[finite]))
    scale = 1.0 if tolerance.exact_absolute else norm / max(1, int(finite.sum())) ** 0.5
    limit = tolerance.absolute * scale + tolerance.relative * np.abs(np.where(finite, b, 0.0))
    same = (np.isnan(a) & np.isnan(b)) | (a == b)  # equal infinities, NaN for NaN
    wrong = np.where(finite, errors > limit, ~same)
    return Difference(
        *about,
        max_error=float(errors.max(initial=0)),
        mean_error=float(errors.sum() / max(1, int(finite.sum()))),
        relative=float(np.linalg.norm(errors)) / norm if norm else float(errors.max(initial=0) > 0),
        wrong=int(wrong.sum()),
        nan=int(np.isnan(a).sum()),
        inf=int(np.isinf(a).sum()),
        nan_wanted=int(np.isnan(b).sum()),
        inf_wanted=int(np.isinf(b).sum()),
    )
