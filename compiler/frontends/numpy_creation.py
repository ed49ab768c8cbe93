"""NumPy's functions that make arrays: diagonals, triangles, grids, and zeros, ones, ranges `like` a traced array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import library
from ..ir.dims import DimLike, dim_min
from ..ir.ops.shape import Iota, Take
from ..ir.types import I64, dtype_of
from .numpy_errors import TraceTypeError, TraceValueError
from .numpy_joining import pad, stack
from .numpy_shaping import astype, broadcast_arrays, broadcast_to, copy_of, dims_of, ravel, reshape
from .numpy_tracer import TracedArray, Tracer, as_dim
from .numpy_ufuncs import check_integer, normalize_axes, promotion_type

# --- diagonals and triangles -----------------------------------------------------------------------------------------


def diagonal(t: Tracer, a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """Read through the flattened matrix: the places of a diagonal are a row's size plus one apart."""
    array = t.as_array(a)
    i, j = normalize_axes(axis1, array.ndim)[0], normalize_axes(axis2, array.ndim)[0]
    if i == j:
        raise TraceValueError("axis1 and axis2 cannot be the same")
    rest = [k for k in range(array.ndim) if k not in (i, j)]
    moved = library.transpose(t.b, t.node(array), [*rest, i, j])
    rows, columns = moved.shape[-2:]
    first = (0, offset) if offset >= 0 else (-offset, 0)
    size = _diagonal_size(rows, columns, first)
    flat = library.reshape(t.b, moved, (*moved.shape[:-2], rows * columns))
    start = first[0] * columns + first[1]
    if isinstance(columns, int):
        result = t.array(library.slice_axis(t.b, flat, flat.rank - 1, start if size != 0 else 0, size, columns + 1))
    else:
        count = t.b.add(Iota(I64, (size,), 0))
        stride = library.size_value(t.b, columns + 1)
        places = library.apply(t.b, "add", library.apply(t.b, "mul", count, stride), library.size_value(t.b, start))
        result = t.array(t.b.add(Take(flat.rank - 1), flat, places))
    result.storage.frozen = "assignment destination is read-only: NumPy's diagonal is"
    return result


def _diagonal_size(rows: DimLike, columns: DimLike, first: tuple[int, int]) -> DimLike:
    height, width = rows - dim_min(rows, first[0]), columns - dim_min(columns, first[1])
    return dim_min(height, width)


def trace(t: Tracer, a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1, dtype: Any = None, out: Any = None) -> Any:
    return np.sum(diagonal(t, a, offset, axis1, axis2), axis=-1, dtype=dtype, out=out)


def diag(t: Tracer, v: Any, k: int = 0) -> Any:
    array = t.as_array(v)
    if array.ndim == 2:
        return diagonal(t, array, k)
    if array.ndim != 1:
        raise TraceValueError("Input must be 1- or 2-d.")
    (size,) = array.shape
    places = np.arange(size, like=array)
    at = places[:, None] == places[None, :]
    square = np.where(at, array[:, None], np.zeros((), dtype=array.dtype))
    return pad(t, square, ((max(-k, 0), max(k, 0)), (max(k, 0), max(-k, 0)))) if k else square


def diagflat(t: Tracer, v: Any, k: int = 0) -> Any:
    return diag(t, ravel(t, t.as_array(v)), k)


def _triangle(t: Tracer, array: TracedArray, k: int) -> Any:
    rows, columns = array.shape[-2:]
    down, across = np.arange(rows, like=array)[:, None], np.arange(columns, like=array)[None, :]
    return across - down <= k


def tril(t: Tracer, m: Any, k: int = 0) -> Any:
    array = _as_matrix(t, m)
    return np.where(_triangle(t, array, k), array, np.zeros((), dtype=array.dtype))


def triu(t: Tracer, m: Any, k: int = 0) -> Any:
    array = _as_matrix(t, m)
    return np.where(_triangle(t, array, k - 1), np.zeros((), dtype=array.dtype), array)


def _as_matrix(t: Tracer, m: Any) -> Any:
    array = t.as_array(m)
    return array if array.ndim >= 2 else broadcast_to(t, array, (array.shape[0], array.shape[0]))


def fill_diagonal(t: Tracer, a: Any, val: Any, wrap: bool = False) -> None:
    if not isinstance(a, TracedArray) or a.ndim < 2:
        raise TraceValueError("array must be at least 2-d (and traced: make it with np.zeros_like(x))")
    if wrap or a.ndim > 2:
        raise TraceTypeError("fill_diagonal: wrap and more than two dimensions are not supported")
    size = _diagonal_size(a.dims[0], a.dims[1], (0, 0))
    places = np.arange(t.sizes((size,))[0], like=a)
    values = np.ravel(t.as_array(val))
    a[places, places] = np.take(values, np.remainder(places, values.shape[0]))


# --- creation --------------------------------------------------------------------------------------------------------


def _filled(t: Tracer, value: Any, shape: tuple[DimLike, ...], dtype: Any) -> TracedArray:
    kind = dtype_of(dtype)
    check_integer(value, kind)
    return t.array(library.broadcast(t.b, t.node(value, kind), shape))


def filled_like(value: Any) -> Callable[..., Any]:
    """zeros_like, ones_like, empty_like (zeros)."""

    def rule(t: Tracer, a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, *,
             device: Any = None) -> Any:  # fmt: skip
        array = t.as_array(a)
        return _filled(t, value, array.dims if shape is None else dims_of(t, shape), dtype or array.dtype)

    return rule


def full_like(t: Tracer, a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, *,
              device: Any = None) -> Any:  # fmt: skip
    array = t.as_array(a)
    return _filled(t, fill_value, array.dims if shape is None else dims_of(t, shape), dtype or array.dtype)


def filled(value: Any) -> Callable[..., Any]:
    """np.zeros, np.ones, np.empty with like=."""

    def rule(t: Tracer, shape: Any, dtype: Any = None, order: str = "C", *, device: Any = None) -> Any:
        return _filled(t, value, dims_of(t, shape), np.float64 if dtype is None else dtype)

    return rule


def full(t: Tracer, shape: Any, fill_value: Any, dtype: Any = None, order: str = "C", *, device: Any = None) -> Any:
    kind = promotion_type(fill_value) if dtype is None else dtype
    return _filled(t, fill_value, dims_of(t, shape), kind)


def arange(t: Tracer, *args: Any, dtype: Any = None, device: Any = None, start: Any = None, stop: Any = None, step: Any = None) -> Any:
    """np.arange with like=: integer bounds, which may be sizes."""
    listed = [*args] if stop is None else [0 if start is None else start, stop, *([] if step is None else [step])]
    dims = [d for d in map(as_dim, listed) if d is not None]
    if len(dims) < len(listed):
        if any(isinstance(v, TracedArray) for v in listed):
            raise TraceTypeError("arange with traced bounds: the size of the result is data", hint="use sizes and numbers")
        return t.as_array(np.arange(*listed, dtype=dtype))
    first, last, by = (dims[0], dims[1], dims[2] if len(dims) > 2 else 1) if len(dims) > 1 else (0, dims[0], 1)
    if not isinstance(by, int) or by == 0:
        raise TraceValueError("arange: the step must be a number other than zero")
    low, high = (first, last) if by > 0 else (last, first)
    count = (high - dim_min(low, high) + abs(by) - 1) // abs(by)
    node = t.b.add(Iota(I64, (count,), 0))
    if by != 1:
        node = library.apply(t.b, "mul", node, library.constant(t.b, by, I64))
    if first != 0:
        node = library.apply(t.b, "add", node, library.size_value(t.b, first))
    return t.array(node if dtype is None else library.cast(t.b, node, dtype_of(dtype)))


def identity_matrix(t: Tracer, N: Any, M: Any = None, k: int = 0, dtype: Any = float, order: str = "C", *,
                    device: Any = None) -> Any:  # fmt: skip
    """np.eye with like=."""
    rows, columns = t.sizes(dims_of(t, N))[0], t.sizes(dims_of(t, N if M is None else M))[0]
    down, across = arange(t, rows)[:, None], arange(t, columns)[None, :]
    return (across - down == k).astype(dtype)


def as_traced(t: Tracer, a: Any, dtype: Any = None, *args: Any, copy: Any = None, **kwargs: Any) -> Any:
    """np.asarray and its like with like=."""
    if isinstance(a, (list, tuple)):
        a = stack(t, [as_traced(t, v) for v in a])
    array = t.as_array(a)
    array = copy_of(t, array) if copy else array
    return array if dtype is None or np.dtype(dtype) == array.dtype else astype(t, array, dtype)


def as_traced_copy(t: Tracer, a: Any, dtype: Any = None, *args: Any, copy: Any = True, **kwargs: Any) -> Any:
    """np.array with like=."""
    return as_traced(t, a, dtype, copy=copy)


def linspace(t: Tracer, start: Any, stop: Any, num: Any = 50, endpoint: bool = True, retstep: bool = False, dtype: Any = None,
             axis: int = 0, *, device: Any = None) -> Any:  # fmt: skip
    low, high = t.as_array(start), t.as_array(stop)
    if not isinstance(num, (int, np.integer)):
        raise TraceTypeError(f"linspace: the number of samples must be an integer, found {num!r}")
    parts = int(num) - 1 if endpoint else int(num)
    kind = np.result_type(low.dtype, high.dtype, 0.0)
    low, high = low.astype(kind), high.astype(kind)
    gap = high - low
    step = gap / parts if parts > 0 else gap * np.nan
    count = np.arange(int(num), dtype=kind).reshape(-1, *(1,) * gap.ndim)
    values = t.as_array(count) * step + low if parts > 0 else t.as_array(count) * gap + low
    if endpoint and num > 1:
        values[-1] = high
    values = np.moveaxis(values, 0, axis) if axis else values
    if dtype is not None:
        values = (np.floor(values) if np.dtype(dtype).kind in "iu" else values).astype(dtype)
    return (values, step) if retstep else values


def meshgrid(t: Tracer, *xi: Any, copy: bool = True, sparse: bool = False, indexing: str = "xy") -> Any:
    if indexing not in ("xy", "ij"):
        raise TraceValueError("Valid values for `indexing` are 'xy' and 'ij'.")
    rank = len(xi)
    grids = []
    for place, x in enumerate(xi):
        spot = {0: 1, 1: 0}.get(place, place) if indexing == "xy" and rank > 1 else place
        grids.append(reshape(t, t.as_array(x), tuple(-1 if i == spot else 1 for i in range(rank))))
    if not sparse:
        grids = list(broadcast_arrays(t, *grids))
    return tuple(copy_of(t, g) for g in grids) if copy else tuple(grids)
