"""Bounds of contractions: dots and convolutions, plain and as passes make them.

A contraction is a sum of products in any order, exact where all products are multiples of one unit and few enough. Of the
operands' bounds it keeps what both together can add: (|x| + dx)(|y| + dy) - |x||y|, summed. A convolution whose weights may
be constants may be computed by Winograd's algorithm under precision `default`, with the amplification of the worst tile that
passes may take, and its NaNs spread over tiles. With constant weights, factors behind the sum may be moved into them, and a row with an
infinity may be NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from msgspec.structs import replace

from ..ir.graph import Binding
from ..ir.ops.compute import Conv, Dot, PackedConv, PackedDot, cut_to_tf32, panels_of_squares, round_to_tf32, unpacked_words
from ..ir.ops.winograd import WinogradConv
from ..ir.types import BF16
from ..ir.winograd import MOST_POINTS, winograd
from ..passes.winograd import MOST_AMPLIFICATION, RESULTS
from .shadow_values import (
    FORMATS,
    INFINITE,
    Array,
    Bound,
    Format,
    Traced,
    accumulator,
    all_tainted,
    are_exact,
    fits,
    lattice,
    rounded,
    settled,
    summed,
    within,
)

CODED = 4        # a code and its zero, both times their scale, to the largest weight of their column: at most twice it and its span
SAFETY = 1.0625  # for the rounding of the bounds themselves
LEAST_PRODUCT = 2.0**-90  # sums in float32 of products that are no less are no subnormal numbers, nor are their roundings
TF32 = Format(11, 2.0**-10, 2.0**-136, 2.0**-126, (2.0 - 2.0**-10) * 2.0**127)  # bits of significand, epsilon, smallest, normal, largest
CONTRACTIONS = (Dot, Conv, PackedDot, PackedConv, WinogradConv)


def trace_contraction(op: Any, operands: Sequence[Traced], value: Array, binding: Binding, precision: str) -> Traced:
    """The contraction's value with its bound."""
    x, w = operands
    if not x.is_float:
        return Traced(value) if are_exact(operands) else all_tainted(value)
    if isinstance(op, (PackedDot, PackedConv)) and op.square > 1:
        if not are_exact((w,)):
            return all_tainted(value)
        steps = x.value.shape[-1] * (prod(op.kernel) // op.groups if isinstance(op, PackedConv) else 1)
        words = -(-steps // op.step)
        w = Traced(panels_of_squares(w.value, op.square, op.by_columns)[..., :words, :], known=w.known)
        op, operands = replace(op, square=1), (x, w)
    if isinstance(op, (PackedDot, PackedConv)) and op.step > 1:
        if not are_exact((w,)) or _may_be_flushed(x.value, unpacked_words(w.value, op.step)):
            return all_tainted(value)
        op, w = replace(op, step=1), Traced(unpacked_words(w.value, op.step), known=w.known)
        operands = (x, w)
    if isinstance(op, (PackedDot, PackedConv)) and op.tf32:
        right = _to_tf32(w, round_to_tf32 if op.tf32 == "both" else cut_to_tf32)
        op, x, w = replace(op, tf32=""), _to_tf32(x, round_to_tf32), right
        operands = (x, w)
    finite = bool(np.isfinite(x.value).all() and np.isfinite(w.value).all())
    if isinstance(op, WinogradConv):
        return _by_tiles(op, x, w, value) if finite else all_tainted(value)
    strict = precision == "strict"
    if isinstance(op, Conv):
        transposed = not strict and max(op.input_dilation, default=1) > 1
        if transposed and not np.isfinite(w.value).all():
            return all_tainted(value)  # no product is taken with the zeros between the elements
        if precision == "default" and w.known and min(x.value.shape, default=0) and all(s == 1 for s in (*op.strides, *op.dilation)):
            return _as_winograd(op, x, w, value) if finite else all_tainted(value)
    count = _terms(op, x.value, w.value)
    coded = isinstance(op, Dot) and precision == "default" and w.known
    made = _on_lattice(op, operands, value, binding, count * (CODED if coded else 1))
    if made is None:
        made = _inexact(op, operands, value, binding, count, coded)
    elif not strict and made.unit is not None:
        made.rounds = x.rounds + w.rounds + (count if x.known or w.known else 1)
    if isinstance(op, Dot) and precision == "default" and w.known and not op.lhs_batch and np.isinf(x.value).any():
        made.bound = settled(np.where(_infinite_rows(op, x.value, value), INFINITE, made.bounds))
    return made


def _infinite_rows(op: Dot, x: Array, value: Array) -> Array:
    """Which results are of a row with an infinity. With constant weights, which are codes perhaps, it may be NaN: a zero that all codes
    have is multiplied by the row's sum."""
    rows = np.asarray(np.isinf(x).any(axis=op.lhs_contract))
    return rows.reshape(*rows.shape, *[1] * (value.ndim - rows.ndim))


def perhaps_in_tf32(x: Traced, precision: str) -> Traced:
    """An operand of a product that may be rounded to tf32, or not. Precision `default` may move factors into it before, so that even what
    tf32 holds is rounded."""
    if x.value.dtype != np.float32:
        return x
    near = round_to_tf32(x.value)
    moved = precision == "default" and x.value.any()
    if x.bound is None and not moved and np.array_equal(near, x.value, equal_nan=True):
        return x
    with np.errstate(invalid="ignore"):
        apart = np.abs(near.astype(np.float64) - x.wide())
    if moved:
        size = np.abs(x.wide())
        apart = np.where(size > 0, np.maximum(apart, TF32.epsilon / 2 * size + TF32.smallest), 0.0)
    bound = np.where(np.isfinite(x.value), np.maximum(x.bounds, _to_tf32(x, round_to_tf32).bounds + apart), x.bounds)
    return Traced(x.value, settled(bound), x.signless, x.known, 0.0, lattice(x)[1], x.rounds)


def _to_tf32(x: Traced, change: Callable[[Array], Array]) -> Traced:
    """An operand rounded, or cut, to tf32. Nothing moves a factor through that, so no roundings hide behind its mass."""
    value = change(x.value)
    if x.bound is None:
        return Traced(value, None, x.signless, x.known)
    size = np.abs(x.wide())
    unit = np.where((x.bound > 0) & (size < INFINITE), TF32.epsilon * (size + x.bound) + TF32.smallest, 0.0)
    overflow = ~np.isfinite(value) & np.isfinite(x.value) & (x.bound > 0)
    bound = np.where(overflow, INFINITE, x.bound + unit)
    return Traced(value, settled(within(value, bound, TF32)), x.signless, x.known)


def _may_be_flushed(x: Array, w: Array) -> bool:
    """Whether words of bfloat16 may meet subnormal numbers on the way, which their instruction takes for zeros."""
    if x.dtype != BF16.numpy:
        return False
    least = [np.abs(v[(v != 0) & np.isfinite(v)]).min(initial=1.0) for v in (x.astype(np.float64), w.astype(np.float64))]
    return bool(least[0] * least[1] < LEAST_PRODUCT or min(least) < LEAST_PRODUCT)


def _on_lattice(op: Any, operands: Sequence[Traced], value: Array, binding: Binding, count: int) -> Traced | None:
    """The exact result; None where a sum may round."""
    x, w = operands
    (first, size), (second, other) = lattice(x), lattice(w)
    unit, mass = first * second, size * other * count if first and second else INFINITE
    if not first or not second or not fits(unit, mass, accumulator(value.dtype)):
        return None
    bound = None if are_exact(operands) else _reached(op, x, w, binding)
    if fits(unit, mass, FORMATS[value.dtype]):
        return Traced(value, bound, True, False, unit, mass, 0)
    if not np.isfinite(value).all():
        return None  # the sum is a float32, its dtype is narrower
    return Traced(value, bound, True)


def _reached(op: Any, x: Traced, w: Traced, binding: Binding) -> Bound:
    """What tainted elements have a part in."""
    by_left = op.evaluate([np.sign(x.bounds), np.ones(w.value.shape)], binding)
    by_right = op.evaluate([np.ones(x.value.shape), np.sign(w.bounds)], binding)
    return settled(np.where(by_left + by_right > 0, INFINITE, 0.0))


def _inexact(op: Any, operands: Sequence[Traced], value: Array, binding: Binding, count: int, coded: bool = False) -> Traced:
    """One rounding for each term, and what the operands miss by. `coded`: weights may become codes less a zero, whose products with
    activations are summed up apart."""
    inner = accumulator(value.dtype)
    sizes = [np.where(np.isfinite(v.value), np.abs(v.wide()), 0.0) for v in operands]
    size = np.asarray(op.evaluate(sizes, binding))
    most, error = size, np.zeros(value.shape)
    if not are_exact(operands):
        most = np.asarray(op.evaluate([s + v.bounds for s, v in zip(sizes, operands)], binding))
        most = np.where(most >= 0, most, INFINITE)
        error = most - size
    hidden = [v.mass if v.rounds else float(s.max(initial=0.0)) for s, v in zip(sizes, operands)]
    rounds = sum(v.rounds for v in operands)
    terms = most + (hidden[0] * hidden[1] * count if rounds else 0.0)
    if coded:
        largest = sizes[1].max(axis=op.rhs_contract, keepdims=True, initial=0.0)
        terms = terms + op.evaluate([sizes[0] + operands[0].bounds, np.broadcast_to(CODED * largest, sizes[1].shape)], binding)
    # twice: both ways of summing round; two more for a factor that is moved into the terms
    own = (count + rounds + 4) * inner.epsilon * terms + count * inner.smallest
    # probabilities that are divided by their sum may be so behind the product, whose terms are larger then, up to so many times
    largest_sum = most * (1 if are_exact(operands) else count)
    bound = summed(value, SAFETY * error + own, np.maximum(largest_sum, terms) if coded else largest_sum)
    if not are_exact(operands):  # an infinite term may meet a factor that is zero
        bound = settled(np.where(np.isfinite(value), 0.0 if bound is None else bound, INFINITE))
    return Traced(value, bound, True)


def _terms(op: Any, x: Array, w: Array) -> int:
    """Products that a result is the sum of."""
    match op:
        case Dot():
            return prod(x.shape[a] for a in op.lhs_contract)
        case PackedDot() | PackedConv():
            return int(w.shape[-2]) * op.step
    return prod(w.shape[:-1] if op.channels_last else w.shape[1:])


# --- Winograd's algorithm -----------------------------------------------------------------------------------------------


def _as_winograd(op: Conv, x: Traced, w: Traced, value: Array) -> Traced:
    """A plain convolution with the error of the worst tiles that passes may choose for it."""
    inner = accumulator(value.dtype)
    spatial = tuple(range(1, x.value.ndim - 1)) if op.channels_last else tuple(range(2, x.value.ndim))
    kernel = w.value.shape[:-2] if op.channels_last else w.value.shape[2:]
    able = [[winograd(m, k) for m in ((1,) if k == 1 else RESULTS) if m + k - 1 <= MOST_POINTS] for k in kernel]
    tiles = [(prod(a.amplification for a in axes), sum(a.points for a in axes)) for axes in itertools.product(*able)]
    amplification, points = max((t for t in tiles if t[0] <= MOST_AMPLIFICATION), default=(1.0, 0))
    # tiles mix places of the input: of each channel the greatest stands for all, so borders need no thought
    whole = Conv(op.strides, tuple((0, 0) for _ in kernel), op.dilation, tuple(1 for _ in kernel), op.groups, op.channels_last)
    greatest = [np.abs(x.wide()), np.abs(x.wide()) + x.bounds]
    shape = [kernel[spatial.index(a)] if a in spatial else n for a, n in enumerate(x.value.shape)]
    sizes = [np.broadcast_to(g.max(axis=spatial, keepdims=True), shape) for g in greatest]
    size = whole.evaluate((sizes[0], np.abs(w.wide())), {})
    most = whole.evaluate((sizes[1], np.abs(w.wide()) + w.bounds), {})
    most = np.where(most >= 0, most, INFINITE)
    terms, channels = _terms(op, x.value, w.value), w.value.shape[-2] if op.channels_last else w.value.shape[1]
    rounds = amplification * (channels + 2 * points) + terms + 4  # of a unit of roundoff each: the tiles', and the plain sum's
    bound = SAFETY * (most - size) + rounds * inner.epsilon / 2 * most
    overflow = most * amplification >= inner.largest
    bound = np.broadcast_to(np.where(overflow, INFINITE, bound), value.shape)
    return Traced(value, settled(within(value, rounded(bound, value), FORMATS[value.dtype])), True)


def _by_tiles(op: WinogradConv, x: Traced, u: Traced, value: Array) -> Traced:
    """The error of the three steps from the magnitudes of all terms: those of the matrices, of the input, of the weights."""
    inner, channels = accumulator(value.dtype), u.value.shape[2]
    factors = np.ones(1)
    for axis in op.axes:
        of_input, of_output = np.abs(axis.input).sum(1), np.abs(axis.output).max(0)
        factors = np.multiply.outer(factors, of_input * of_output).reshape(-1)
    spatial = tuple(range(1, x.value.ndim - 1))
    most = np.max(np.abs(x.wide()) + x.bounds, axis=spatial, initial=0.0).reshape(x.value.shape[0], op.groups, channels)
    points, count, _, tile = u.value.shape  # sizes are spelled out: NumPy cannot tell them where there are no channels
    panels = (np.abs(u.wide()) + u.bounds).reshape(points, op.groups, count // op.groups, channels, tile)
    dense = np.moveaxis(panels, 3, 2).reshape(points, op.groups, channels, count // op.groups * tile)[..., :op.channels // op.groups]
    terms = np.einsum("ngc,pgco,p->ngo", most, dense, factors).reshape(x.value.shape[0], op.channels)
    points = sum(axis.points for axis in op.axes)
    relative = (channels + 2 * points + 8) * inner.epsilon + (0.0 if are_exact((x, u)) else 1.0)
    bound = np.where(terms < inner.largest, relative * terms, INFINITE).reshape(terms.shape[0], *[1] * len(spatial), op.channels)
    bound = np.broadcast_to(bound, value.shape)
    return Traced(value, settled(within(value, rounded(bound, value), FORMATS[value.dtype])), True)
