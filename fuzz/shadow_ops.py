"""Bounds of the ops on whole arrays (see `shadow_values.py` for what a bound is).

What moves elements moves their bounds. Sums, contractions and windows may be reordered: they are exact where all terms
are multiples of one unit and few enough, else they may miss by the number of terms times the sum of their magnitudes.
Maxima, minima and sorting move no further than the farthest of what they compare. Places (of extremes, of sorted
elements) are exact for rows in which no two elements could change places, indices where they are exact.

Ops that stand in no table here go by the generic rule of `shadow_unknown.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from ..ir.graph import Binding, Op
from ..ir.ops.compute import (
    ArgReduce,
    ArgSort,
    Bitcast,
    Cast,
    Cumulative,
    Elementwise,
    Reduce,
    ReduceWindow,
    Sort,
)
from ..ir.ops.control import Const
from ..ir.ops.shape import (
    Broadcast,
    Concat,
    GatherND,
    Iota,
    Pad,
    Reshape,
    ScatterAlong,
    ScatterND,
    SizeOf,
    Slice,
    Take,
    TakeAlong,
    Transpose,
    UpdateSlice,
)
from ..ir.ops.weight_only import WeightOnlyDot
from .shadow_contractions import CONTRACTIONS, trace_contraction
from .shadow_scalars import EXTREMES, trace_elementwise
from .shadow_unknown import perturbed
from .shadow_values import (
    FORMATS,
    INFINITE,
    Array,
    Bound,
    Item,
    Traced,
    accumulator,
    all_tainted,
    are_exact,
    are_given,
    are_known,
    are_signless,
    fits,
    inherited,
    lattice,
    rounded,
    settled,
    summed,
    within,
)
from .shadow_weight_only import trace_weight_only

# op -> which operands are moved; the others are indices
MOVEMENT: dict[type[Op], slice] = {
    **dict.fromkeys((Broadcast, Reshape, Transpose, Slice, UpdateSlice, Concat, Pad), slice(None)),
    **dict.fromkeys((Take, TakeAlong, GatherND), slice(1)),
}


def trace_op(op: Op, operands: Sequence[Traced], binding: Binding, precision: str) -> Item:
    """The value of an op that holds no graph, with its bound."""
    strict = precision == "strict"
    if isinstance(op, Elementwise):
        return trace_elementwise(op.function, operands, strict)
    found = op.evaluate([x.value for x in operands], binding)
    if isinstance(found, tuple):  # no op of a table here gives several results
        return tuple(perturbed(lambda arrays, i=i: op.evaluate(arrays, binding)[i], operands, np.asarray(found[i]))  # type: ignore[misc]  # i=i
                     for i in range(len(found)))
    value = np.asarray(found)
    if type(op) in MOVEMENT:
        return _moved(op, operands, value, binding)
    if isinstance(op, (Const, Iota, SizeOf)):
        return Traced(value, known=True)
    trace = RULES.get(type(op))
    with np.errstate(all="ignore"):
        if isinstance(op, CONTRACTIONS):
            made = trace_contraction(op, operands, value, binding, precision)
        elif trace is None:
            made = perturbed(lambda arrays: op.evaluate(arrays, binding), operands, value)
        else:
            made = trace(op, operands, value, binding, strict)
    made.known = are_known(operands)
    made.given = isinstance(op, Cast) and op.dtype.is_float and are_given(operands)
    return made


def indices_of(op: Op, operands: Sequence[Traced]) -> Sequence[Traced]:
    """Those operands that name places: where one is tainted, another evaluation may fail."""
    if isinstance(op, (Take, TakeAlong, GatherND, ScatterND, ScatterAlong)):
        return operands[1:2]
    return ()


def chooses_extremes(op: Op) -> bool:
    """Whether a result is the greater or lesser of some values: of equal ones, any."""
    return (op.function if isinstance(op, Elementwise) else getattr(op, "kind", "")) in EXTREMES


def _moved(op: Op, operands: Sequence[Traced], value: Array, binding: Binding) -> Traced:
    moved, known = operands[MOVEMENT[type(op)]], are_known(operands)
    if not are_exact(indices_of(op, operands)):
        return all_tainted(value)
    bound: Bound = None
    if not are_exact(moved):
        arrays = [x.bounds for x in moved] + [x.value for x in operands[len(moved):]]
        bound = settled(np.asarray(op.evaluate(arrays, binding)))
    lattices = inherited(moved) if moved[0].is_float else (None, 0.0, 0)
    return Traced(value, bound, are_signless(moved), known, *lattices, given=are_given(operands))


# --- casts --------------------------------------------------------------------------------------------------------------


def _cast(op: Cast, operands: Sequence[Traced], value: Array, binding: Binding, strict: bool) -> Traced:
    x, = operands
    if not (x.is_float and op.dtype.is_float):
        # an integer that is tainted may be any number, and a float that becomes an integer must be sure of it
        return Traced(value, _cast_to_integer(op, x) if x.is_float else x.bound)
    if FORMATS[x.value.dtype].bits <= FORMATS[value.dtype].bits and x.unit is not None:
        unit, mass = lattice(x)
        if fits(unit, mass, FORMATS[value.dtype]):
            return Traced(value, x.bound, x.signless, False, unit, mass, x.rounds)
    if x.bound is None:
        return Traced(value, None, x.signless)
    overflow = ~np.isfinite(value) & np.isfinite(x.value) & (x.bound > 0)
    bound = np.where(overflow, INFINITE, rounded(x.bound, value))
    return Traced(value, settled(within(value, bound, FORMATS[value.dtype])), True)


def _cast_to_integer(op: Cast, x: Traced) -> Bound:
    if x.bound is None:
        return None
    wide = x.wide()
    low, high = (op.evaluate((wide + e,), {}) for e in (-x.bound, x.bound))
    sure = (low == high) & (x.bound < INFINITE)
    if op.dtype.is_bool:
        sure &= ((np.abs(wide) > x.bound) | (x.bound == 0) | np.isnan(wide))
    return settled(np.where(sure, 0.0, INFINITE))


def _bitcast(op: Bitcast, operands: Sequence[Traced], value: Array, binding: Binding, strict: bool) -> Traced:
    """The bits of a NaN are free, and so may be the sign of a zero."""
    x, = operands
    bound = np.where(x.bounds > 0, INFINITE, 0.0)
    if x.is_float:
        free = np.isnan(x.value) | (x.value == 0) & x.signless
        bound = np.where(free, INFINITE, bound)
    return Traced(value, settled(bound))


# --- reductions, running and in windows ---------------------------------------------------------------------------------


def _reduced(op: Any, operands: Sequence[Traced], value: Array, binding: Binding, strict: bool) -> Traced:
    x, = operands
    if not x.is_float:
        return Traced(value, None if x.bound is None else _spread(op, x.bound, binding))
    if op.kind in ("max", "min"):
        return _extreme(op, x, value, binding)
    return _product(op, x, value, binding) if op.kind == "prod" else _sum(op, x, value, binding, strict)


def _spread(op: Any, bound: Array, binding: Binding) -> Bound:
    """The greatest bound of what each result is made from."""
    return settled(np.maximum(_with_kind(op, "max").evaluate((bound,), binding), 0.0))


def _with_kind(op: Any, kind: str) -> Any:
    """The same reduction of another kind; a running maximum takes the element itself too, which does no harm."""
    match op:
        case Reduce(_, axes):
            return Reduce(kind, axes)
        case Cumulative(_, axis, _, reverse):
            return Cumulative(kind, axis, False, reverse)
        case ReduceWindow():
            return ReduceWindow(kind, op.window, op.strides, op.padding, op.dilation)
    raise TypeError(f"{op!r} is no reduction")


def _terms(op: Any, x: Array) -> int:
    match op:
        case Reduce(_, axes):
            return prod(x.shape[a] for a in axes)
        case Cumulative(_, axis):
            return int(x.shape[axis])
    return int(prod(op.window))


def _extreme(op: Any, x: Traced, value: Array, binding: Binding) -> Traced:
    """Zeros of both signs are equal, so either may come out."""
    zeros = x.value == 0
    signless = x.signless or bool(np.signbit(x.value[zeros]).any() and not np.signbit(x.value[zeros]).all())
    bound = None if x.bound is None else _spread(op, x.bound, binding)
    if bound is not None and np.isnan(x.value).any() and not isinstance(op, ReduceWindow):
        sure = (np.isnan(x.value) & (x.bounds < INFINITE)).astype(np.float64)
        reached = np.maximum(_with_kind(op, "max").evaluate((sure,), binding), 0.0) > 0
        exclusive = isinstance(op, Cumulative) and op.exclusive
        bound = bound if exclusive else settled(np.where(reached, 0.0, bound))
    return Traced(value, bound, signless, False, *inherited([x]))


def _sum(op: Any, x: Traced, value: Array, binding: Binding, strict: bool) -> Traced:
    count, form, inner = _terms(op, x.value), FORMATS[value.dtype], accumulator(x.value.dtype)
    unit, mass = lattice(x)
    bound = None if x.bound is None else np.asarray(op.evaluate((x.bound,), binding))
    if fits(unit, mass * count, inner):
        if fits(unit, mass * count, form):
            return Traced(value, settled(bound), True, False, unit, mass * count, 0 if strict else x.rounds + 1)
        overflow = np.isinf(value) if not np.isinf(x.value).any() else np.zeros(value.shape, bool)
        return Traced(value, settled(np.where(overflow, INFINITE, np.zeros(value.shape) if bound is None else bound)), True)
    finite = np.where(np.isfinite(x.value), np.abs(x.wide()), 0.0)
    size = np.asarray(op.evaluate((finite,), binding))
    own = (count + 1 + x.rounds) * inner.epsilon * (size + (mass * count if x.rounds else 0.0)) + count * inner.smallest
    if count <= 1:
        own = np.zeros(value.shape)
    return Traced(value, summed(value, own if bound is None else own + bound, size), True)


def _product(op: Any, x: Traced, value: Array, binding: Binding) -> Traced:
    """Partial products may over- or underflow in any order, which taints."""
    count, form, inner = _terms(op, x.value), FORMATS[value.dtype], accumulator(x.value.dtype)
    unit, mass = lattice(x)
    if are_exact([x]) and unit and mass >= unit and count * np.log2(mass / unit) < inner.bits \
            and count * abs(np.log2(unit)) < -np.log2(inner.normal) and count * np.log2(max(mass, 1.0)) < np.log2(form.largest) \
            and unit >= 2.0 ** -8 and form is inner:
        return Traced(value, None, True)
    size, error = np.abs(x.wide()), x.bounds
    known = np.where(np.isfinite(size), size, 1.0)
    most = np.asarray(op.evaluate((known + error,), binding))
    growth = np.asarray(op.evaluate((np.maximum(known + error, 1.0),), binding))
    least = known - error
    decay = np.asarray(op.evaluate((np.where(least > 0, np.minimum(least, 1.0), np.where(error > 0, 0.0, 1.0)),), binding))
    bound = most - np.asarray(op.evaluate((known,), binding)) + 2 * count * inner.epsilon * most
    bound = np.where((growth < inner.largest) & (decay > inner.normal), bound, INFINITE)
    overflow = ~np.isfinite(value) & (most * 1.01 >= form.largest)
    special = ~np.isfinite(value) & (bound < INFINITE) & ~overflow
    bound = np.where(overflow, INFINITE, np.where(special, 0.0 if x.bound is None else INFINITE, bound))
    return Traced(value, settled(within(value, rounded(np.where(bound >= 0, bound, INFINITE), value), form)), True)


# --- order --------------------------------------------------------------------------------------------------------------


def _along(array: Array, axis: int, found: Array) -> Array:
    """A fact of each row, for every element of the row."""
    return np.broadcast_to(np.expand_dims(found, axis), array.shape)


def _sorted(op: Sort, operands: Sequence[Traced], value: Array, binding: Binding, strict: bool) -> Traced:
    x, = operands
    bound = None
    if x.bound is not None and x.value.size:
        bound = settled(_along(value, op.axis, x.bound.max(axis=op.axis)) + np.zeros(value.shape))
    zeros = x.value == 0
    mixed = x.is_float and bool(np.signbit(x.value[zeros]).any() and not np.signbit(x.value[zeros]).all())
    return Traced(value, bound, x.signless or mixed, False, *(inherited([x]) if x.is_float else ()))


def _sorted_places(op: ArgSort, operands: Sequence[Traced], value: Array, binding: Binding, strict: bool) -> Traced:
    """Exact for rows whose neighbours in order are too far apart to change places, or both exact."""
    x, = operands
    if x.bound is None or not x.value.size:
        return Traced(value)
    wide, bounds = (np.take_along_axis(a, value, op.axis) for a in (x.wide(), x.bound))
    wide, bounds = np.moveaxis(wide, op.axis, -1), np.moveaxis(bounds, op.axis, -1)
    reach = bounds[..., 1:] + bounds[..., :-1]
    sure = ((np.abs(np.diff(wide, axis=-1)) > reach) | (reach == 0)).all(axis=-1)
    return Traced(value, settled(np.where(_along(value, op.axis, sure), 0.0, INFINITE)))


def _extreme_place(op: ArgReduce, operands: Sequence[Traced], value: Array, binding: Binding, strict: bool) -> Traced:
    """Exact for rows in which everything else stays away from the extreme."""
    x, = operands
    if x.bound is None or not x.value.size:
        return Traced(value)
    wide = x.wide() if op.kind == "max" else -x.wide()
    place = np.expand_dims(value, op.axis)
    others = wide + x.bound
    np.put_along_axis(others, place, -INFINITE, op.axis)
    lower = np.take_along_axis(wide - x.bound, place, op.axis)
    sure = (others < lower).all(axis=op.axis) | (x.bound == 0).all(axis=op.axis)
    return Traced(value, settled(np.where(sure, 0.0, INFINITE)))


# --- scatters -----------------------------------------------------------------------------------------------------------


def _scattered(op: ScatterND | ScatterAlong, operands: Sequence[Traced], value: Array, binding: Binding, strict: bool) -> Traced:
    """Updates are applied in order, which `strict` keeps to the bit."""
    x, places, updates = operands
    if places.bound is not None:
        return all_tainted(value)
    if not x.is_float:
        both = None if are_exact(operands) else settled(np.asarray(_scatter(op, _merging(op.kind), x.bounds, places, updates.bounds)))
        return Traced(value, both)
    signless = are_signless(operands) or op.kind != "set"
    if op.kind in ("set", "max", "min"):
        bound = None if are_exact(operands) else settled(_scatter(op, _merging(op.kind), x.bounds, places, updates.bounds))
        return Traced(value, bound, signless, False, *inherited((x, updates)))
    if strict and are_exact(operands):
        return Traced(value, None, signless)
    count, form = updates.value.size + 1, FORMATS[value.dtype]
    (unit, mass), (other, added) = lattice(x), lattice(updates)
    if op.kind == "add" and fits(min(unit, other), mass + count * added, form):
        bound = settled(_scatter(op, "add", x.bounds, places, updates.bounds))
        return Traced(value, bound, signless, False, min(unit, other), mass + count * added, x.rounds + updates.rounds + 1)
    sizes = [np.where(np.isfinite(v.value), np.abs(v.wide()), 0.0) for v in (x, updates)]
    most = _scatter(op, op.kind, sizes[0] + x.bounds, places, sizes[1] + updates.bounds)
    bound = most - _scatter(op, op.kind, sizes[0], places, sizes[1]) + count * (form.epsilon * most + form.smallest)
    if op.kind == "mul" and not (np.isfinite(x.value).all() and np.isfinite(updates.value).all()):
        return all_tainted(value)
    bound = np.where(np.isfinite(value), bound, np.where(most * 1.01 >= form.largest, INFINITE, 0.0 if are_exact(operands) else INFINITE))
    return Traced(value, settled(within(value, bound, form)), signless)


def _merging(kind: str) -> str:
    return "set" if kind == "set" else "max"


def _scatter(op: ScatterND | ScatterAlong, kind: str, x: Array, places: Traced, updates: Array) -> Array:
    plain = ScatterND(kind) if isinstance(op, ScatterND) else ScatterAlong(op.axis, kind)
    return np.asarray(plain.evaluate((x, places.value, updates), {}))


Rule = Callable[[Any, Sequence[Traced], Array, Binding, bool], Traced]
RULES: dict[type[Op], Rule] = {
    Cast: _cast, Bitcast: _bitcast, Reduce: _reduced, Cumulative: _reduced, ReduceWindow: _reduced, Sort: _sorted,
    ArgSort: _sorted_places, ArgReduce: _extreme_place, ScatterND: _scattered, ScatterAlong: _scattered,
    WeightOnlyDot: trace_weight_only,
}
