"""Recurrences on the CPU."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tactics.recurrences import recurrence


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(["rnn", "gru", "lstm"]), st.sampled_from([(False,), (True,), (False, True)]), st.integers(1, 5), st.integers(1, 5),
    st.integers(1, 9), st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]), st.booleans(), st.booleans(),
    st.booleans(), st.sampled_from([0.0, 0.4]), st.booleans(),
)  # fmt: skip
def test_steps(check, cell, reverse, time, batch, hidden, dtype, initial, extra, first, clip, known) -> None:  # noqa: ANN001
    op, inputs = recurrence(cell, reverse, time, batch, hidden, dtype, initial=initial, reset_after=extra, batch_first=first, clip=clip)
    check(op, inputs, {1} if known else ())


def test_what_the_reference_serves(check) -> None:  # noqa: ANN001
    op, inputs = recurrence("lstm", (False, True), 4, 3, 5, np.float32, peephole=True, lengths=True, coupled=True)
    check(op, inputs, least=0)
