"""x * sigmoid(a * x) -> swish(x, a); SiLU is a = 1, the quick GELU a = 1.702."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fusion.dtypes import DataType
from fusion.expression import FUNCTIONS, Apply, Expression, Literal
from fusion.rules._recognise import SAMPLES, Idiom, idiom_rule


def _fit(values: Callable) -> tuple[np.ndarray, Callable[[Expression, DataType], Expression]] | None:
    at_one = float(values(np.ones(1))[0])
    if not 0 < at_one < 1:
        return None
    a = float(np.log(at_one / (1 - at_one)))  # the inverse of the sigmoid
    rounded = round(a, 6)
    a = rounded if abs(a - rounded) < 1e-7 else a
    reference = FUNCTIONS["swish"].numpy(SAMPLES, np.float64(a))
    return reference, lambda variable, dtype: Apply("swish", (variable, Literal(a, dtype)))


RULE = idiom_rule("swish", __doc__.splitlines()[0], Idiom((frozenset({"sigmoid"}), frozenset({"mul"})), _fit))
