"""RNN, GRU, LSTM: one matrix product for the inputs of all steps and directions, then the recurrence."""

from __future__ import annotations

from collections.abc import Iterator

from fusion.dtypes import DataType
from fusion.expression import Expression, compute_type
from fusion.importer.builder import X0, X1, Builder, call, literal
from fusion.importer.errors import Unsupported
from fusion.importer.node import Node
from fusion.importer.registry import operator
from fusion.importer.values import Value
from fusion.ops import Expand, Fill, MatrixMultiply, Padding, Recurrence, Shuffle, Slice, Tile
from fusion.ops.recurrent import GATES

REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
ACTIVATIONS = {"rnn": ("Tanh",), "gru": ("Sigmoid", "Tanh"), "lstm": ("Sigmoid", "Tanh", "Tanh")}
# Default alpha and beta of the functions that have them, as their operators do.
DEFAULTS = {
    "leakyrelu": (0.01, 0.0), "thresholdedrelu": (1.0, 0.0), "elu": (1.0, 0.0), "hardsigmoid": (0.2, 0.5),
    "affine": (1.0, 0.0), "scaledtanh": (1.0, 1.0),
}  # fmt: skip
USED = {"affine": 2, "leakyrelu": 1, "thresholdedrelu": 1, "scaledtanh": 2, "hardsigmoid": 2, "elu": 1}
PLAIN = {"tanh": "tanh", "sigmoid": "sigmoid", "relu": "relu", "softsign": "softsign", "softplus": "softplus"}
NAMES = {"leakyrelu": "leaky_relu", "thresholdedrelu": "thresholded_relu", "elu": "elu", "hardsigmoid": "hard_sigmoid"}


@operator("RNN", "GRU", "LSTM", since=7)
def recurrent(b: Builder, node: Node) -> tuple[Value, ...]:
    return build(b, node, node.input(1), node.input(2))


def build(b: Builder, node: Node, w: Value, r: Value) -> tuple[Value, ...]:
    """The layers of a recurrent node with these weights: w ``[D, G * H, I]``, r ``[D, G * H, H]``."""
    cell = node.op.lower().removeprefix("dynamicquantize")
    x, bias, lengths = node.input(0), node.optional(3), node.optional(4)
    reverse = REVERSE.get(node.attr("direction", "forward"))
    hidden, gates = r.shape[-1], GATES[cell]
    if reverse is None:
        raise Unsupported(f"direction {node.attr('direction')!r}; there are {', '.join(REVERSE)}")
    if not isinstance(hidden, int) or node.attr("hidden_size", hidden) != hidden:
        raise Unsupported(f"hidden_size {node.attr('hidden_size')} and recurrent weights of shape {r.shape}")
    batch_first = bool(node.attr("layout", 0))
    directions, width = len(reverse), gates * hidden
    reset_after = cell == "gru" and bool(node.attr("linear_before_reset", 0))
    expression: Expression = X0
    extras: list[Value] = []
    optional: list[Value] = []
    if bias is not None:
        from_input = b.layer(Slice((0, 0), (directions, width), (1, 1)), bias, suffix="w_bias")
        from_state = b.layer(Slice((0, width), (directions, width), (1, 1)), bias, suffix="r_bias")
        if reset_after:  # the reset gate multiplies this one, so it cannot join the others
            optional.append(b.layer(Slice((0, 2 * hidden), (directions, hidden), (1, 1)), from_state, suffix="recurrent_bias"))
            from_state = _without_candidate(b, from_state, directions, hidden)
        total = b.pointwise(call("add", X0, X1), from_input, from_state, suffix="bias")
        expression, kept = b.epilogue(call("add", X0, X1), b.reshape(total, (directions * width,), "bias_row"))
        extras.extend(kept)
    weights = b.reshape(w, (directions * width, w.shape[-1]), "weights")
    projected = b.layer(MatrixMultiply(transpose_b=True, epilogue=expression), x, weights, *extras, suffix="input")
    present = {}
    for name, number in (("initial_h", 5), ("initial_c", 6), ("peephole", 7)):
        value = node.optional(number) if cell == "lstm" or number == 5 else None
        value = None if value is not None and is_zero(value) else value
        present[name] = value is not None
        if value is not None:
            optional.append(value)
    if lengths is not None:
        optional.append(lengths)
    op = Recurrence(
        cell, hidden, reverse, _activations(node, cell, directions, x.dtype), node.attr("clip", 0.0),
        bool(node.attr("input_forget", 0)), reset_after, reset_after and bias is not None, **present, lengths=lengths is not None,
        input_order="bt" if batch_first else "tb", output_order="btdh" if batch_first else "tdbh",
        state_order="bdh" if batch_first else "dbh",
    )  # fmt: skip
    return b.layers(op, (projected, r, *optional))


def is_zero(value: Value) -> bool:
    """Whether a tensor is known to be all zeros: a constant, or a fill, however it was moved about."""
    if value.is_constant:
        return not value.array.any()
    if value.step is None:
        return False
    if isinstance(value.step.op, Fill):
        return value.step.op.value == 0
    return isinstance(value.step.op, Expand | Shuffle | Slice | Tile) and is_zero(value.step.inputs[0])


def _without_candidate(b: Builder, bias: Value, directions: int, hidden: int) -> Value:
    """The biases ``[D, 3 * H]`` of a GRU's gates, those of its candidate replaced by zero."""
    kept = b.layer(Slice((0, 0), (directions, 2 * hidden), (1, 1)), bias, suffix="gate_bias")
    return b.layer(Padding((0, 0), (0, hidden)), kept, suffix="gate_bias_padded")


def _activations(node: Node, cell: str, directions: int, dtype: DataType) -> tuple[tuple[Expression, ...], ...]:
    """The functions of each direction. Values of alpha and beta are handed out in order to the functions that take one."""
    wanted = len(ACTIVATIONS[cell])
    names = node.attr("activations", ACTIVATIONS[cell] * directions)
    if len(names) != wanted * directions:
        raise Unsupported(f"{len(names)} activations for {directions} directions of {wanted}")
    alphas, betas = iter(node.attr("activation_alpha", ())), iter(node.attr("activation_beta", ()))
    found = [_activation(name, alphas, betas, compute_type(dtype)) for name in names]
    return tuple(tuple(found[start : start + wanted]) for start in range(0, len(found), wanted))


def _activation(name: str, alphas: Iterator[float], betas: Iterator[float], dtype: DataType) -> Expression:
    key = name.lower()
    if key in PLAIN:
        return call(PLAIN[key], X0)
    if key not in DEFAULTS:
        raise Unsupported(f"activation {name!r}; there are {', '.join((*PLAIN, *DEFAULTS))}")
    default = DEFAULTS[key]
    alpha = literal(next(alphas, default[0]), dtype)
    beta = literal(next(betas, default[1]) if USED[key] == 2 else 0.0, dtype)
    if key == "affine":
        return call("add", call("mul", X0, alpha), beta)
    if key == "scaledtanh":
        return call("mul", call("tanh", call("mul", X0, beta)), alpha)
    return call(NAMES[key], X0, alpha, *([beta] if USED[key] == 2 else []))
