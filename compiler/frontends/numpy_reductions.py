"""NumPy's functions that reduce, accumulate, sort and search, on traced arrays.

Each rule has the parameters of the NumPy function it stands for, after the tracer. Means, variances and norms compute as
NumPy does: integers in float64, float16 in float32. An empty maximum is refused where the size is known to be 0; where it
is symbolic, an empty one gives the dtype's lowest value (minimum: highest).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy._core import umath  # the ufunc behind np.clip has no public name

from .. import library
from ..ir.dims import DimLike, product
from ..ir.graph import Node
from ..ir.ops.compute import ArgReduce, ArgSort, Sort
from ..ir.types import BF16, F16, F32, F64, DType, dtype_of
from .numpy_errors import TraceTypeError, TraceValueError
from .numpy_tracer import TracedArray, Tracer
from .numpy_ufuncs import (
    accumulate_ufunc,
    check_integer,
    normalize_axes,
    promotion_type,
    reduce_ufunc,
    resolve_loop,
    store,
)

NOTHING = np._NoValue


def reduction(ufunc: np.ufunc) -> Callable[..., Any]:
    """np.sum and its like, from the ufunc that they reduce with."""

    def rule(t: Tracer, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False,
             initial: Any = NOTHING, where: Any = True) -> Any:  # fmt: skip
        return reduce_ufunc(t, ufunc, t.as_array(a), axis, dtype, out, keepdims, initial, where)

    return rule


def extremum(ufunc: np.ufunc) -> Callable[..., Any]:
    """np.max and np.min: without dtype."""

    def rule(t: Tracer, a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, initial: Any = NOTHING,
             where: Any = True) -> Any:  # fmt: skip
        return reduce_ufunc(t, ufunc, t.as_array(a), axis, None, out, keepdims, initial, where)

    return rule


def truth(ufunc: np.ufunc) -> Callable[..., Any]:
    """np.any and np.all."""

    def rule(t: Tracer, a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, *, where: Any = True) -> Any:
        where = True if where is NOTHING else where
        return reduce_ufunc(t, ufunc, t.as_array(a), axis, None, out, keepdims, NOTHING, where)

    return rule


def running(ufunc: np.ufunc) -> Callable[..., Any]:
    """np.cumsum and np.cumprod."""

    def rule(t: Tracer, a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
        array = t.as_array(a)
        if axis is None:
            array, axis = np.ravel(array), 0
        return accumulate_ufunc(t, ufunc, array, axis, dtype, out)

    return rule


def working_dtype(dtype: DType, asked: Any = None) -> DType:
    """In which dtype NumPy adds up a mean."""
    if asked is not None and asked is not NOTHING:
        return dtype_of(asked)
    if not dtype.is_float:
        return F64
    return F32 if dtype in (F16, BF16) else dtype


def _count(t: Tracer, node: Node, axes: tuple[int, ...], where: Any, keep: bool) -> Any:
    """How many elements each result counts: a size, or a value where a mask decides."""
    if where is True or where is NOTHING:
        return product(node.shape[a] for a in axes)
    condition = np.broadcast_to(t.as_array(where), t.sizes(node.shape))
    return np.sum(condition, axis=axes, keepdims=keep, dtype=np.int64)


def _divided(t: Tracer, total: Any, count: Any, dtype: DType) -> Node:
    divisor = library.size_value(t.b, count, dtype) if not isinstance(count, TracedArray) else t.node(count, dtype)
    return library.apply(t.b, "div", t.node(total, dtype), divisor)


def mean(t: Tracer, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, *,
         where: Any = True) -> Any:  # fmt: skip
    array = t.as_array(a)
    node = t.node(array)
    axes, keep = normalize_axes(axis, node.rank), keepdims is not NOTHING and bool(keepdims)
    work = working_dtype(node.dtype, dtype)
    where = True if where is NOTHING else where
    total = reduce_ufunc(t, np.add, array, axes, work.numpy, None, keep, NOTHING, where)
    value = _divided(t, total, _count(t, node, axes, where, keep), work)
    asked = dtype is not None and dtype is not NOTHING
    value = library.cast(t.b, value, dtype_of(dtype) if asked else node.dtype if node.dtype.is_float else F64)
    return store(t, t.array(value, scalar=not value.rank), out, "unsafe")


def variance(t: Tracer, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False,
             *, where: Any = True, mean: Any = NOTHING, correction: Any = NOTHING) -> Any:  # fmt: skip
    value = _variance(t, a, axis, dtype, ddof if correction is NOTHING else correction, keepdims, where, mean)
    return store(t, t.array(value, scalar=not value.rank), out, "unsafe")


def deviation(t: Tracer, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False,
              *, where: Any = True, mean: Any = NOTHING, correction: Any = NOTHING) -> Any:  # fmt: skip
    value = _variance(t, a, axis, dtype, ddof if correction is NOTHING else correction, keepdims, where, mean, root=True)
    return store(t, t.array(value, scalar=not value.rank), out, "unsafe")


def _variance(t: Tracer, a: Any, axis: Any, dtype: Any, ddof: Any, keepdims: Any, where: Any, given: Any,
              root: bool = False) -> Node:  # fmt: skip
    array = t.as_array(a)
    node = t.node(array)
    axes, keep = normalize_axes(axis, node.rank), keepdims is not NOTHING and bool(keepdims)
    work = working_dtype(node.dtype, dtype)
    wide = t.array(library.cast(t.b, node, work))
    where = True if where is NOTHING else where
    if given is NOTHING:
        total = reduce_ufunc(t, np.add, wide, axes, None, None, True, NOTHING, where)
        given = t.array(_divided(t, total, _count(t, node, axes, where, True), work))
    centred = wide - given
    total = reduce_ufunc(t, np.add, np.square(centred), axes, None, None, keep, NOTHING, where)
    count = _count(t, node, axes, where, keep)
    if isinstance(count, TracedArray):
        left: Any = np.maximum(count.astype(work.numpy) - ddof, 0)
    else:
        left = np.maximum(t.array(library.size_value(t.b, count, work)) - ddof, 0) if not isinstance(count, int) else max(count - ddof, 0)
    divisor = t.node(left, work)
    value = library.apply(t.b, "div", t.node(total, work), divisor)
    value = library.scalar(t.b, "sqrt", value) if root else value
    asked = dtype is not None and dtype is not NOTHING
    return library.cast(t.b, value, dtype_of(dtype) if asked else node.dtype if node.dtype.is_float else F64)


def arg_extremum(kind: str) -> Callable[..., Any]:
    """np.argmax and np.argmin."""

    def rule(t: Tracer, a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        array = t.as_array(a)
        rank, keep = array.ndim, keepdims is not NOTHING and bool(keepdims)
        flat = array if axis is not None and rank else np.reshape(array, -1)
        (place,) = normalize_axes(axis, rank) if axis is not None and rank else (0,)
        node = t.node(flat)
        if node.shape[place] == 0:
            raise TraceValueError(f"attempt to get arg{kind} of an empty sequence")
        value = t.b.add(ArgReduce(kind, place), node)
        if keep:
            value = library.expand(t.b, value, (place,) if axis is not None else range(rank))
        return store(t, t.array(value, scalar=not value.rank), out)

    return rule


def ptp(t: Tracer, a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    keep = keepdims is not NOTHING and bool(keepdims)
    return store(t, np.max(a, axis=axis, keepdims=keep) - np.min(a, axis=axis, keepdims=keep), out)


def count_nonzero(t: Tracer, a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    return np.sum(t.as_array(a).astype(np.bool_), axis=axis, dtype=np.int64, keepdims=keepdims)


def average(t: Tracer, a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: Any = False) -> Any:
    array, keep = t.as_array(a), keepdims is not NOTHING and bool(keepdims)
    if weights is None:
        value = np.mean(array, axis=axis, keepdims=keep)
        count = product(array.dims[i] for i in normalize_axes(axis, array.ndim))
        scale = np.zeros_like(value) + t.array(library.size_value(t.b, count, value.type.dtype))
        return (value, scale) if returned else value
    shares = t.as_array(weights)
    dtype = np.result_type(array.dtype, shares.dtype, *(() if array.dtype.kind == "f" else (np.float64,)))
    if shares.ndim != array.ndim:
        (place,) = normalize_axes(axis, array.ndim)
        if shares.ndim != 1:
            raise TraceTypeError("average: weights must be 1-D or of the array's shape")
        shares = np.reshape(shares, (-1, *(1,) * (array.ndim - 1 - place)))
    shares = np.broadcast_to(shares, array.shape).astype(dtype)
    scale = np.sum(shares, axis=axis, keepdims=keep)
    value = np.sum(array * shares, axis=axis, dtype=dtype, keepdims=keep) / scale
    return (value, scale) if returned else value


# --- NaN-ignoring forms ----------------------------------------------------------------------------------------------


def without_nan(function: Callable[..., Any], fill: Any) -> Callable[..., Any]:
    """nansum, nanprod, nancumsum, ...: NaN replaced by what does not count."""

    def rule(t: Tracer, a: Any, *args: Any, **kwargs: Any) -> Any:
        array = t.as_array(a)
        if array.dtype.kind in "fV":
            array = np.where(np.isnan(array), np.asarray(fill, dtype=array.dtype), array)
        return function(array, *args, **kwargs)

    return rule


def _present(array: Any, where: Any) -> Any:
    present = ~np.isnan(array)
    return present if where is True or where is NOTHING else present & where


def nanmean(t: Tracer, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, *,
            where: Any = True) -> Any:  # fmt: skip
    array = t.as_array(a)
    return np.mean(array, axis=axis, dtype=dtype, out=out, keepdims=keepdims, where=_present(array, where))


def nanvar(t: Tracer, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False,
           **rest: Any) -> Any:  # fmt: skip
    return _nan_spread(t, np.var, a, axis, dtype, out, ddof, keepdims, **rest)


def nanstd(t: Tracer, a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False,
           **rest: Any) -> Any:  # fmt: skip
    return _nan_spread(t, np.std, a, axis, dtype, out, ddof, keepdims, **rest)


def _nan_spread(t: Tracer, function: Any, a: Any, axis: Any, dtype: Any, out: Any, ddof: Any, keepdims: Any, *,
                where: Any = True, mean: Any = NOTHING, correction: Any = NOTHING) -> Any:  # fmt: skip
    """NumPy gives NaN, not infinity, where as many values are left as `ddof` takes away, or fewer."""
    array = t.as_array(a)
    present = _present(array, where)
    ddof = ddof if correction is NOTHING else correction
    extra = {} if mean is NOTHING else {"mean": mean}
    value = function(array, axis=axis, dtype=dtype, ddof=ddof, keepdims=keepdims, where=present, **extra)
    enough = np.sum(present, axis=axis, keepdims=keepdims) > ddof
    return store(t, np.where(enough, value, np.asarray(np.nan, dtype=value.dtype)), out)


def nan_extremum(ufunc: np.ufunc) -> Callable[..., Any]:
    """nanmax and nanmin."""

    def rule(t: Tracer, a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, initial: Any = NOTHING,
             where: Any = True) -> Any:  # fmt: skip
        return reduce_ufunc(t, ufunc, t.as_array(a), axis, None, out, keepdims, initial, where)

    return rule


def nan_arg_extremum(function: Callable[..., Any], fill: float) -> Callable[..., Any]:
    """nanargmax and nanargmin (NumPy refuses all-NaN slices; here they give 0)."""

    def rule(t: Tracer, a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        array = t.as_array(a)
        if array.dtype.kind in "fV":
            array = np.where(np.isnan(array), np.asarray(fill, dtype=array.dtype), array)
        return store(t, function(array, axis=axis, keepdims=keepdims is not NOTHING and bool(keepdims)), out)

    return rule


# --- order -----------------------------------------------------------------------------------------------------------


def _flat_or_axis(t: Tracer, a: Any, axis: Any) -> tuple[Any, int]:
    array = t.as_array(a)
    if axis is None:
        return np.reshape(array, -1), 0
    return array, normalize_axes(axis, array.ndim)[0]


def _check_order(order: Any) -> None:
    if order is not None:
        raise TraceValueError("Cannot specify order when the array has no fields")


def sort(t: Tracer, a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    _check_order(order)
    array, place = _flat_or_axis(t, a, axis)
    return t.array(t.b.add(Sort(place), t.node(array)))


def argsort(t: Tracer, a: Any, axis: Any = -1, kind: Any = None, order: Any = None, *, stable: Any = None) -> Any:
    """Equal elements keep their order, as NumPy's stable sort has it; its default kind leaves that open."""
    _check_order(order)
    array, place = _flat_or_axis(t, a, axis)
    return t.array(t.b.add(ArgSort(place), t.node(array)))


def partition(t: Tracer, a: Any, kth: Any, axis: Any = -1, kind: str = "introselect", order: Any = None) -> Any:
    """A full sort is a partition."""
    return sort(t, a, axis, None, order)


def argpartition(t: Tracer, a: Any, kth: Any, axis: Any = -1, kind: str = "introselect", order: Any = None) -> Any:
    return argsort(t, a, axis, None, order)


def lexsort(t: Tracer, keys: Any, axis: Any = -1) -> Any:
    """The last key decides first: stable sorts from the first key to the last."""
    listed = [t.as_array(k) for k in (keys if isinstance(keys, (tuple, list)) else list(keys))]
    places = np.argsort(listed[0], axis=axis, kind="stable")
    for key in listed[1:]:
        inner = np.argsort(np.take_along_axis(key, places, axis), axis=axis, kind="stable")
        places = np.take_along_axis(places, inner, axis)
    return places


def searchsorted(t: Tracer, a: Any, v: Any, side: str = "left", sorter: Any = None) -> Any:
    """The count of elements below each value (`right`: not above), which is the place in a sorted array."""
    table = t.as_array(a)
    if sorter is not None:
        table = np.take(table, sorter)
    values = t.as_array(v)
    if side not in ("left", "right"):
        raise TraceValueError(f"search side must be 'left' or 'right' (got '{side}')")
    wide = np.expand_dims(values, -1)
    before = ~(table >= wide) & ~np.isnan(table) if side == "left" else ~(table > wide) & ~np.isnan(table)
    unordered = np.isnan(wide)
    before = before | (unordered & (~np.isnan(table) if side == "left" else np.ones_like(table, dtype=bool)))
    return np.sum(before, axis=-1, dtype=np.int64)


def digitize(t: Tracer, x: Any, bins: Any, right: bool = False) -> Any:
    if isinstance(bins, TracedArray):
        raise TraceTypeError("digitize with traced bins: their direction is data", hint="use np.searchsorted(bins, x)")
    edges = np.asarray(bins)
    steps = np.diff(edges)
    if not ((steps >= 0).all() or (steps <= 0).all()):
        raise TraceValueError("bins must be monotonically increasing or decreasing")
    if (steps < 0).any():
        return len(edges) - searchsorted(t, edges[::-1], x, "left" if not right else "right")
    return searchsorted(t, edges, x, "left" if right else "right")


# --- quantiles -------------------------------------------------------------------------------------------------------


def median(t: Tracer, a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: bool = False) -> Any:
    array, restore = _one_axis(t, a, axis)
    ordered = np.sort(array, axis=-1)
    size = array.shape[-1]
    low, high = (size - 1) // 2, size // 2
    work = np.float64 if array.dtype.kind in "iub" else array.dtype
    parts = np.stack([ordered[..., low], ordered[..., high]])
    value = np.mean(parts, axis=0, dtype=np.float32 if np.dtype(work).itemsize == 2 else work).astype(work)
    last = ordered[..., -1]
    if array.dtype.kind in "fV":
        value = np.where(np.isnan(last), last, value)
    return store(t, restore(value, bool(keepdims)), out)


def _one_axis(t: Tracer, a: Any, axis: Any) -> tuple[Any, Callable[..., Any]]:
    """The array with the axes moved to the end and merged, and what puts them back with size 1."""
    array = t.as_array(a)
    axes = normalize_axes(axis, array.ndim)
    rest = [i for i in range(array.ndim) if i not in axes]
    moved = np.transpose(array, [*rest, *axes])
    extent: DimLike = product(array.dims[i] for i in axes)
    merged = np.reshape(moved, (*(array.shape[i] for i in rest), *t.sizes((extent,))))

    def restore(value: Any, keep: bool, leading: int = 0) -> Any:
        return np.expand_dims(value, tuple(i + leading for i in axes)) if keep else value

    return merged, restore


def quantile(t: Tracer, a: Any, q: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False,
             method: str = "linear", keepdims: bool = False, *, weights: Any = None, interpolation: Any = None) -> Any:  # fmt: skip
    if weights is not None:
        raise TraceTypeError("quantile: weights are not supported on traced arrays")
    if method not in _QUANTILE_METHODS:
        raise TraceValueError(f"quantile: method {method!r} is not supported", hint=f"use {', '.join(_QUANTILE_METHODS)}")
    array, restore = _one_axis(t, a, axis)
    if type(q) in (int, float) and array.dtype.kind == "f":
        q = np.asarray(q, dtype=array.dtype)
    points = q if isinstance(q, TracedArray) else np.asarray(q)
    if not isinstance(points, TracedArray) and ((points < 0).any() or (points > 1).any()):
        raise TraceValueError("Quantiles must be in the range [0, 1]")
    result = _interpolated(t, array, np.sort(array, axis=-1), points, method)
    return store(t, restore(result, bool(keepdims), points.ndim), out)


_QUANTILE_METHODS = ("linear", "lower", "higher", "nearest", "midpoint")


def _interpolated(t: Tracer, array: Any, ordered: Any, points: Any, method: str) -> Any:
    """Places in the sorted values; arithmetic and dtypes are those of NumPy's `_quantile`."""
    points = points.astype(np.float64) if points.dtype.kind in "iub" else points
    size = array.shape[-1]
    if isinstance(points, TracedArray) or not isinstance(size, int):
        place = t.as_array(points) * t.array(t.node(size - 1, t.as_array(points).type.dtype))
    else:
        place = points * points.dtype.type(size - 1)
    if method == "nearest":
        return _picked(t, ordered, np.rint(place), points, array)
    if method in ("lower", "higher"):
        return _picked(t, ordered, np.floor(place) if method == "lower" else np.ceil(place), points, array)
    below = np.floor(place)
    share = t.as_array(place - below)[(..., *(None,) * (array.ndim - 1))]
    low, high = _picked(t, ordered, below, points, array), _picked(t, ordered, np.minimum(below + 1, place * 0 + (size - 1)), points, array)
    if method == "midpoint":
        share = np.where(share > 0, np.asarray(0.5, share.dtype), np.asarray(0, share.dtype))
    gap = high - low
    rising = low + gap * share
    result = np.where(share >= 0.5, (high - gap * (1 - share)).astype(rising.dtype), rising)
    return np.where(np.isnan(ordered[..., -1]), np.asarray(np.nan, result.dtype), result) if array.dtype.kind == "f" else result


def _picked(t: Tracer, ordered: Any, place: Any, points: Any, array: Any) -> Any:
    """The sorted values at these places, with the axes of `points` in front."""
    rank = array.ndim - 1
    value = np.take(ordered, t.as_array(place).astype(np.int64), axis=-1)
    value = np.moveaxis(value, tuple(range(rank, rank + points.ndim)), tuple(range(points.ndim)))
    if array.dtype.kind == "f":
        last = ordered[..., -1]
        value = np.where(np.isnan(last), last, value)
    return value


def percentile(t: Tracer, a: Any, q: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False,
               method: str = "linear", keepdims: bool = False, *, weights: Any = None, interpolation: Any = None) -> Any:  # fmt: skip
    kind = t.as_array(a).dtype
    share = np.true_divide(q, kind.type(100) if kind.kind == "f" else 100)
    return quantile(t, a, share, axis, out, overwrite_input, method, keepdims, weights=weights)


def clip(t: Tracer, a: Any, a_min: Any = NOTHING, a_max: Any = NOTHING, out: Any = None, *, min: Any = NOTHING,
         max: Any = NOTHING, dtype: Any = None, **kwargs: Any) -> Any:  # fmt: skip
    low = next((v for v in (a_min, min) if v is not NOTHING and v is not None), None)
    high = next((v for v in (a_max, max) if v is not NOTHING and v is not None), None)
    kinds = [promotion_type(v) for v in (a, low, high) if v is not None]
    loop = resolve_loop(_CLIPPING[len(kinds)], kinds, dtype, "same_kind", None)[0] if len(kinds) > 1 else t.node(a).dtype
    for bound in (low, high):
        check_integer(bound, loop)
    value = t.node(a, loop)
    for function, bound in (("max", low), ("min", high)):
        if bound is not None:
            shape = t.broadcast_shapes(value.shape, t.node(bound).shape)
            value = library.apply(t.b, function, library.broadcast(t.b, value, shape), t.node(bound, loop))
    return store(t, t.array(value, scalar=not value.rank), out, "same_kind")


# the ufunc whose loop NumPy takes, by the number of operands
_CLIPPING: dict[int, np.ufunc] = {2: np.minimum, 3: getattr(umath, "clip")}  # noqa: B009 (its stub lacks it)
