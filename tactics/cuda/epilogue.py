"""Epilogues of CUDA kernels: the generated code that docs/kernels.md describes.

The output is viewed as rows of its last axis. An operand is read at a row of its own, which follows from the output's
row by dropping the axes that it broadcasts along, and at the output's column, or at column 0. So a bias reads row 0, a
residual the same row, and an operand without the leading axes the row modulo its own number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from fusion.dtypes import DataType
from fusion.expression import Expression, Operand, compute_type, operands, substitute, type_of
from fusion.network import TensorType
from fusion.ops.epilogue import IDENTITY
from tactics.cuda.codegen import STORAGE_TYPES, Unsupported, computed_type, device_function, storage_type
from tactics.tactic import Buffer, Refusal, Scalar, Struct, Workload, aligned_inputs


@dataclass(frozen=True)
class EpilogueCode:
    """Generated epilogue: source to put before the kernel, defines, and the operands that it reads.

    ``operands`` and ``sizes`` are the fields of ``EpilogueArgs`` in order (see :func:`epilogue_argument`).
    """

    prelude: str
    defines: tuple[tuple[str, str], ...]
    operands: tuple[Buffer, ...]
    sizes: tuple[Scalar, ...] = ()


NO_EPILOGUE = EpilogueCode("", (), ())


@dataclass(frozen=True)
class _Access:
    """How an operand is read: ``groups`` are runs of the output's leading axes, innermost first, as (size, kept)."""

    groups: tuple[tuple[int, bool], ...]
    columns: bool  # it has the output's last axis

    @property
    def kind(self) -> str:
        """The field's name for it: scalar, column, row, full, periodic or strided."""
        kept = [keep for _, keep in self.groups]
        if not any(kept):
            return "column" if self.columns else "scalar"
        if all(kept):
            return "full" if self.columns else "row"
        return "periodic" if kept == [True, False] else "strided"


def finish_code(workload: Workload, result: DataType | None = None) -> EpilogueCode | Refusal:
    """The epilogue for any data type, as ``finish<V>(v, result, args, m, n, ld)``.

    ``v`` holds the operation's results in ``compute_type`` of ``result`` (by default the data type of input 0), ``result`` the values
    to store in ``compute_type`` of the output's. The identity has no code; kernels then convert themselves.
    """
    op = workload.op
    expression: Expression = getattr(op, "epilogue", IDENTITY)
    dtype = result or workload.inputs[0].dtype
    output = workload.outputs[0]
    if expression == IDENTITY:
        return NO_EPILOGUE
    arity = op.arity
    # Accumulators of FP8 products are float32; the tensors themselves have no pointwise code.
    types = [dtype if dtype in STORAGE_TYPES else compute_type(dtype), *(tensor.dtype for tensor in workload.inputs[arity:])]
    try:
        return _code(workload, expression, types, output, arity)
    except Unsupported as reason:
        return Refusal(str(reason))


def prologue_code(workload: Workload, expression: Expression) -> EpilogueCode | Refusal:
    """``expression`` of input 0, whose shape output 0 has, as ``finish<V>(v, result, args, m, n, ld)`` of V elements that were read at row m (of the last
    axis); inputs 1 and on are its further operands."""
    try:
        return _code(workload, expression, [tensor.dtype for tensor in workload.inputs], workload.outputs[0], 1)
    except Unsupported as reason:
        return Refusal(str(reason))


def epilogue_argument(code: EpilogueCode) -> Struct:
    """The kernel's last parameter, ``EpilogueArgs``: pointers (one null pointer when there is none), then sizes."""
    return Struct((*(code.operands or (Scalar(0, "u64"),)), *code.sizes))


def moved_argument(code: EpilogueCode, by: int) -> Struct:
    """The parameter of code whose inputs are ``by`` places further on in the layer: of a prologue's further operands, the last inputs."""
    return Struct(tuple(replace(one, index=one.index + by) if isinstance(one, Buffer) else one for one in epilogue_argument(code).fields))


def in_namespace(code: EpilogueCode, name: str) -> str:
    """The prelude of ``code`` with all its names in namespace ``name``: for an epilogue in the middle of a kernel. Its defines stay out."""
    lines = code.prelude.splitlines(keepends=True)
    includes = "".join(line for line in lines if line.startswith("#include"))
    body = "".join(line for line in lines if not line.startswith("#include"))
    return f"{includes}namespace {name} {{\n{body}}}\n" if body else ""


def operand_kinds(workload: Workload) -> tuple[str, ...] | Refusal:
    """Per epilogue operand (layer inputs from ``arity`` on): scalar, column, row, full, periodic or strided."""
    kinds = []
    for index in range(workload.op.arity, len(workload.inputs)):
        access = _access(workload, index)
        if isinstance(access, Refusal):
            return access
        kinds.append(access.kind)
    return tuple(kinds)


def adds_rows(workload: Workload) -> bool:
    """Whether the epilogue reads an operand at the output's own place, as a residual."""
    kinds = operand_kinds(workload)
    return not isinstance(kinds, Refusal) and "full" in kinds


def overwritable(workload: Workload, *own: int) -> tuple[int, ...]:
    """Inputs over which output 0 may be written: epilogue operands of its shape, and the ``own`` inputs of the operation, which the kernel
    that says so reads in the same way.

    An operand of the output's shape is read where the output is written: by one thread, which has its value before it stores there, for the
    value goes into what it stores. No other thread needs it: those past an edge, which read the last row or column once more, store
    nothing. So it does not matter that ``__restrict__`` lets the compiler move loads and stores of different places past each other.
    """
    arity = workload.op.arity
    return tuple(number for number in aligned_inputs(workload) if number >= arity or number in own)


# ---------------------------------------------------------------------------------------------------------------------


def _code(
    workload: Workload, expression: Expression, types: Sequence[DataType], output: TensorType, arity: int
) -> EpilogueCode | Refusal:
    used = [index for index in operands(expression) if index > 0]
    numbers = {index: position for position, index in enumerate(used, start=1)}
    dense = substitute(expression, {old: Operand(new) for old, new in numbers.items()})
    dense_types = [types[0], *(types[index] for index in used)]
    accumulator, stored = computed_type(types[0]), computed_type(output.dtype)
    narrow = type_of(dense, dense_types)
    result_cast = "" if compute_type(narrow) is compute_type(output.dtype) else f"fx::cast<{stored}>"

    loads, sizes, size_fields, constants, near, rows = "", [], "", "", "", ""
    for index, position in numbers.items():
        access = _access(workload, arity + index - 1)
        if isinstance(access, Refusal):
            return access
        row, fields, values = _row(access, position)
        pitch = workload.inputs[arity + index - 1].pitch
        sizes += values
        size_fields += fields
        loads += _load(access, position, types[index], row, pitch)
        if not access.groups and workload.is_constant(arity + index - 1):
            size = f"{'ld * ' if access.columns else ''}{types[index].itemsize}"
            constants += f"    pdl_prefetch(args.operand[{position - 1}], {size}, thread, threads);\n"
            first, some = (f"n * {types[index].itemsize}", f"count * {types[index].itemsize}") if access.columns else ("0", size)
            near += f"    pdl_prefetch_near(args.operand[{position - 1}], {first}, {some}, thread);\n"
        if access.kind == "full":
            width, apart = types[index].itemsize, pitch or "ld"
            rows += (
                f"    pdl_prefetch_rows(static_cast<const char*>(args.operand[{position - 1}]) + (m * {apart} + n) * {width}, {apart} * {width}ll, rows, count * {width}, "
                "thread, threads);\n"
            )
    arguments = ", ".join(["v[i]", *(f"o{position}[i]" for position in numbers.values())])
    prelude = (
        '#include "functions.cuh"\n'
        f"struct EpilogueArgs {{\n    const void* operand[{max(1, len(used))}];\n{size_fields}}};\n"
        + f"using FINISHED = {stored};\n"
        + device_function("epilogue_value", dense, dense_types, stored=True)
        + "template <int V>\n__device__ __forceinline__ void finish("
        f"const {accumulator} (&v)[V], {stored} (&result)[V], const EpilogueArgs& args, long long m, int n, int ld) {{\n"
        + ("    const unsigned row = static_cast<unsigned>(m);  // fewer than 2^32 rows\n" if sizes else "")
        + loads
        + "#pragma unroll\n"
        f"    for (int i = 0; i < V; ++i) result[i] = {result_cast}(epilogue_value({arguments}));\n"
        "}\n"
    )
    found: tuple[tuple[str, str], ...] = (("HAS_EPILOGUE", "1"),)
    if constants:
        found = (("EPILOGUE_CONSTANTS", "1"), *found)
        prelude += (
            '#include "pdl.cuh"\n__device__ __forceinline__ void prefetch_constants('
            f"const EpilogueArgs& args, int ld, int thread, int threads) {{\n{constants}}}\n"
            f"__device__ __forceinline__ void prefetch_columns(const EpilogueArgs& args, int n, int count, int thread) {{\n{near}}}\n"
        )
    if rows:
        found = (("EPILOGUE_ROWS", "1"), *found)
        prelude += (
            '#include "pdl.cuh"\n__device__ __forceinline__ void prefetch_tile('
            f"const EpilogueArgs& args, long long m, int rows, int n, int count, int ld, int thread, int threads) {{\n{rows}}}\n"
        )
    buffers = tuple(Buffer("input", arity + index - 1) for index in used)
    return EpilogueCode(prelude, found, buffers, tuple(sizes))


def _access(workload: Workload, index: int) -> _Access | Refusal:
    """How input ``index`` is read, from its shape and the output's."""
    tensor, output = workload.inputs[index], workload.outputs[0]
    out = [int(dim) for dim in output.shape]  # type: ignore[arg-type]
    shape = [int(dim) for dim in tensor.shape]  # type: ignore[arg-type]
    missing = len(out) - len(shape)
    refusal = Refusal(f"epilogue operand of shape {_show(shape)} does not broadcast to the output {_show(out)}")
    if missing < 0 and prod(shape[:-missing]) != 1:
        return refusal
    kept: list[bool | None] = []  # None: the axis has one element, so either reading is right
    for axis, size in enumerate(out):
        own = axis - missing
        varies = own >= 0 and workload.axis_varies(index, own)
        out_varies = workload.axis_varies(len(workload.inputs), axis)
        if own < 0 or (shape[own] == 1 and not varies):
            kept.append(None if size == 1 and not out_varies else False)
        elif shape[own] == size:
            kept.append(True)
        else:
            return refusal
    columns = bool(kept) and kept[-1] is not False
    if kept and kept[-1] is None:
        columns = any(kept)
    groups: list[tuple[int, bool]] = []
    for size, keep in zip(reversed(out[:-1]), reversed(kept[:-1]), strict=True):
        if keep is None:
            continue
        if groups and groups[-1][1] == keep:
            groups[-1] = (groups[-1][0] * size, keep)
        else:
            groups.append((size, keep))
    if not any(keep for _, keep in groups):
        groups = []
    return _Access(tuple(groups), columns)


def _row(access: _Access, position: int) -> tuple[str, str, list[Scalar]]:
    """The C++ expression for the operand's row, the size fields that it needs, and their values."""
    groups = access.groups
    if not groups:
        return "0", "", []
    if len(groups) == 1:
        return "m", "", []
    fields, values, parts = "", [], []
    rest, stride = "row", ""
    for level, (size, keep) in enumerate(groups):
        name, last = f"size{position}_{level}", level == len(groups) - 1
        if keep:
            parts.append(f"{rest}{stride}" if last else f"{rest} % args.{name}{stride}")
            stride += f" * args.{name}"
        if not last:
            fields += f"    unsigned {name};\n"
            values.append(Scalar(size, "u32"))
            rest += f" / args.{name}"
    return " + ".join(parts), fields, values


def _load(access: _Access, position: int, dtype: DataType, row: str, pitch: int) -> str:
    cpp, value = storage_type(dtype), computed_type(dtype)
    name = f"o{position}"
    pointer = f"static_cast<const {cpp}*>(args.operand[{position - 1}])"
    if access.columns:
        offset = "n" if row == "0" else f"static_cast<long long>({row}) * {pitch or 'ld'} + n"
        return f"    {value} {name}[V];\n    fx::load<V>({name}, {pointer} + {offset});\n"
    return (
        f"    {value} {name}[V];\n    {{\n        const {value} one = fx::widen({pointer}[{f'static_cast<long long>({row}) * {pitch}' if pitch else row}]);\n#pragma unroll\n"
        f"        for (int i = 0; i < V; ++i) {name}[i] = one;\n    }}\n"
    )


def _show(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
