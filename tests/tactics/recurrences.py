"""For tests: recurrences of any kind, with random inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusion.expression import Operand, apply
from fusion.ops import Recurrence
from fusion.ops.recurrent import GATES

FUNCTIONS = {"rnn": ("tanh",), "gru": ("sigmoid", "tanh"), "lstm": ("sigmoid", "tanh", "tanh")}


def recurrence(
    cell: str, reverse: tuple[bool, ...], time: int, batch: int, hidden: int, dtype: Any = np.float32, *, initial: bool = False,
    reset_after: bool = True, batch_first: bool = False, clip: float = 0.0, peephole: bool = False, lengths: bool = False,
    coupled: bool = False, functions: tuple[tuple[str, ...], ...] | None = None, seed: int = 0,
) -> tuple[Recurrence, list[np.ndarray]]:  # fmt: skip
    """An operation and its inputs; what a cell does not have is left out."""
    random, directions = np.random.default_rng(seed), len(reverse)
    reset_after, lstm = reset_after and cell == "gru", cell == "lstm"
    names = functions or (FUNCTIONS[cell],) * directions
    op = Recurrence(
        cell, hidden, reverse, tuple(tuple(apply(name, Operand(0)) for name in one) for one in names), clip, coupled and lstm, reset_after,
        recurrent_bias=reset_after, initial_h=initial, initial_c=initial and lstm, peephole=peephole and lstm, lengths=lengths,
        input_order="bt" if batch_first else "tb", output_order="btdh" if batch_first else "tdbh", state_order="bdh" if batch_first else "dbh",
    )  # fmt: skip

    def numbers(*shape: int, scale: float = 0.5) -> np.ndarray:
        return (scale * random.standard_normal(shape)).astype(dtype)

    gates = GATES[cell] * hidden
    state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    inputs = [numbers(*((batch, time) if batch_first else (time, batch)), directions * gates, scale=1.0),
              numbers(directions, gates, hidden, scale=hidden**-0.5)]  # fmt: skip
    inputs += [numbers(directions, hidden)] if op.recurrent_bias else []
    inputs += [numbers(*state) for flag in (op.initial_h, op.initial_c) if flag]
    inputs += [numbers(directions, 3 * hidden)] if op.peephole else []
    inputs += [random.integers(0, time + 1, batch).astype(np.int32)] if lengths else []
    return op, inputs
