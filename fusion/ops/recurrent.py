"""Recurrent layers: what remains of RNN, GRU and LSTM when the products with their inputs are matrix products of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import Expression, evaluate
from fusion.network import Op, ShapeError, TensorType, may_be_equal
from fusion.ops.epilogue import widen

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class Recurrence(Op):
    """The steps of an RNN, GRU or LSTM over time, ``D = len(reverse)`` of them side by side.

    Inputs: x, the gates' share of the layer's input with all biases that may be added there, ``[T, B, D * G * H]`` (T and B swapped
    with ``input_order`` ``bt``); r, the recurrent weights ``[D, G * H, H]``; then those that are switched on, in this order:
    ``recurrent_bias`` ``[D, H]`` (of a GRU with ``reset_after``), ``initial_h`` and ``initial_c`` (in ``state_order``), ``peephole``
    ``[D, 3 * H]`` (i, o, f), ``lengths`` ``[B]`` (integers). G gates stand in ONNX's order: ``z r h`` of a GRU, ``i o f c`` of an LSTM.

    Outputs: every state h, 4-D in ``output_order`` (zero behind the end of a sequence); the last h and, of an LSTM, the last c, both in
    ``state_order``. A direction with ``reverse`` runs from the end of each sequence to its start.

    Computed in float32 (float64 for doubles); h is rounded to the tensors' type after every step, c at the end only.
    ``activations`` has the functions f (g, h) for each direction, expressions over a float32 (float64) operand 0. ``clip`` bounds what
    goes into them. ``coupled``: an LSTM's forget gate is 1 minus its input gate. ``reset_after``: a GRU's reset gate multiplies the
    product with r, not the state before it.
    """

    cell: str
    hidden: int
    reverse: tuple[bool, ...]
    activations: tuple[tuple[Expression, ...], ...]
    clip: float = 0.0
    coupled: bool = False
    reset_after: bool = False
    recurrent_bias: bool = False
    initial_h: bool = False
    initial_c: bool = False
    peephole: bool = False
    lengths: bool = False
    input_order: str = "tb"
    output_order: str = "tdbh"
    state_order: str = "dbh"

    layer_type: ClassVar[str] = "Recurrence"

    @property
    def gates(self) -> int:
        """How many gates the cell has."""
        return GATES[self.cell]

    @property
    def arity(self) -> int:
        return 2 + sum((self.recurrent_bias, self.initial_h, self.initial_c, self.peephole, self.lengths))

    def place(self, name: str) -> int | None:
        """The number of an optional input; None when it is switched off."""
        number = 2
        for other in ("recurrent_bias", "initial_h", "initial_c", "peephole", "lengths"):
            if other == name:
                return number if getattr(self, name) else None
            number += getattr(self, other)
        raise KeyError(name)

    def infer(self, inputs: Sequence[TensorType]) -> tuple[TensorType, ...]:
        x, r = inputs[:2]
        directions, gates, hidden = len(self.reverse), self.gates, self.hidden
        if len(x.shape) != 3 or x.shape[2] != directions * gates * hidden:
            raise ShapeError(f"gates of shape {x.shape}; the last of 3 dimensions must be {directions * gates * hidden}")
        if tuple(r.shape) != (directions, gates * hidden, hidden):
            raise ShapeError(f"recurrent weights of shape {r.shape}, not {(directions, gates * hidden, hidden)}")
        sizes = {**dict(zip(self.input_order, x.shape, strict=False)), "d": directions, "h": hidden}
        state = tuple(sizes[axis] for axis in self.state_order)
        for name, wanted in (("recurrent_bias", (directions, hidden)), ("initial_h", state), ("initial_c", state),
                             ("peephole", (directions, 3 * hidden)), ("lengths", (sizes["b"],))):  # fmt: skip
            number = self.place(name)
            if number is None:
                continue
            found = inputs[number].shape
            if not may_be_equal(found, wanted):
                raise ShapeError(f"{name} of shape {found}, not {wanted}")
        every = TensorType(x.dtype, tuple(sizes[axis] for axis in self.output_order))
        return (every, *[TensorType(x.dtype, state)] * (2 if self.cell == "lstm" else 1))

    def evaluate(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        def given(name: str, default: np.ndarray) -> np.ndarray:
            number = self.place(name)
            return default if number is None else widen(inputs[number])

        dtype = inputs[0].dtype
        x = widen(inputs[0]) if self.input_order == "tb" else widen(inputs[0]).swapaxes(0, 1)
        r, wide = widen(inputs[1]), x.dtype
        (time, batch), directions, hidden = x.shape[:2], len(self.reverse), self.hidden
        x = x.reshape(time, batch, directions, self.gates, hidden)
        in_state = [self.state_order.index(axis) for axis in "dbh"]
        zero = np.zeros((directions, batch, hidden), wide)
        h = given("initial_h", zero.transpose(np.argsort(in_state))).transpose(in_state).copy()
        c = given("initial_c", zero.transpose(np.argsort(in_state))).transpose(in_state).copy()
        bias = given("recurrent_bias", np.zeros((directions, hidden), wide))
        peephole = given("peephole", np.zeros((directions, 3 * hidden), wide)).reshape(directions, 3, hidden)
        lengths = self.lengths_of(inputs, time, batch)
        every = np.zeros((time, directions, batch, hidden), wide)
        rows = np.arange(batch)
        with np.errstate(over="ignore"):
            for direction, backwards in enumerate(self.reverse):
                weights = r[direction].T.copy()
                for step in range(time):
                    at = np.where(step < lengths, lengths - 1 - step, step) if backwards else np.full(batch, step)
                    after_h, after_c = self._step(
                        direction, x[at, rows, direction], weights, h[direction], c[direction], bias[direction], peephole[direction]
                    )
                    after_h = after_h.astype(dtype).astype(wide)
                    alive = (step < lengths)[:, None]
                    h[direction] = np.where(alive, after_h, h[direction])
                    c[direction] = np.where(alive, after_c, c[direction])
                    every[at, direction, rows] = np.where(alive, after_h, 0)
        out_state = ["dbh".index(axis) for axis in self.state_order]
        states = [np.ascontiguousarray(state.transpose(out_state)).astype(dtype, copy=False) for state in (h, c)]
        every = every.transpose(["tdbh".index(axis) for axis in self.output_order])
        return (np.ascontiguousarray(every).astype(dtype, copy=False), *states[: 2 if self.cell == "lstm" else 1])

    def lengths_of(self, inputs: Sequence[np.ndarray], time: int, batch: int) -> np.ndarray:
        """The length of every sequence, at most ``time``."""
        number = self.place("lengths")
        if number is None:
            return np.full(batch, time)
        return np.clip(inputs[number].astype(np.int64), 0, time)

    def _step(
        self, direction: int, x: np.ndarray, weights: np.ndarray, h: np.ndarray, c: np.ndarray, bias: np.ndarray, peephole: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(h, c) after one step; x is ``[B, G, H]``, h and c ``[B, H]``."""

        def act(number: int, value: np.ndarray) -> np.ndarray:
            bounded = np.clip(value, -self.clip, self.clip) if self.clip else value
            return evaluate(self.activations[direction][number], [bounded])

        hidden = self.hidden
        if self.cell == "gru" and not self.reset_after:
            product = np.matmul(h, weights[:, : 2 * hidden])
            z, reset = act(0, x[:, 0] + product[:, :hidden]), act(0, x[:, 1] + product[:, hidden:])
            candidate = act(1, x[:, 2] + np.matmul(reset * h, weights[:, 2 * hidden :]))
            return (1 - z) * candidate + z * h, c
        product = np.matmul(h, weights).reshape(x.shape)
        if self.cell == "rnn":
            return act(0, x[:, 0] + product[:, 0]), c
        if self.cell == "gru":
            z, reset = act(0, x[:, 0] + product[:, 0]), act(0, x[:, 1] + product[:, 1])
            candidate = act(1, x[:, 2] + reset * (product[:, 2] + bias))
            return (1 - z) * candidate + z * h, c
        total = x + product
        enter = act(0, total[:, 0] + peephole[0] * c)
        forget = 1 - enter if self.coupled else act(0, total[:, 2] + peephole[2] * c)
        c = forget * c + enter * act(1, total[:, 3])
        return act(0, total[:, 1] + peephole[1] * c) * act(2, c), c


def compute_operand(dtype: DataType) -> DataType:
    """The type of the operand of activations in a layer of ``dtype`` tensors."""
    return DataType.DOUBLE if dtype is DataType.DOUBLE else DataType.FLOAT
