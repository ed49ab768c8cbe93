"""Bounds of scalar functions, element by element (see `shadow_values.py` for what a bound is).

Arithmetic rounds once. Under `strict` that makes it exact for exact operands; otherwise rewrites may move constants
through sums and products, so each result may lie some roundings of its terms away. Other float functions may miss by
`ULPS` units in the last place on either side (the compiler's own and NumPy's). What operands miss by goes through
derivatives or through the values at the ends of their intervals. Functions that jump are exact where both ends agree.

A function that this file does not know is tried on perturbed operands (`shadow_unknown.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.ops.scalar import SCALARS, evaluate_scalar
from .shadow_unknown import perturbed
from .shadow_values import (
    FORMATS,
    INFINITE,
    Array,
    Bound,
    Format,
    Traced,
    are_exact,
    are_given,
    are_known,
    are_signless,
    fits,
    inherited,
    lattice,
    magnitude,
    settled,
    tainted_by,
    within,
)

ULPS = 8.0          # of functions that are no arithmetic: at most 3.2 of ours (tests/test_math.py) and 4 of NumPy's
POWER_ULPS = 12.0   # rules of contract `bounded` write powers as products
SAFETY = 1.0625     # on what the ends of an interval give, for the rounding of the bounds themselves

ARITHMETIC = frozenset({"add", "sub", "mul", "div", "fma", "sqrt"})
STEPS = frozenset({"floor", "ceil", "trunc", "round", "sign"})
DIVISIONS = frozenset({"floordiv", "mod", "rem"})
EXTREMES = frozenset({"max", "min", "fmax", "fmin"})
SIGNS = frozenset({"neg", "abs", "select", "copysign"})
MONOTONE = frozenset({"exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "cbrt", "asin", "acos", "atan", "sinh", "tanh",
                      "asinh", "acosh", "atanh", "sigmoid"})
POLES = frozenset({"log", "log2", "log10", "log1p", "atanh"})  # an infinite result of theirs is no overflow
KEEPING = frozenset({"add", "sub", "mul", "sqrt", "neg", "abs", *EXTREMES})  # what they make of given values is given
DECISIONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})

Values = list[Array]


def trace_elementwise(name: str, operands: Sequence[Traced], strict: bool) -> Traced:
    """The function's value, and its bound."""
    made = _traced(name, operands, strict)
    # a difference of equal values may become a constant, and constants are moved
    made.given = name in KEEPING and are_given(operands) and bool(made.value.any())
    return made


def _traced(name: str, operands: Sequence[Traced], strict: bool) -> Traced:
    value = evaluate_scalar(name, [x.value for x in operands])
    known = are_known(operands)
    if value.dtype not in FORMATS:
        bound = tainted_by(operands)
        if bound is not None and operands[-1].is_float:
            bound = settled(np.where(_is_decided(name, operands), 0.0, INFINITE))
        return Traced(value, bound, known=known)
    with np.errstate(all="ignore"):
        if name in SIGNS or name in EXTREMES:
            return _chosen(name, operands, value, known)
        if name in STEPS or name in DIVISIONS:
            return _stepped(name, operands, value, known)
        if name not in PROPAGATED:
            return perturbed(lambda arrays: evaluate_scalar(name, arrays), operands, value)
        return _computed(name, operands, value, known, strict)


def _computed(name: str, operands: Sequence[Traced], value: Array, known: bool, strict: bool) -> Traced:
    """Arithmetic and smooth functions."""
    form, exact = FORMATS[value.dtype], are_exact(operands)
    signless = not strict or not exact or are_signless(operands)
    bound = None if exact else _propagated(name, operands, value)
    if bound is not None and name in ("mul", "div") and not strict:
        # a factor may be moved into the terms of a sum, which bounds it by an epsilon of them at least: they may overflow then
        bound = np.where(bound > form.largest * form.epsilon, INFINITE, bound)
    on_lattice = _result_lattice(name, operands, form)
    if on_lattice is None and not (strict and exact and name in ARITHMETIC):
        own = _own_error(name, operands, value, form, strict)
        # the other evaluation rounds what it has itself
        bound = own if bound is None else bound * (1 + 2 * ULPS * form.epsilon) + own
    if bound is not None:
        bound = _with_special(name, operands, value, bound, strict)
    bound = _with_unsure_signs(name, operands, value, bound)
    if on_lattice is None:
        return Traced(value, settled(within(value, bound, form)), signless, known)
    unit, mass = on_lattice
    rounds = 0 if strict else sum(x.rounds for x in operands) + 1
    return Traced(value, settled(bound), signless, known, unit, mass, rounds)


def _result_lattice(name: str, operands: Sequence[Traced], form: Format) -> tuple[float, float] | None:
    """Unit and mass where the result is exact however terms are ordered; None where it may round."""
    if name in ("add", "sub"):
        (first, size), (second, other) = lattice(operands[0]), lattice(operands[1])
        unit, mass = min(first, second), size + other
    elif name == "mul":
        (first, size), (second, other) = lattice(operands[0]), lattice(operands[1])
        unit, mass = first * second, size * other if first and second else INFINITE
    elif name == "fma":
        (first, size), (second, other), (third, addend) = map(lattice, operands)
        unit, mass = min(first * second, third), size * other + addend if first and second else INFINITE
    elif name == "div":
        return _quotient_lattice(operands, form)
    else:
        return None
    return (unit, mass) if fits(unit, mass, form) else None


def _quotient_lattice(operands: Sequence[Traced], form: Format) -> tuple[float, float] | None:
    """Division by powers of two only: of other exact quotients a reciprocal may be made."""
    unit, mass = lattice(operands[0])
    if operands[1].bound is not None or operands[1].rounds or not unit:
        return None
    divisor = np.abs(operands[1].wide())
    if not divisor.size or not (np.frexp(divisor)[0] == 0.5).all():
        return None
    unit, mass = unit / float(divisor.max()), mass / float(divisor.min())
    return (unit, mass) if fits(unit, mass, form) else None


# --- what the function itself may miss by -------------------------------------------------------------------------------


def _own_error(name: str, operands: Sequence[Traced], value: Array, form: Format, strict: bool) -> Array:
    size = np.abs(value.astype(np.float64))
    size = np.where(size <= form.largest, size, 0.0)
    if name in ARITHMETIC and not strict and name != "sqrt":
        sizes = [magnitude(x) for x in operands]
        rounds = sum(x.rounds for x in operands)
        terms = sizes[0] + sizes[1] if name in ("add", "sub") else sizes[0] / np.abs(operands[1].wide()) if name == "div" \
            else sizes[0] * sizes[1]
        terms = terms + sizes[2] if name == "fma" else terms
        terms = np.where(terms < INFINITE, terms, 0.0)
        return np.broadcast_to((rounds + 2) * form.epsilon * terms + 2 * form.smallest, value.shape)
    if name in ARITHMETIC:
        return np.asarray(form.epsilon * size + form.smallest)
    ulps = POWER_ULPS if name in ("pow", "sigmoid") else ULPS
    if form.bits == 53:
        ulps *= 2  # the bounds are computed in float64 too
    elif form.bits < 24 and name != "pow":
        ulps = 1.0625  # computed in float32 and rounded once
    return np.asarray(ulps * (form.epsilon * size + form.smallest))


# --- what operands miss by ----------------------------------------------------------------------------------------------


def _propagated(name: str, operands: Sequence[Traced], value: Array) -> Array:
    values = [x.wide() for x in operands]
    bounds = [x.bounds for x in operands]
    if name in MONOTONE:
        error = _between(lambda x: evaluate_scalar(name, (x,)), values[0], bounds[0])
    else:
        error = PROPAGATED[name](values, bounds, value.astype(np.float64))
    tainted = np.logical_or.reduce([np.isinf(bound) for bound in bounds])  # it may be NaN, for bounded functions too
    return np.where(tainted, INFINITE, error)


def _between(function: Callable[[Array], Array], x: Array, bound: Array) -> Array:
    """How far a monotone function goes within the bound."""
    middle = function(x)
    return np.asarray(SAFETY * np.maximum(np.abs(function(x + bound) - middle), np.abs(function(x - bound) - middle)))


def _of_product(values: Values, bounds: Values, y: Array) -> Array:
    (a, b), (da, db) = values[:2], bounds[:2]
    # a bound of zero times an infinite operand is nothing: such elements are looked at apart
    return np.asarray(SAFETY * (np.abs(a) * db + np.abs(b) * da + da * db))


def _of_quotient(values: Values, bounds: Values, y: Array) -> Array:
    least = np.abs(values[1]) - bounds[1]
    error = SAFETY * (bounds[0] + np.abs(values[0] / values[1]) * bounds[1]) / least
    return np.where((least > 0) | (bounds[0] + bounds[1] == 0), np.where(bounds[0] + bounds[1] == 0, 0.0, error), INFINITE)


def _of_power(values: Values, bounds: Values, y: Array) -> Array:
    (a, b), (da, db) = values, bounds
    error = np.zeros(y.shape)
    for base, exponent in itertools.product((a - da, a + da), (b - db, b + db)):
        error = np.maximum(error, np.abs(np.power(base, exponent) - np.power(a, b)))
    whole = (db == 0) & (np.rint(b) == b)
    through_zero = whole & (b >= 0)  # by the size of the greatest
    error = np.where(through_zero & (np.abs(a) <= da), np.power(np.abs(a) + da, b) + np.abs(y), error)
    sound = (a - da > 0) | whole & ((np.abs(a) > da) | (b >= 0)) | (da + db == 0)
    return np.where(sound, np.where(da + db == 0, 0.0, SAFETY * error), INFINITE)


def _of_tangent(values: Values, bounds: Values, y: Array) -> Array:
    """A pole is at least 1 / |y| away; a quarter of that lets the function grow by a third."""
    error = SAFETY * bounds[0] * (2.0 + 3.0 * y * y)
    return np.where(bounds[0] * np.maximum(np.abs(y), 1.0) < 0.25, error, np.where(bounds[0] == 0, 0.0, INFINITE))


def _of_angle(values: Values, bounds: Values, y: Array) -> Array:
    (a, b), (da, db) = values, bounds
    least = np.hypot(a, b) - np.hypot(da, db)
    cut = (b - db < 0) & (np.abs(a) <= da)
    error = np.where((least > 0) & ~cut, SAFETY * (da + db) / least, INFINITE)
    return np.where(da + db == 0, 0.0, error)


def _of_cosh(values: Values, bounds: Values, y: Array) -> Array:
    size = np.abs(values[0])
    high, low = np.cosh(size + bounds[0]), np.cosh(np.maximum(size - bounds[0], 0.0))
    return np.asarray(SAFETY * np.maximum(high - np.cosh(size), np.cosh(size) - low))


def _of_erf(values: Values, bounds: Values, y: Array) -> Array:
    nearest = np.maximum(np.abs(values[0]) - bounds[0], 0.0)
    return np.asarray(SAFETY * np.minimum(2.0, 1.1284 * np.exp(-nearest * nearest) * bounds[0]))


PROPAGATED: dict[str, Callable[[Values, Values, Array], Any]] = {
    "add": lambda values, bounds, y: bounds[0] + bounds[1],
    "sub": lambda values, bounds, y: bounds[0] + bounds[1],
    "mul": _of_product,
    "div": _of_quotient,
    "fma": lambda values, bounds, y: _of_product(values, bounds, y) + bounds[2],
    "hypot": lambda values, bounds, y: bounds[0] + bounds[1],
    "sin": lambda values, bounds, y: np.minimum(bounds[0], 2.0),
    "cos": lambda values, bounds, y: np.minimum(bounds[0], 2.0),
    "tan": _of_tangent, "cosh": _of_cosh, "erf": _of_erf, "atan2": _of_angle, "pow": _of_power,
    **dict.fromkeys(MONOTONE, lambda values, bounds, y: None),  # by the ends of the interval, see _propagated
}


# --- NaN, infinities, poles, zeros of either sign -----------------------------------------------------------------------


def _with_special(name: str, operands: Sequence[Traced], value: Array, bound: Array, strict: bool) -> Array:
    """The bound where the result or an operand is not finite: certain where the function gives one result at all ends of
    the operands' intervals. What overflows is tainted, unless it is one rounding of exact operands under `strict`."""
    finite = np.isfinite(value)
    plain = np.logical_and.reduce([np.isfinite(x.value) for x in operands])
    special = ~(finite & plain)
    if not special.any():
        return bound
    exact = np.logical_and.reduce([x.bounds == 0 for x in operands])
    bound = np.where(~finite & exact, 0.0, bound)
    unsure = special & ~exact
    if unsure.any():
        bound[unsure] = _at_ends(name, operands, value, unsure)
    overflow = plain & np.isinf(value) & ~_is_pole(name, operands)
    if overflow.any() and not (strict and name in ARITHMETIC):
        bound = np.where(overflow, INFINITE, bound)
    return bound


def _is_pole(name: str, operands: Sequence[Traced]) -> Any:
    if name == "div":
        return operands[1].value == 0
    return operands[0].value == 0 if name == "pow" else name in POLES


def _at_ends(name: str, operands: Sequence[Traced], value: Array, where: Array) -> Array:
    """The bounds of these elements from the results at the ends of the operands' intervals."""
    ends = []
    for x in operands:
        middle = x.value[where]
        error = x.bounds[where]
        low, high = (np.asarray(middle.astype(np.float64) + e).astype(middle.dtype) for e in (-error, error))
        ends.append((middle,) if x.bound is None else (low, middle, high))
    expected = value[where].astype(np.float64)
    same = np.ones(expected.shape, bool)
    distance = np.zeros(expected.shape)
    for corner in itertools.product(*ends):
        found = evaluate_scalar(name, corner).astype(np.float64)
        same &= (found == expected) | np.isnan(found) & np.isnan(expected)
        distance = np.maximum(distance, np.abs(found - expected))
    tainted = np.logical_or.reduce([np.isinf(x.bounds[where]) for x in operands])
    form = FORMATS[value.dtype]
    near = np.where(np.isfinite(expected), SAFETY * distance + 2 * ULPS * (form.epsilon * np.abs(expected) + form.smallest), INFINITE)
    # both ends may lie outside of a domain that the interval goes through
    plain = np.logical_and.reduce([np.isfinite(x.value[where]) for x in operands])
    sure = same & ~np.isfinite(expected) & ~(plain & np.isnan(expected))
    return np.where(tainted, INFINITE, np.where(sure, 0.0, near))


def _unsure_signs(name: str, operands: Sequence[Traced], value: Array) -> Array | None:
    """Where a zero that may have either sign, or the sign of a NaN, which nothing promises, decides the result."""
    if name == "copysign":
        return np.asarray(np.isnan(operands[1].value) | (operands[1].value == 0) & operands[1].signless)
    if not are_signless(operands) or name not in ("div", "floordiv", "pow", "atan2"):
        return None
    first, second = operands
    if name in ("div", "floordiv"):
        return np.asarray((second.value == 0) & np.isinf(value) & second.signless)
    if name == "pow":
        return np.asarray((first.value == 0) & np.isinf(value) & first.signless)
    return np.asarray((first.value == 0) & (second.value <= 0))


def _with_unsure_signs(name: str, operands: Sequence[Traced], value: Array, bound: Bound) -> Bound:
    unsure = _unsure_signs(name, operands, value)
    if unsure is None or not unsure.any():
        return bound
    return np.where(unsure, INFINITE, 0.0 if bound is None else bound)


# --- functions that choose, jump or decide ------------------------------------------------------------------------------


def _chosen(name: str, operands: Sequence[Traced], value: Array, known: bool) -> Traced:
    """The result is one of the operands, or one with another sign."""
    signless = are_signless(operands)
    if name in EXTREMES:
        signless = signless or bool(((operands[0].value == 0) & (operands[1].value == 0)).any())
    floats = operands[:1] if name == "copysign" else operands[1:] if name == "select" else operands
    bound = _chosen_bound(name, operands, value)
    return Traced(value, settled(_with_unsure_signs(name, operands, value, bound)), signless, known, *inherited(floats))


def _chosen_bound(name: str, operands: Sequence[Traced], value: Array) -> Bound:
    if are_exact(operands):
        return None
    bounds = [x.bounds for x in operands]
    if name == "select":
        picked = np.where(operands[0].value, bounds[1], bounds[2])
        return np.where(bounds[0] > 0, INFINITE, picked)
    if name == "copysign":
        sure = (np.abs(operands[1].wide()) > bounds[1]) | (bounds[1] == 0)
        return np.where(sure, bounds[0], INFINITE)
    if name not in EXTREMES:
        return bounds[0]
    plain = np.array(np.maximum(*bounds))
    special = ~np.logical_and(*(np.isfinite(x.value) for x in operands)) & (plain > 0)
    if special.any():
        plain[special] = _at_ends(name, operands, value, special)
    return plain


def _stepped(name: str, operands: Sequence[Traced], value: Array, known: bool) -> Traced:
    """Rounding to whole numbers, signs, and divisions with a whole quotient."""
    if are_exact(operands):
        return Traced(value, settled(_with_unsure_signs(name, operands, value, None)), are_signless(operands), known)
    values, bounds = [x.wide() for x in operands], [x.bounds for x in operands]
    if name in STEPS:
        low, high = (evaluate_scalar(name, (values[0] + e,)) for e in (-bounds[0], bounds[0]))
        error = np.where(np.isinf(bounds[0]), INFINITE, np.where(np.isfinite(values[0]), high - low, 0.0))
    else:
        error = _divided(name, values, bounds, FORMATS[value.dtype].epsilon)
    bound = _with_unsure_signs(name, operands, value, error)
    return Traced(value, settled(within(value, bound, FORMATS[value.dtype])), True, known)


def _divided(name: str, values: Values, bounds: Values, epsilon: float) -> Array:
    quotient = values[0] / values[1]
    error = 2 * epsilon * np.abs(quotient) + _of_quotient(values, bounds, quotient)
    whole = np.trunc if name == "rem" else np.floor
    low, high = whole(quotient - error), whole(quotient + error)
    if name == "floordiv":
        bound = high - low
    else:
        rest = SAFETY * (bounds[0] + np.abs(low) * bounds[1]) + 2 * epsilon * (np.abs(values[1]) + bounds[1])
        bound = np.where(low == high, rest, INFINITE)
    finite = np.isfinite(values[0]) & np.isfinite(values[1])
    return np.where(bounds[0] + bounds[1] == 0, 0.0, np.where(finite, bound, INFINITE))


def _is_decided(name: str, operands: Sequence[Traced]) -> Array:
    """Where a comparison or a test of floats has one outcome only."""
    bounds = [x.bounds for x in operands]
    total = np.add.reduce(bounds)
    if name in ("isnan", "isinf"):
        return np.asarray(total < INFINITE)
    if name not in DECISIONS:
        return np.asarray(total == 0)
    with np.errstate(all="ignore"):
        apart = np.abs(operands[0].wide() - operands[1].wide()) > total
    special = ~np.logical_and.reduce([np.isfinite(x.value) for x in operands])
    return np.asarray(apart | special & (total < INFINITE) | (total == 0))


def unknown_functions() -> set[str]:
    """Scalar functions that go by the generic rule."""
    known = {*SIGNS, *EXTREMES, *STEPS, *DIVISIONS, *DECISIONS, *PROPAGATED, "isnan", "isinf"}
    return {name for name, row in SCALARS.items() if name not in known and row.rule not in ("bits", "integer", "words", "widen", "bfloats")}
