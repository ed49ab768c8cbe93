"""NumPy functions that are short compositions of others, written with NumPy itself: its calls come back to the tracer.

Each has the parameters of the NumPy function it stands for, after the tracer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..ir.dims import product
from ..ir.types import dtype_of
from . import numpy_reductions as reductions
from . import numpy_shaping as shaping
from .numpy_errors import TraceTypeError, TraceValueError
from .numpy_tracer import TracedArray, Tracer
from .numpy_ufuncs import normalize_axes, promotion_type, store, weak_sample

NOTHING = np._NoValue


# --- questions about shape and dtype ---------------------------------------------------------------------------------


def shape(t: Tracer, a: Any) -> Any:
    return t.as_array(a).shape


def ndim(t: Tracer, a: Any) -> int:
    return int(t.as_array(a).ndim)


def size(t: Tracer, a: Any, axis: Any = None) -> Any:
    array = t.as_array(a)
    return t.sizes((product(array.dims[i] for i in normalize_axes(axis, array.ndim)),))[0]


def result_type(t: Tracer, *values: Any) -> Any:
    def known(value: Any) -> Any:
        return weak_sample(promotion_type(value)) if isinstance(value, (TracedArray, np.ndarray)) else value

    return np.result_type(*(known(v) for v in values))


def can_cast(t: Tracer, from_: Any, to: Any, casting: Any = "safe") -> bool:
    return np.can_cast(from_.dtype if isinstance(from_, TracedArray) else from_, to, casting)


def says(answer: bool) -> Callable[..., Any]:
    return lambda t, *args, **kwargs: answer


def is_bool_question(t: Tracer, x: Any) -> Any:
    return np.zeros_like(x, dtype=bool)


def always_true(t: Tracer, x: Any) -> Any:
    return np.ones_like(x, dtype=bool)


def itself(t: Tracer, a: Any, *args: Any, **kwargs: Any) -> Any:
    return t.as_array(a)


# --- elementwise -----------------------------------------------------------------------------------------------------


def round_to(t: Tracer, a: Any, decimals: int = 0, out: Any = None) -> Any:
    """NumPy's recipe: multiply by a power of ten, round half to even, divide."""
    array = t.as_array(a)
    if array.dtype == np.bool_:
        array = array.astype(np.float16)
    if array.dtype.kind in "iu":
        if decimals >= 0:
            return store(t, np.positive(array), out)
        scale = 10**-decimals
        return store(t, (np.rint(array / scale) * scale).astype(array.dtype), out)
    if not decimals:
        return np.rint(array, out=out)
    power = np.asarray(10.0 ** abs(decimals), dtype=array.dtype)
    value = np.rint(array * power) / power if decimals > 0 else np.rint(array / power) * power
    return store(t, value, out)


def fix(t: Tracer, x: Any, out: Any = None) -> Any:
    return np.trunc(x, out=out)


def isclose(t: Tracer, a: Any, b: Any, rtol: Any = 1e-05, atol: Any = 1e-08, equal_nan: bool = False) -> Any:
    x, y = t.as_array(a), t.as_array(b)
    if y.dtype.kind not in "fV":
        y = y.astype(np.result_type(y.dtype, 1.0))
    near = (np.abs(x - y) <= atol + rtol * np.abs(y)) & np.isfinite(y) | (x == y)
    return near | (np.isnan(x) & np.isnan(y)) if equal_nan else near


def allclose(t: Tracer, a: Any, b: Any, rtol: Any = 1e-05, atol: Any = 1e-08, equal_nan: bool = False) -> Any:
    return np.all(isclose(t, a, b, rtol, atol, equal_nan))


def array_equal(t: Tracer, a1: Any, a2: Any, equal_nan: bool = False) -> Any:
    x, y = t.as_array(a1), t.as_array(a2)
    if x.ndim != y.ndim or x.shape != y.shape:
        return False
    same = x == y
    if equal_nan:
        same = same | (np.isnan(x) & np.isnan(y))
    return np.all(same)


def array_equiv(t: Tracer, a1: Any, a2: Any) -> Any:
    return np.all(t.as_array(a1) == t.as_array(a2))


def nan_to_num(t: Tracer, x: Any, copy: bool = True, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    array = t.as_array(x)
    if array.dtype.kind not in "fV":
        return np.positive(array) if array.dtype != np.bool_ else array.copy()
    kind = array.type.dtype
    limits = np.finfo(array.dtype) if array.dtype.kind == "f" else None
    high = posinf if posinf is not None else limits.max if limits else 3.3895313892515355e38
    low = neginf if neginf is not None else -high if posinf is None else limits.min if limits else -3.3895313892515355e38
    value = np.where(np.isnan(array), np.asarray(nan, dtype=array.dtype), array)
    value = np.where(value == np.inf, np.asarray(high, dtype=array.dtype), value)
    value = np.where(value == -np.inf, np.asarray(low, dtype=array.dtype), value)
    if not copy:
        t.assign(array, t.node(value, kind))
        return array
    return value


def is_infinite(sign: int) -> Callable[..., Any]:
    def rule(t: Tracer, x: Any, out: Any = None) -> Any:
        array = t.as_array(x)
        edge = array == sign * np.inf if array.dtype.kind in "fV" else np.zeros_like(array, dtype=bool)
        return store(t, edge, out)

    return rule


def sinc(t: Tracer, x: Any) -> Any:
    array = t.as_array(x)
    array = array if array.dtype.kind in "fV" else array.astype(np.float64)
    y = np.pi * np.where(array == 0, np.asarray(1.0e-20, dtype=array.dtype), array)
    return np.sin(y) / y


def interp(t: Tracer, x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    if period is not None:
        raise TraceTypeError("interp: period is not supported on traced arrays")
    points, places, values = (t.as_array(v).astype(np.float64) for v in (x, xp, fp))
    upper = np.clip(np.searchsorted(places, points, side="right"), 1, places.shape[0] - 1)
    low, high = np.take(places, upper - 1), np.take(places, upper)
    below, above = np.take(values, upper - 1), np.take(values, upper)
    inside = below + (above - below) / (high - low) * (points - low)
    inside = np.where(points < places[0], values[0] if left is None else left, inside)
    inside = np.where(points > places[-1], values[-1] if right is None else right, inside)
    inside = np.where(points == places[-1], values[-1], inside)
    return np.where(np.isnan(points), points, inside)


def select(t: Tracer, condlist: Any, choicelist: Any, default: Any = 0) -> Any:
    if len(condlist) != len(choicelist) or not condlist:
        raise TraceValueError("list of cases must be same length as list of conditions")
    kinds = [promotion_type(v) for v in (*choicelist, default)]
    kind = np.result_type(*(weak_sample(k) for k in kinds))
    value: Any = t.array(t.node(default, dtype_of(kind)))
    for condition, choice in zip(reversed(condlist), reversed(choicelist)):
        value = np.where(condition, t.array(t.node(choice, dtype_of(kind))), value)
    return value


def piecewise(t: Tracer, x: Any, condlist: Any, funclist: Any, *args: Any, **kwargs: Any) -> Any:
    array = t.as_array(x)
    listed = condlist if isinstance(condlist, (list, tuple)) else [condlist]
    if len(funclist) not in (len(listed), len(listed) + 1):
        raise TraceValueError(f"with {len(listed)} condition(s), either {len(listed)} or {len(listed) + 1} functions are expected")

    def result(function: Any) -> Any:
        return t.in_user_code(partial(function, **kwargs), array, *args) if callable(function) else function

    value: Any = np.zeros_like(array)
    if len(funclist) == len(listed) + 1:
        value = np.zeros_like(array) + np.asarray(0, array.dtype)
        value[...] = result(funclist[-1])
    for condition, function in zip(listed, funclist):
        made = t.node(result(function), array.type.dtype)
        value = np.where(condition, t.array(made), value)
    return value


# --- differences and sums over windows -------------------------------------------------------------------------------


def diff(t: Tracer, a: Any, n: int = 1, axis: int = -1, prepend: Any = NOTHING, append: Any = NOTHING) -> Any:
    array = t.as_array(a)
    place = normalize_axes(axis, array.ndim)[0]
    if n < 0:
        raise TraceValueError(f"order must be non-negative but got {n}")
    if not n:
        return array
    edge = (*array.shape[:place], 1, *array.shape[place + 1 :])
    parts = [np.broadcast_to(t.as_array(v), edge) if np.ndim(v) == 0 else v for v in (prepend, append) if v is not NOTHING]
    if parts:
        before = parts[:1] if prepend is not NOTHING else []
        array = np.concatenate([*before, array, *(parts[len(before) :])], axis=place)
    lead = (slice(None),) * place
    subtract = np.not_equal if array.dtype == np.bool_ else np.subtract
    for _ in range(n):
        array = subtract(array[(*lead, slice(1, None))], array[(*lead, slice(None, -1))])
    return array


def ediff1d(t: Tracer, ary: Any, to_end: Any = None, to_begin: Any = None) -> Any:
    flat = np.ravel(t.as_array(ary))
    parts = [np.ravel(p) for p in (to_begin, flat[1:] - flat[:-1], to_end) if p is not None]
    return np.concatenate(parts).astype(flat.dtype)


def gradient(t: Tracer, f: Any, *varargs: Any, axis: Any = None, edge_order: int = 1) -> Any:
    array = t.as_array(f)
    if array.dtype.kind not in "fV":
        array = array.astype(np.float64)
    axes = normalize_axes(axis, array.ndim)
    steps = list(varargs) if len(varargs) != 1 else list(varargs) * len(axes)
    steps = steps or [1.0] * len(axes)
    if edge_order not in (1, 2) or len(steps) != len(axes) or any(np.ndim(s) for s in steps):
        raise TraceTypeError("gradient: only scalar spacing, one for all axes or one an axis, and edge_order 1 or 2")
    parts = tuple(_gradient_along(array, place, step, edge_order) for place, step in zip(axes, steps))
    return parts[0] if len(parts) == 1 else parts


def _gradient_along(array: Any, place: int, step: Any, edge_order: int) -> Any:
    lead = (slice(None),) * place

    def at(low: Any, high: Any) -> Any:
        return array[(*lead, slice(low, high))]

    middle = (at(2, None) - at(None, -2)) / (2.0 * step)
    if edge_order == 1:
        first, last = (at(1, 2) - at(0, 1)) / step, (at(-1, None) - at(-2, -1)) / step
    else:
        first = -1.5 / step * at(0, 1) + 2.0 / step * at(1, 2) - 0.5 / step * at(2, 3)
        last = 0.5 / step * at(-3, -2) - 2.0 / step * at(-2, -1) + 1.5 / step * at(-1, None)
    return np.concatenate([first, middle, last], axis=place)


def trapezoid(t: Tracer, y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    array = t.as_array(y)
    lead = (slice(None),) * normalize_axes(axis, array.ndim)[0]
    if x is None:
        width: Any = dx
    else:
        places = t.as_array(x)
        width = np.diff(places, axis=axis if places.ndim == array.ndim else -1)
        if places.ndim == 1:
            width = np.reshape(width, (-1, *(1,) * (array.ndim - 1 - len(lead))))
    return np.sum(width * (array[(*lead, slice(1, None))] + array[(*lead, slice(None, -1))]) / 2.0, axis=axis)


def convolve(t: Tracer, a: Any, v: Any, mode: str = "full") -> Any:
    return _convolved(t, t.as_array(a), t.as_array(v), mode)


def correlate(t: Tracer, a: Any, v: Any, mode: str = "valid") -> Any:
    return _convolved(t, t.as_array(a), np.flip(t.as_array(v)), mode)


def _convolved(t: Tracer, x: Any, kernel: Any, mode: str) -> Any:
    """The sum of shifted copies; the shorter operand must have a known size."""
    if x.ndim != 1 or kernel.ndim != 1:
        raise TraceValueError("object too deep for desired array")
    if mode not in ("full", "same", "valid"):
        raise TraceValueError(f"mode must be 'full', 'same' or 'valid', found {mode!r}")
    if not isinstance(kernel.dims[0], int) or (isinstance(x.dims[0], int) and x.dims[0] < kernel.dims[0]):
        x, kernel = kernel, x
    if not isinstance(kernel.dims[0], int) and t.observed is not None:
        x, kernel = sorted((x, kernel), key=lambda a: -t.observed_number(a.dims[0]))
    taps = t.number(kernel.dims[0], "convolve: one operand must have a size known at compile time")
    if not taps or x.dims[0] == 0:
        raise TraceValueError("convolve: an operand is empty")
    kind = np.result_type(x.dtype, kernel.dtype)
    length = x.shape[0] + (taps - 1)
    padded = np.pad(x.astype(kind), (taps - 1, taps - 1))
    total: Any = 0
    for tap in range(taps):
        part = padded[taps - 1 - tap :][:length] * kernel[tap].astype(kind)
        total = total + part if tap else part
    if mode == "full":
        return total
    if mode == "same":
        return total[(taps - 1) // 2 :][: x.shape[0]]
    return total[taps - 1 :][: x.shape[0] - (taps - 1)]


def cov(t: Tracer, m: Any, y: Any = None, rowvar: bool = True, bias: bool = False, ddof: Any = None, fweights: Any = None,
        aweights: Any = None, *, dtype: Any = None) -> Any:  # fmt: skip
    if fweights is not None or aweights is not None:
        raise TraceTypeError("cov: weights are not supported on traced arrays")
    rows = np.atleast_2d(t.as_array(m))
    kind = np.result_type(rows.dtype, np.float64) if dtype is None else dtype
    rows = rows.astype(kind) if rowvar or rows.shape[0] == 1 else rows.T.astype(kind)
    if y is not None:
        more = np.atleast_2d(t.as_array(y)).astype(kind)
        rows = np.concatenate([rows, more if rowvar or more.shape[0] == 1 else more.T], axis=0)
    centred = rows - np.mean(rows, axis=1, keepdims=True)
    taken = (0 if bias else 1) if ddof is None else ddof
    return np.squeeze(centred @ centred.T / (rows.shape[1] - taken))


def corrcoef(t: Tracer, x: Any, y: Any = None, rowvar: bool = True, *, dtype: Any = None) -> Any:
    c = cov(t, x, y, rowvar, dtype=dtype)
    if not c.ndim:
        return c / c
    deviation = np.sqrt(np.diag(c))
    return np.clip(c / deviation[:, None] / deviation[None, :], -1, 1)


def vander(t: Tracer, x: Any, N: Any = None, increasing: bool = False) -> Any:
    column = t.as_array(x)
    count = column.shape[0] if N is None else N
    powers = np.cumprod(np.concatenate([np.ones_like(column)[:, None], *[column[:, None]] * (int(count) - 1)], axis=1), axis=1)
    return powers if increasing else powers[:, ::-1]


def polyval(t: Tracer, p: Any, x: Any) -> Any:
    value: Any = np.zeros_like(t.as_array(x))
    for coefficient in p:
        value = value * x + coefficient
    return value


def bincount(t: Tracer, x: Any, /, weights: Any = None, minlength: int = 0) -> Any:
    raise TraceTypeError("bincount: the size of the result depends on the data",
                         hint="give a fixed size: counts = np.zeros(n, np.int64, like=x); np.add.at(counts, x, 1)")  # fmt: skip


def copyto(t: Tracer, dst: Any, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    if not isinstance(dst, TracedArray):
        raise TraceTypeError("copyto into a concrete array", hint="make the array with np.zeros_like(x)")
    source = t.as_array(src)
    if not np.can_cast(promotion_type(src), dst.dtype, casting):
        raise TraceTypeError(f"Cannot cast array data from {source.dtype} to {dst.dtype} according to the rule '{casting}'")
    dst[...] = source if where is True else np.where(where, source, dst)


def putmask(t: Tracer, a: Any, /, mask: Any, values: Any) -> None:
    if not isinstance(a, TracedArray) or np.ndim(values):
        raise TraceTypeError("putmask: needs a traced array and one value", hint="use x[...] = np.where(mask, values, x)")
    a[...] = np.where(mask, t.array(t.node(values, a.type.dtype)), a)


def put(t: Tracer, a: Any, ind: Any, v: Any, mode: str = "raise") -> None:
    if not isinstance(a, TracedArray):
        raise TraceTypeError("put into a concrete array", hint="make the array with np.zeros_like(x)")
    np.reshape(a, -1)[ind] = v


def apply_along_axis(t: Tracer, func1d: Any, axis: int, arr: Any, *args: Any, **kwargs: Any) -> Any:
    array = t.as_array(arr)
    moved = np.moveaxis(array, axis, -1)
    rows: Any = np.reshape(moved, (-1, moved.shape[-1]))
    if not isinstance(rows.dims[0], int):
        raise TraceTypeError(f"apply_along_axis over {rows.dims[0]} rows, which is not known at compile time", hint="use tw.scan")
    made = [t.as_array(t.in_user_code(partial(func1d, **kwargs), rows[i], *args)) for i in range(rows.dims[0])]
    full = np.stack(made)
    return np.moveaxis(np.reshape(full, (*moved.shape[:-1], *full.shape[1:])), -1, axis) if full.ndim > 1 else \
        np.reshape(full, moved.shape[:-1])  # fmt: skip


def apply_over_axes(t: Tracer, func: Any, a: Any, axes: Any) -> Any:
    value = t.as_array(a)
    for axis in axes if isinstance(axes, (tuple, list)) else (axes,):
        made = func(value, axis)
        value = made if made.ndim == value.ndim else np.expand_dims(made, axis)
    return value


def resize(t: Tracer, a: Any, new_shape: Any) -> Any:
    array: Any = np.ravel(t.as_array(a))
    dims = shaping.dims_of(t, new_shape)
    total, have = product(dims), array.dims[0]
    if not isinstance(total, int) or not isinstance(have, int) or not have:
        raise TraceTypeError("resize: sizes must be known at compile time and the array not empty", hint="use np.tile or np.pad")
    return np.reshape(np.tile(array, -(-total // have))[:total], dims)


def unwrap(t: Tracer, p: Any, discont: Any = None, axis: int = -1, *, period: Any = 6.283185307179586) -> Any:
    array = t.as_array(p)
    array = array if array.dtype.kind in "fV" else array.astype(np.float64)
    steps = np.diff(array, axis=axis)
    half = period / 2
    wrapped = np.mod(steps + half, period) - half
    wrapped = np.where((wrapped == -half) & (steps > 0), np.asarray(half, array.dtype), wrapped)
    change = np.where(np.abs(steps) < (half if discont is None else max(discont, half)), np.zeros_like(steps), wrapped - steps)
    lead = (slice(None),) * normalize_axes(axis, array.ndim)[0]
    value = array.copy()
    value[(*lead, slice(1, None))] = array[(*lead, slice(1, None))] + np.cumsum(change, axis=axis)
    return value


def data_dependent(name: str, hint: str) -> Callable[..., Any]:
    """A function whose result has a size that data decides: refused with the form that works."""

    def rule(t: Tracer, *args: Any, **kwargs: Any) -> Any:
        raise TraceTypeError(f"np.{name}: the size of the result depends on the data", hint=hint)

    return rule


BY_WHERE = "choose elementwise with np.where(condition, a, b), or reduce with where="
BY_SORT = "np.sort(x) keeps the size; count with np.sum(x == value)"


def isin(t: Tracer, element: Any, test_elements: Any, assume_unique: bool = False, invert: bool = False, *, kind: Any = None) -> Any:
    found = np.any(t.as_array(element)[..., None] == np.ravel(t.as_array(test_elements)), axis=-1)
    return ~found if invert else found


def cumulative(t: Tracer, ufunc: np.ufunc, x: Any, axis: Any, dtype: Any, out: Any, include_initial: bool) -> Any:
    array = t.as_array(x)
    if axis is None and array.ndim > 1:
        raise TraceValueError("For arrays which have more than one dimension ``axis`` argument is required.")
    place = 0 if axis is None else normalize_axes(axis, array.ndim)[0]
    value = reductions.running(ufunc)(t, array, place, dtype)
    if include_initial:
        edge = (*value.shape[:place], 1, *value.shape[place + 1 :])
        first = np.full(edge, ufunc.identity, dtype=value.dtype, like=value)
        value = np.concatenate([first, value], axis=place)
    return store(t, value, out)
