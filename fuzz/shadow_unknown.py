"""The bound of an op that no other file knows: the op is tried in float64 on operands moved a little.

Exact operands give exact integers. Floats get the greatest distance that perturbed operands cause, times a generous factor,
since a few random tries see a part of the worst case only. Where an integer would be made from inexact operands, or the op
does not take float64, nothing is known of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .shadow_values import FORMATS, INFINITE, Array, Traced, all_tainted, are_exact, settled, within

TRIES = 4
GENEROUS = 64.0


def perturbed(evaluate: Callable[[list[Array]], Any], operands: Sequence[Traced], value: Array) -> Traced:
    """The value with its bound. `evaluate` is the op's meaning on arrays."""
    if value.dtype not in FORMATS:
        return Traced(value) if are_exact(operands) else all_tainted(value)
    form = FORMATS[value.dtype]
    rng = np.random.default_rng(0)
    wide = [x.wide() if x.is_float else x.value for x in operands]
    tainted = [x for x in operands if x.bound is not None and (not x.is_float or np.isinf(x.bound).any())]
    if tainted:
        return all_tainted(value)
    with np.errstate(all="ignore"):
        try:
            middle = np.asarray(evaluate(wide), dtype=np.float64)
            distance = np.abs(middle - value.astype(np.float64))
            for _ in range(TRIES):
                moved = [_moved(x, w, form.epsilon, rng) for x, w in zip(operands, wide)]
                distance = np.maximum(distance, np.abs(np.asarray(evaluate(moved), dtype=np.float64) - middle))
        except Exception:  # it takes other dtypes only, or refuses the perturbed operands
            return all_tainted(value)
        bound = GENEROUS * (distance + form.epsilon * np.abs(middle) + form.smallest)
        same = ~np.isfinite(value) & ((middle == value) | np.isnan(middle) & np.isnan(value)) & are_exact(operands)
        bound = np.where(same, 0.0, np.where(np.isfinite(value), bound, INFINITE))
    return Traced(value, settled(within(value, bound, form)), True)


def _moved(x: Traced, wide: Array, epsilon: float, rng: np.random.Generator) -> Array:
    if not x.is_float:
        return wide
    signs = rng.choice([-1.0, 1.0], size=wide.shape)
    return np.asarray(wide * (1 + epsilon * signs) + x.bounds * signs)
