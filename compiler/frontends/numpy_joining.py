"""NumPy's functions that join, split, repeat, roll and pad, on traced arrays; parts come as views where NumPy's do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .. import library
from ..ir.dims import dim_min, exact_quotient, product
from ..ir.ops.shape import Concat, Pad
from ..ir.types import dtype_of
from .numpy_errors import TraceError, TraceTypeError, TraceValueError
from .numpy_shaping import atleast, broadcast_to, copy_of, dims_of, moveaxis, ravel, reshape, swapaxes
from .numpy_tracer import Size, TracedArray, Tracer, as_dim, shape_text
from .numpy_ufuncs import check_integer, normalize_axes, promotion_type, store

# --- joining and splitting -------------------------------------------------------------------------------------------


def joined_dtype(values: Sequence[Any], dtype: Any, casting: Any = "same_kind") -> Any:
    kinds = [promotion_type(v) for v in values]
    if dtype is not None:
        for kind in kinds:
            if not np.can_cast(kind, dtype, casting):
                raise TraceTypeError(f"Cannot cast array data from {kind} to {np.dtype(dtype)} according to the rule '{casting}'")
        return dtype_of(dtype)
    return dtype_of(np.result_type(*(np.dtype(k) for k in kinds)))


def as_sequence(t: Tracer, arrays: Any) -> list[Any]:
    return list(arrays)


_EMPTY_AXIS = "can't extend empty axis {} using modes other than 'constant' or 'empty'"
_MISMATCH = "all the input array dimensions except for the concatenation axis must match exactly"


def concatenate(t: Tracer, arrays: Any, /, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: Any = "same_kind") -> Any:
    values = as_sequence(t, arrays)
    if not values:
        raise TraceValueError("need at least one array to concatenate")
    kind = joined_dtype(values, dtype, casting)
    nodes = [t.node(v, kind) for v in values]
    if axis is None:
        nodes = [library.reshape(t.b, n, (product(n.shape),)) for n in nodes]
        axis = 0
    if not nodes[0].rank:
        raise TraceValueError("zero-dimensional arrays cannot be concatenated", hint="use np.stack")
    place = normalize_axes(axis, nodes[0].rank)[0]
    for i, node in enumerate(nodes[1:], 1):
        if node.rank != nodes[0].rank:
            raise TraceValueError(f"{_MISMATCH}, but the array at index 0 has {nodes[0].rank} dimension(s) and the array at "
                                  f"index {i} has {node.rank}")  # fmt: skip
        for a, (m, n) in enumerate(zip(nodes[0].shape, node.shape)):
            if a != place:
                where = f"along dimension {a}, the array at index 0 has size {m} and the array at index {i} has size {n}"
                t.unify(m, n, f"{_MISMATCH}, but {where}")
    return store(t, t.array(nodes[0] if len(nodes) == 1 else t.b.add(Concat(place), *nodes)), out)


def stack(t: Tracer, arrays: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: Any = "same_kind") -> Any:
    values = as_sequence(t, arrays)
    if not values:
        raise TraceValueError("need at least one array to stack")
    kind = joined_dtype(values, dtype, casting)
    nodes = [t.node(v, kind) for v in values]
    for node in nodes[1:]:
        complaint = f"all input arrays must have the same shape: {shape_text(nodes[0].shape)} and {shape_text(node.shape)}"
        if node.rank != nodes[0].rank:
            raise TraceValueError(complaint)
        for m, n in zip(nodes[0].shape, node.shape):
            t.unify(m, n, complaint)
    place = np.lib.array_utils.normalize_axis_index(axis, nodes[0].rank + 1)
    made = [library.expand(t.b, n, (place,)) for n in nodes]
    return store(t, t.array(made[0] if len(made) == 1 else t.b.add(Concat(place), *made)), out)


def vstack(t: Tracer, tup: Any, *, dtype: Any = None, casting: Any = "same_kind") -> Any:
    return concatenate(t, [atleast(2)(t, a) for a in tup], 0, dtype=dtype, casting=casting)


def hstack(t: Tracer, tup: Any, *, dtype: Any = None, casting: Any = "same_kind") -> Any:
    values = [atleast(1)(t, a) for a in tup]
    return concatenate(t, values, 0 if values and values[0].ndim == 1 else 1, dtype=dtype, casting=casting)


def dstack(t: Tracer, tup: Any) -> Any:
    return concatenate(t, [atleast(3)(t, a) for a in tup], 2)


def column_stack(t: Tracer, tup: Any) -> Any:
    columns = [a if a.ndim >= 2 else reshape(t, a, (-1, 1)) for a in map(t.as_array, tup)]
    return concatenate(t, columns, 1)


def block(t: Tracer, arrays: Any) -> Any:
    depth, layer = 0, arrays
    while isinstance(layer, list):
        depth, layer = depth + 1, layer[0]
    rank = max(depth, *(t.as_array(a).ndim for a in _leaves(arrays)))

    def build(part: Any, level: int) -> Any:
        if isinstance(part, list):
            return concatenate(t, [build(p, level + 1) for p in part], rank - depth + level)
        array = t.as_array(part)
        return reshape(t, array, (*(1,) * (rank - array.ndim), *array.shape))

    return build(arrays, 0)


def _leaves(part: Any) -> list[Any]:
    return [leaf for p in part for leaf in _leaves(p)] if isinstance(part, list) else [part]


def array_split(t: Tracer, ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    return _split(t, t.as_array(ary), indices_or_sections, axis, even=False)


def split(t: Tracer, ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    return _split(t, t.as_array(ary), indices_or_sections, axis, even=True)


def _split(t: Tracer, array: TracedArray, parts: Any, axis: int, even: bool) -> list[Any]:
    place = normalize_axes(axis, array.ndim)[0]
    size = array.shape[place]
    if isinstance(parts, (tuple, list, np.ndarray)):
        edges: list[Any] = [0, *(p if isinstance(p, Size) else int(p) for p in parts), None]
    else:
        count = int(parts)
        if count <= 0:
            raise TraceValueError("number sections must be larger than 0.")
        if isinstance(size, Size) and not even:
            each, extra = size.dim // count, size.dim % count
            edges = list(t.sizes([each * i + dim_min(i, extra) for i in range(count + 1)]))
        elif isinstance(size, Size):
            if exact_quotient(size.dim, count) is None:
                t.make_divisible(size.dim, count)
                raise TraceError(f"split: that {count} divides the size {size} is not known at compile time",
                                 hint="declare it with tw.symbol(name, multiple_of=...), or give the edges")  # fmt: skip
            edges = [size // count * i for i in range(count + 1)]
        else:
            if even and size % count:
                raise TraceValueError("array split does not result in an equal division")
            each, extra = divmod(size, count)
            edges = [each * i + min(i, extra) for i in range(count + 1)]
    lead = (slice(None),) * place
    return [array[(*lead, slice(low, high))] for low, high in pairwise(edges)]


def split_along(axis: int) -> Callable[..., Any]:
    """hsplit, vsplit, dsplit."""

    def rule(t: Tracer, ary: Any, indices_or_sections: Any) -> Any:
        array = t.as_array(ary)
        if array.ndim <= (axis if axis != 1 else 0):
            raise TraceValueError(f"the array has {array.ndim} dimensions, too few to split along axis {axis}")
        return split(t, array, indices_or_sections, axis if array.ndim > 1 else 0)

    return rule


def unstack(t: Tracer, x: Any, /, *, axis: int = 0) -> Any:
    return tuple(moveaxis(t, x, axis, 0))


# --- repeating, rolling, padding -------------------------------------------------------------------------------------


def flip(t: Tracer, m: Any, axis: Any = None) -> Any:
    array = t.as_array(m)
    axes = normalize_axes(axis, array.ndim)
    return array[tuple(slice(None, None, -1 if i in axes else None) for i in range(array.ndim))]


def rot90(t: Tracer, m: Any, k: int = 1, axes: Any = (0, 1)) -> Any:
    array, (first, second), k = t.as_array(m), axes, k % 4
    if k == 0:
        return array[...]
    if k == 2:
        return flip(t, flip(t, array, first), second)
    if k == 1:
        return swapaxes(t, flip(t, array, second), first, second)
    return flip(t, swapaxes(t, array, first, second), second)


def roll(t: Tracer, a: Any, shift: Any, axis: Any = None) -> Any:
    array = t.as_array(a)
    if axis is None:
        return reshape(t, roll(t, ravel(t, array), shift, 0), array.shape)
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    shifts = shift if isinstance(shift, (tuple, list, np.ndarray)) else (shift,)
    for by, place in np.broadcast(np.asarray(shifts, dtype=object), np.asarray(axes)):
        array = _roll_one(t, array, by, normalize_axes(int(place), array.ndim)[0])
    return copy_of(t, array)


def _roll_one(t: Tracer, array: Any, by: Any, axis: int) -> Any:
    size, lead = array.shape[axis], (slice(None),) * axis
    if isinstance(by, TracedArray) or isinstance(size, Size) and not (isinstance(by, (int, np.integer)) and _within(int(by), size)):
        places = np.remainder(np.arange(size, like=array) - by, size)
        return np.take(array, places, axis=axis)
    by = int(by) % size if isinstance(size, int) and size else by
    if isinstance(size, int) and (not size or not by):
        return array
    edge = -by if isinstance(size, Size) else size - by
    return concatenate(t, [array[(*lead, slice(edge, None))], array[(*lead, slice(None, edge))]], axis)


def _within(by: int, size: Size) -> bool:
    """Whether a shift by so much needs no modulo for any size."""
    return bool(by) and dim_min(abs(by), size.dim) == abs(by)


def tile(t: Tracer, A: Any, reps: Any) -> Any:
    array = t.as_array(A)
    counts = dims_of(t, reps)
    counts = (*(1,) * (array.ndim - len(counts)), *counts)
    array = reshape(t, array, (*(1,) * (len(counts) - array.ndim), *array.shape))
    wide = reshape(t, array, tuple(n for size in array.shape for n in (1, size)))
    spread = tuple(n for count, size in zip(t.sizes(counts), array.shape) for n in (count, size))
    full = copy_of(t, broadcast_to(t, wide, spread))
    return reshape(t, full, tuple(c * n for c, n in zip(t.sizes(counts), array.shape)))


def repeat(t: Tracer, a: Any, repeats: Any, axis: Any = None) -> Any:
    array = t.as_array(a)
    if axis is None:
        array, axis = ravel(t, array), 0
    place = normalize_axes(axis, array.ndim)[0]
    if isinstance(repeats, TracedArray):
        raise TraceTypeError("repeat with traced counts: the size of the result is data", hint="use counts known at compile time")
    count = as_dim(repeats)
    if count is None:
        listed = np.asarray(repeats)
        if listed.size != 1:
            t.unify(array.dims[place], len(listed), f"operands could not be broadcast together with shape ({array.dims[place]},) "
                    f"({len(listed)},): one count for each place of axis {place}")  # fmt: skip
            places = np.repeat(np.arange(len(listed)), listed)
            return np.take(array, places, axis=place)
        count = int(listed.reshape(-1)[0])
    lead, (size,) = array.shape[:place], t.sizes((count,))
    wide = np.expand_dims(array, place + 1)
    full = copy_of(t, broadcast_to(t, wide, (*lead, array.shape[place], size, *array.shape[place + 1 :])))
    return reshape(t, full, (*lead, array.shape[place] * size, *array.shape[place + 1 :]))


def pad(t: Tracer, array: Any, pad_width: Any, mode: Any = "constant", **options: Any) -> Any:
    source = t.as_array(array)
    widths = _pad_widths(pad_width, source.ndim)
    if not isinstance(mode, str) or mode not in ("constant", "edge", "reflect", "symmetric", "wrap", "empty"):
        raise TraceValueError(f"pad: mode {mode!r} is not supported", hint="use constant, edge, reflect, symmetric or wrap")
    if mode in ("constant", "empty"):
        return _pad_constant(t, source, widths, options.get("constant_values", 0))
    if options.get("reflect_type", "even") != "even":
        raise TraceValueError("pad: reflect_type='odd' is not supported")
    for axis, (low, high) in enumerate(widths):
        if (low or high) and mode == "edge":
            source = _pad_edges(source, axis, low, high)
        elif low or high:
            places = _pad_places(t, source, axis, low, high, mode)
            source = np.take(source, places, axis=axis)
    return copy_of(t, source)


def _pad_widths(pad_width: Any, rank: int) -> list[tuple[int, int]]:
    if isinstance(pad_width, dict):
        pairs = [(0, 0)] * rank
        for axis, width in pad_width.items():
            pairs[normalize_axes(axis, rank)[0]] = (width, width) if isinstance(width, int) else tuple(width)
        return pairs
    spread = np.broadcast_to(np.asarray(pad_width), (rank, 2)).tolist() if rank else []
    if any(n < 0 for pair in spread for n in pair):
        raise TraceValueError("index can't contain negative values")
    return [(int(low), int(high)) for low, high in spread]


def _pad_constant(t: Tracer, source: TracedArray, widths: list[tuple[int, int]], values: Any) -> Any:
    kind = source.type.dtype
    if not isinstance(values, (tuple, list, np.ndarray, TracedArray)):
        check_integer(values, kind)
        node = t.node(values, kind)
        low, high = [w[0] for w in widths], [w[1] for w in widths]
        if not any(low) and not any(high):
            return copy_of(t, source)
        return t.array(t.b.add(Pad(tuple(low), tuple(high)), t.node(source), node))
    edges = np.broadcast_to(np.asarray(values), (source.ndim, 2))
    node = t.node(source)
    for axis, pair in enumerate(widths):
        for side in (0, 1):
            if pair[side]:
                low, high = [0] * source.ndim, [0] * source.ndim
                (low, high)[side][axis] = pair[side]
                node = t.b.add(Pad(tuple(low), tuple(high)), node, t.node(edges[axis, side], kind))
    return t.array(node)


def _pad_edges(source: TracedArray, axis: int, low: int, high: int) -> Any:
    """The first and the last element along the axis repeated: whole rows, of which none is looked for."""
    size = source.shape[axis]
    if size == 0:
        raise TraceValueError(_EMPTY_AXIS.format(axis))
    parts = []
    for count, place in ((low, 0), (high, size - 1)):
        edge = source[tuple(slice(place, place + 1) if a == axis else slice(None) for a in range(source.ndim))]
        shape = tuple(count if a == axis else n for a, n in enumerate(source.shape))
        parts += [np.broadcast_to(edge, shape)] if count else []
    return np.concatenate([*parts[:bool(low)], source, *parts[bool(low):]], axis=axis)


def _pad_places(t: Tracer, source: TracedArray, axis: int, low: int, high: int, mode: Any) -> Any:
    """For each place of the padded axis the place it shows."""
    size = source.shape[axis]
    if size == 0:
        raise TraceValueError(_EMPTY_AXIS.format(axis))
    if isinstance(size, int):
        return np.pad(np.arange(size), (low, high), mode=mode)
    places = np.arange(size + (low + high), like=source) - low
    if mode == "wrap":
        return np.remainder(places, size)
    if mode == "symmetric":
        turned = np.remainder(places, 2 * size)
        return np.where(turned < size, turned, 2 * size - 1 - turned)
    period = np.maximum(t.array(t.node(2 * size - 2)), 1)
    turned = np.remainder(places, period)
    return np.where(turned < size, turned, period - turned)
