"""NumPy's functions that take and choose elements by indices and conditions, on traced arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import library
from ..ir.dims import DimLike
from ..ir.graph import Node
from ..ir.ops.shape import Take, TakeAlong
from ..ir.types import BOOL, I64, dtype_of
from .numpy_errors import TraceTypeError, TraceValueError
from .numpy_indexing import concrete_indices
from .numpy_joining import stack
from .numpy_shaping import broadcast_to, ravel, reshape
from .numpy_tracer import Size, TracedArray, Tracer
from .numpy_ufuncs import check_integer, normalize_axes, promotion_type, store, weak_sample

# --- taking ----------------------------------------------------------------------------------------------------------


def take(t: Tracer, a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Any:
    array = t.as_array(a)
    if axis is None:
        array, axis = ravel(t, array), 0
    place = normalize_axes(axis, array.ndim)[0]
    size = array.dims[place]
    index = _indices(t, indices, size, place, mode)
    value = t.array(t.b.add(Take(place), t.node(array), index))
    value.scalar = not value.ndim
    return store(t, value, out)


def _indices(t: Tracer, indices: Any, size: DimLike, axis: int, mode: str) -> Node:
    if isinstance(indices, (list, tuple)) and any(isinstance(i, (TracedArray, Size)) for i in indices):
        indices = np.stack([t.as_array(i) for i in indices])
    if isinstance(indices, Size):
        indices = t.array(t.node(indices))
    if not isinstance(indices, TracedArray):
        indices = np.asarray(indices)
        indices = indices.astype(np.int64) if not indices.size else indices
    if indices.dtype.kind not in "iu":
        raise TraceTypeError(f"Cannot cast array data from {indices.dtype} to int64 according to the rule 'safe'",
                             hint="indices must be integers: convert them with astype(np.int64)")  # fmt: skip
    if mode == "raise" and not isinstance(indices, TracedArray):
        return concrete_indices(t, indices, size, axis)
    node = t.node(indices)
    if mode == "raise":
        return library.wrap_indices(t.b, node, size)
    node = library.cast(t.b, node, I64)
    extent = library.size_value(t.b, size)
    if mode == "wrap":
        return library.apply(t.b, "mod", node, extent)
    if mode != "clip":
        raise TraceValueError(f"mode must be 'raise', 'wrap' or 'clip', found {mode!r}")
    last = library.apply(t.b, "sub", extent, library.constant(t.b, 1, I64))
    return library.apply(t.b, "max", library.apply(t.b, "min", node, last), library.constant(t.b, 0, I64))


def take_along_axis(t: Tracer, arr: Any, indices: Any, axis: Any = -1) -> Any:
    array, places = t.as_array(arr), t.as_array(indices)
    if axis is None:
        array, axis = ravel(t, array), 0
    if places.dtype.kind not in "iu":
        raise IndexError("`indices` must be an integer array")
    if array.ndim != places.ndim:
        raise TraceValueError("`indices` and `arr` must have the same number of dimensions")
    place = normalize_axes(axis, array.ndim)[0]
    grid = t.broadcast_shapes(*([n for i, n in enumerate(v.dims) if i != place] for v in (array, places)))
    left = (*grid[:place], array.dims[place], *grid[place:])
    right = (*grid[:place], places.dims[place], *grid[place:])
    wrapped = library.wrap_indices(t.b, t.node(places), array.dims[place])
    op = TakeAlong(place)
    return t.array(t.b.add(op, library.broadcast(t.b, t.node(array), left), library.broadcast(t.b, wrapped, right)))


def put_along_axis(t: Tracer, arr: Any, indices: Any, values: Any, axis: Any) -> None:
    if not isinstance(arr, TracedArray):
        raise TraceTypeError("put_along_axis into a concrete array", hint="make it with np.zeros_like(x)")
    target, places = (arr if axis is not None else reshape(t, arr, -1)), t.as_array(indices)
    place = normalize_axes(0 if axis is None else axis, target.ndim)[0]
    target[_grid_key(t, places, target.ndim, place)] = values


def _grid_key(t: Tracer, places: TracedArray, rank: int, axis: int) -> tuple[Any, ...]:
    def count(i: int) -> Any:
        return np.arange(places.shape[i], like=places)[(slice(None), *(None,) * (rank - 1 - i))]

    return tuple(places if i == axis else count(i) for i in range(rank))


def choose(t: Tracer, a: Any, choices: Any, out: Any = None, mode: str = "raise") -> Any:
    if isinstance(choices, (TracedArray, np.ndarray)):
        choices = [choices[i] for i in range(len(choices))]
    arrays = [t.as_array(c) for c in choices]
    shape = t.sizes(t.broadcast_shapes(t.as_array(a).dims, *(c.dims for c in arrays)))
    table = stack(t, [broadcast_to(t, c, shape) for c in arrays])
    index = broadcast_to(t, t.as_array(a), shape)
    index = t.array(_indices(t, index, len(arrays), 0, mode))
    return store(t, take_along_axis(t, table, index[None], 0)[0], out)


def compress(t: Tracer, condition: Any, a: Any, axis: Any = None, out: Any = None) -> Any:
    if isinstance(condition, TracedArray):
        raise TraceTypeError("compress with a traced condition: the size of the result is data", hint="use np.where")
    return take(t, a, np.nonzero(np.asarray(condition))[0], axis, out)


def where(t: Tracer, condition: Any, x: Any = None, y: Any = None, /) -> Any:
    if x is None and y is None:
        raise TraceTypeError("np.where(condition) alone: the number of places depends on the data",
                             hint="give both values: np.where(condition, a, b)")  # fmt: skip
    kinds = [promotion_type(v) for v in (x, y)]
    kind = _where_dtype(kinds)
    for value in (x, y):
        check_integer(value, kind)
    nodes = [t.node(condition, BOOL), t.node(x, kind), t.node(y, kind)]
    shape = t.broadcast_shapes(*(n.shape for n in nodes))
    return t.array(library.scalar(t.b, "select", *(library.broadcast(t.b, n, shape) for n in nodes)))


def _where_dtype(kinds: Sequence[Any]) -> Any:
    return dtype_of(np.result_type(*(weak_sample(k) for k in kinds)))
