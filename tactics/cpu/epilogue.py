"""Epilogues on the CPU: applied block by block to a result that has just been computed and is still in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion.expression import Expression
from fusion.network import TensorType
from fusion.ops.epilogue import IDENTITY
from tactics.cpu.expressions import Program, compile_expression
from tactics.cpu.steps import blocks
from tactics.cpu.threads import Action

# Larger than a pointwise layer's blocks: the result is in the cache already, and threads that make many small calls wait for
# each other at the interpreter's lock.
BLOCK = 1 << 16


@dataclass(frozen=True)
class Epilogue:
    """A compiled epilogue. ``in_place``: results are accumulated in the output itself, else in scratch memory."""

    program: Program | None
    in_place: bool

    @property
    def scratch_bytes(self) -> int:
        """Bytes of temporaries that one thread needs."""
        return self.program.scratch_bytes(BLOCK) if self.program else 0

    def actions(
        self, result: np.ndarray, extras: Sequence[np.ndarray], out: np.ndarray, scratch: np.ndarray
    ) -> list[Action]:
        """What turns ``result`` into ``out``; all arrays have one shape (extras are broadcast views)."""
        if self.program is None:
            return []
        found: list[Action] = []
        for cut in blocks(out.shape, BLOCK, 1 << 30):
            found += self.program.bind([result[cut], *(extra[cut] for extra in extras)], out[cut], scratch)
        return found


def make_epilogue(
    expression: Expression, accumulator: np.dtype, extras: Sequence[TensorType], out: TensorType
) -> Epilogue:
    """The epilogue of a layer whose result is held in type ``accumulator``."""
    in_place = out.dtype.numpy == accumulator
    if in_place and expression == IDENTITY:
        return Epilogue(None, True)
    types = [accumulator, *(extra.dtype.numpy for extra in extras)]
    return Epilogue(compile_expression(expression, types, out.dtype.numpy, in_place), in_place)
