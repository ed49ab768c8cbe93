"""Bounds of products with weights of a few bits (`weight_only_dot`).

A group's sum may be taken of its codes, less its zero times the sum of its activations. So terms count by the magnitudes of
codes and zeros, which may cancel. Activations are divided by powers of two on the way, where the smallest ones lose digits.
Nothing is said where an operand is not finite, where words, scales or zero points are not exact, where a weight may overflow, which
is never made where codes are summed up, or where a sum of codes overflows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir.graph import Binding
from ..ir.ops.weight_only import WORD, WeightOnlyDot, codes_of_words
from .shadow_values import INFINITE, Array, Traced, accumulator, all_tainted, are_exact, summed

LARGEST_SHIFT = 2.0 ** (WORD // 2)  # of a code within half a word


def trace_weight_only(op: WeightOnlyDot, operands: Sequence[Traced], value: Array, binding: Binding, strict: bool) -> Traced:
    """The product's value with its bound."""
    x, words, *others = operands
    if not are_exact((words, *others)) or not all(np.isfinite(v.wide()).all() for v in (x, *others)):
        return all_tainted(value)
    depth, inner = x.value.shape[-1], accumulator(value.dtype)
    codes = codes_of_words(words.value, op.bits).astype(np.float64)
    scales, *points = (np.repeat(np.abs(v.wide()), op.group, axis=1) for v in others)
    sums = _dense(codes + abs(op.zero) + (points[0] if points else 0.0), depth, op.columns)
    weights = _dense((codes + abs(op.zero) + (points[0] if points else 0.0)) * scales, depth, op.columns)
    if weights.max(initial=0.0) > inner.largest:
        return all_tainted(value)
    most = (np.abs(x.wide()) + x.bounds).reshape(-1, depth)
    most = np.where(np.isnan(most), INFINITE, most)
    with np.errstate(all="ignore"):
        terms, codes_met = most @ weights, most @ sums
        lost = inner.smallest * (LARGEST_SHIFT * weights.sum(axis=0) + depth)
        bound = 2 * (depth + others[0].value.shape[1] + 8) * inner.epsilon * terms + lost
        bound += 2 * x.bounds.reshape(-1, depth) @ weights
        bound = np.where(codes_met < inner.largest, bound, INFINITE)
    return Traced(value, summed(value, bound.reshape(value.shape), terms.reshape(value.shape)), True)


def _dense(panels: Array, depth: int, columns: int) -> Array:
    """[panels, steps, tile] -> [K, N]."""
    rows: Array = np.moveaxis(panels, 1, 0).reshape(panels.shape[1], panels.shape[0] * panels.shape[2])[:depth, :columns]
    return rows
