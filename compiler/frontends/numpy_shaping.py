"""NumPy's functions that move elements: reshape, transpose, join, split, pad, take, repeat, diagonals, creation `like`.

What NumPy returns as a view is a view here too (see numpy_views); what it copies is a copy. Each rule has the parameters of
the NumPy function it stands for, after the tracer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import library
from ..ir.dims import DimLike, dim_min, evaluate, exact_quotient, product
from ..ir.graph import Node
from ..ir.ops.shape import Concat, Iota, Take, TakeAlong
from ..ir.types import BOOL, I64, dtype_of
from .numpy_errors import TraceError, TraceTypeError, TraceValueError
from .numpy_indexing import concrete_indices
from .numpy_tracer import Size, TracedArray, Tracer, as_dim, shape_text
from .numpy_ufuncs import check_integer, normalize_axes, promotion_type, store, weak_sample
from .numpy_views import C_LAYOUT, Permutation, Repeated, Reshaped, layout_of, reshaped_layout, strides_of


def dims_of(t: Tracer, shape: Any) -> tuple[DimLike, ...]:
    """A shape argument: a size or a sequence of sizes."""
    items = shape if isinstance(shape, (tuple, list, np.ndarray)) else (shape,)
    found = []
    for item in items:
        dim = as_dim(item)
        if dim is None and isinstance(item, TracedArray):
            raise TraceTypeError("a shape with a traced size: sizes must not depend on the data")
        found.append(int(item.__index__()) if dim is None else t.current(dim))
    return tuple(found)


# --- shape -----------------------------------------------------------------------------------------------------------


def reshape(t: Tracer, a: Any, /, shape: Any = None, order: str = "C", *, newshape: Any = None, copy: Any = None) -> Any:
    array = t.as_array(a)
    wanted = dims_of(t, newshape if shape is None else shape)
    if order not in ("C", "F", "A"):
        raise TraceValueError(f"order must be one of 'C', 'F', or 'A' (got {order!r})")
    after = _filled_shape(t, array, wanted)
    if order == "F":
        reverse = np.transpose(reshape(t, np.transpose(array), t.sizes(after[::-1])))
        return reverse.copy() if copy else reverse
    layout = None if copy else reshaped_layout(array.layout, array.dims, after)
    if layout is None:
        if copy is False:
            raise TraceValueError("Unable to avoid creating a copy while reshaping.")
        return t.array(library.reshape(t.b, t.node(array), after))
    uncertain = layout.strides is None and not layout.contiguous
    return array.view(Reshaped(after), C_LAYOUT if uncertain else layout, uncertain)


def _filled_shape(t: Tracer, array: TracedArray, wanted: tuple[DimLike, ...]) -> tuple[DimLike, ...]:
    """The new shape with -1 worked out; the number of elements must agree."""
    complaint = f"cannot reshape array of size {array.type.elements} into shape {shape_text(wanted)}"
    holes = [i for i, n in enumerate(wanted) if isinstance(n, int) and n == -1]
    if len(holes) > 1:
        raise TraceValueError("can only specify one unknown dimension")
    total = t.current(array.type.elements)
    if not holes:
        after = product(wanted)
        if after != total:
            t.unify(total, after, complaint)
        return wanted
    known = product(n for i, n in enumerate(wanted) if i not in holes)
    filled = exact_quotient(total, known) if known != 0 else None
    if filled is None:
        filled = _make_quotient(t, total, known, complaint)
    return tuple(filled if i in holes else n for i, n in enumerate(wanted))


def _make_quotient(t: Tracer, total: DimLike, known: DimLike, complaint: str) -> DimLike:
    if isinstance(total, int) and isinstance(known, int):
        raise TraceValueError(complaint)
    if t.observed is None:
        raise TraceError(
            f"{complaint}: that {known} divides {total} is not known at compile time",
            hint="declare it: tw.symbol(name, multiple_of=...) as the size in tw.spec, or give all sizes",
        )
    divisor = evaluate(known, t.observed)
    if not divisor or evaluate(total, t.observed) % divisor:
        raise TraceValueError(complaint)
    if isinstance(known, int):
        t.make_divisible(total, known)
    raise t.restart(t.specialize(total, known))


def ravel(t: Tracer, a: Any, order: str = "C") -> Any:
    array = t.as_array(a)
    return reshape(t, array, -1 if array.type.elements != 0 else 0, "C" if order == "K" else order)


def flatten(t: Tracer, a: TracedArray, order: str = "C") -> Any:
    return copy_of(t, ravel(t, a, order))


def transpose(t: Tracer, a: Any, axes: Any = None) -> Any:
    array = t.as_array(a)
    if axes is None:
        perm = tuple(reversed(range(array.ndim)))
    else:
        perm = np.lib.array_utils.normalize_axis_tuple(tuple(axes), array.ndim)
        if len(perm) != array.ndim:
            raise TraceValueError("axes don't match array")
    strides = strides_of(array.layout, array.dims)
    layout = layout_of([array.dims[p] for p in perm], None if strides is None else tuple(strides[p] for p in perm))
    return array.view(Permutation(tuple(perm)), layout)


def swapaxes(t: Tracer, a: Any, axis1: int, axis2: int) -> Any:
    array = t.as_array(a)
    order = list(range(array.ndim))
    i, j = normalize_axes(axis1, array.ndim)[0], normalize_axes(axis2, array.ndim)[0]
    order[i], order[j] = order[j], order[i]
    return transpose(t, array, order)


def moveaxis(t: Tracer, a: Any, source: Any, destination: Any) -> Any:
    array = t.as_array(a)
    normal = np.lib.array_utils.normalize_axis_tuple
    left = normal(source, array.ndim, "source")
    right = normal(destination, array.ndim, "destination")
    if len(left) != len(right):
        raise TraceValueError("`source` and `destination` arguments must have the same number of elements")
    order = [n for n in range(array.ndim) if n not in left]
    for place, axis in sorted(zip(right, left)):
        order.insert(place, axis)
    return transpose(t, array, order)


def rollaxis(t: Tracer, a: Any, axis: int, start: int = 0) -> Any:
    array = t.as_array(a)
    axis = normalize_axes(axis, array.ndim)[0]
    start = start + array.ndim if start < 0 else start
    return moveaxis(t, array, axis, start - 1 if axis < start else start)


def expand_dims(t: Tracer, a: Any, axis: Any) -> Any:
    array = t.as_array(a)
    listed = axis if isinstance(axis, (tuple, list)) else (axis,)
    places = np.lib.array_utils.normalize_axis_tuple(listed, array.ndim + len(listed))
    return array[tuple(None if i in places else slice(None) for i in range(array.ndim + len(listed)))]


def squeeze(t: Tracer, a: Any, axis: Any = None) -> Any:
    array = t.as_array(a)
    if axis is None:
        gone: tuple[int, ...] = tuple(i for i, n in enumerate(array.dims) if n == 1)
    else:
        gone = normalize_axes(axis, array.ndim)
        for i in gone:
            t.unify(array.dims[i], 1, f"cannot select an axis to squeeze out which has size not equal to one: axis {i} has "
                    f"size {array.dims[i]}")  # fmt: skip
    view = array[tuple(0 if i in gone else slice(None) for i in range(array.ndim)) + (Ellipsis,)]
    return view if gone else array


def broadcast_to(t: Tracer, array: Any, shape: Any, subok: bool = False) -> Any:
    source = t.as_array(array)
    wanted = dims_of(t, shape)
    if t.broadcast_shapes(source.dims, wanted) != wanted:
        raise TraceValueError("operands could not be broadcast together with remapped shapes [original->remapped]: "
                              f"{shape_text(source.dims)} and requested shape {shape_text(wanted)}")  # fmt: skip
    strides = strides_of(source.layout, source.dims)
    offset = len(wanted) - source.ndim
    spread = None if strides is None else tuple(
        0 if i < offset or source.dims[i - offset] != wanted[i] else strides[i - offset] for i in range(len(wanted)))  # fmt: skip
    return source.view(Repeated(wanted), layout_of(wanted, spread))


def broadcast_arrays(t: Tracer, *args: Any, subok: bool = False) -> Any:
    arrays = [t.as_array(a) for a in args]
    shape = t.sizes(t.broadcast_shapes(*(a.dims for a in arrays)))
    return tuple(broadcast_to(t, a, shape) for a in arrays)


def atleast(rank: int) -> Callable[..., Any]:
    """np.atleast_1d, 2d, 3d."""

    def one(t: Tracer, a: Any) -> Any:
        array = t.as_array(a)
        if array.ndim >= rank:
            return array
        if array.ndim == 0:
            return reshape(t, array, (1,) * rank)
        if rank == 2:
            return array[None, :]
        return array[None, :, None] if array.ndim == 1 else array[:, :, None]

    def rule(t: Tracer, *arrays: Any) -> Any:
        made = tuple(one(t, a) for a in arrays)
        return made[0] if len(made) == 1 else made

    return rule


# --- copies and casts ------------------------------------------------------------------------------------------------


def copy_of(t: Tracer, a: Any, order: str = "K", subok: bool = False) -> Any:
    return t.array(t.node(a))


def method_copy(t: Tracer, a: TracedArray, order: str = "C") -> Any:
    if order in ("F", "A", "K") and not a.layout.contiguous or order == "F":
        made = t.array(t.node(a))
        made.layout = layout_of(made.dims, None)
        return made
    return t.array(t.node(a))


def astype(t: Tracer, x: Any, dtype: Any, /, order: str = "K", casting: str = "unsafe", subok: bool = True, *, copy: bool = True,
           device: Any = None) -> Any:  # fmt: skip
    array = t.as_array(x)
    target = dtype_of(dtype)
    if not np.can_cast(array.dtype, target.numpy, casting):
        raise TraceTypeError(f"Cannot cast array data from {array.dtype} to {target.numpy} according to the rule '{casting}'")
    if not copy and array.type.dtype == target:
        return array
    return t.array(library.cast(t.b, t.node(array), target), scalar=array.scalar)


# --- joining and splitting -------------------------------------------------------------------------------------------


def joined_dtype(values: Sequence[Any], dtype: Any, casting: str = "same_kind") -> Any:
    kinds = [promotion_type(v) for v in values]
    if dtype is not None:
        for kind in kinds:
            if not np.can_cast(kind, dtype, casting):
                raise TraceTypeError(f"Cannot cast array data from {kind} to {np.dtype(dtype)} according to the rule '{casting}'")
        return dtype_of(dtype)
    return dtype_of(np.result_type(*(np.dtype(k) for k in kinds)))


def as_sequence(t: Tracer, arrays: Any) -> list[Any]:
    return list(arrays)


def concatenate(t: Tracer, arrays: Any, /, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> Any:
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
            raise TraceValueError("all the input array dimensions except for the concatenation axis must match exactly, but the "
                                  f"array at index 0 has {nodes[0].rank} dimension(s) and the array at index {i} has {node.rank}")  # fmt: skip
        for a, (m, n) in enumerate(zip(nodes[0].shape, node.shape)):
            if a != place:
                t.unify(m, n, "all the input array dimensions except for the concatenation axis must match exactly, but along "
                        f"dimension {a}, the array at index 0 has size {m} and the array at index {i} has size {n}")  # fmt: skip
    return store(t, t.array(nodes[0] if len(nodes) == 1 else t.b.add(Concat(place), *nodes)), out)


def stack(t: Tracer, arrays: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> Any:
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


def vstack(t: Tracer, tup: Any, *, dtype: Any = None, casting: str = "same_kind") -> Any:
    return concatenate(t, [atleast(2)(t, a) for a in tup], 0, dtype=dtype, casting=casting)


def hstack(t: Tracer, tup: Any, *, dtype: Any = None, casting: str = "same_kind") -> Any:
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
    return [array[(*lead, slice(low, high))] for low, high in zip(edges, edges[1:])]


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


def _roll_one(t: Tracer, array: TracedArray, by: Any, axis: int) -> TracedArray:
    size, lead = array.shape[axis], (slice(None),) * axis
    if isinstance(by, TracedArray) or isinstance(size, Size) and not (isinstance(by, (int, np.integer)) and _within(t, by, size)):
        places = np.remainder(np.arange(size, like=array) - by, size)
        return np.take(array, places, axis=axis)
    by = int(by) % size if isinstance(size, int) and size else by
    if isinstance(size, int) and (not size or not by):
        return array
    edge = -by if isinstance(size, Size) else size - by
    return concatenate(t, [array[(*lead, slice(edge, None))], array[(*lead, slice(None, edge))]], axis)


def _within(t: Tracer, by: int, size: Size) -> bool:
    """Whether a shift by so much needs no modulo for any size."""
    return bool(by) and dim_min(abs(int(by)), size.dim) == abs(int(by))


def tile(t: Tracer, A: Any, reps: Any) -> Any:
    array = t.as_array(A)
    counts = list(dims_of(t, reps))
    counts = [1] * (array.ndim - len(counts)) + counts
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
        if low or high:
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
        return t.array(t.b.add(library.Pad(tuple(low), tuple(high)), t.node(source), node))
    edges = np.broadcast_to(np.asarray(values), (source.ndim, 2))
    node = t.node(source)
    for axis, pair in enumerate(widths):
        for side in (0, 1):
            if pair[side]:
                low, high = [0] * source.ndim, [0] * source.ndim
                (low, high)[side][axis] = pair[side]
                node = t.b.add(library.Pad(tuple(low), tuple(high)), node, t.node(edges[axis, side], kind))
    return t.array(node)


def _pad_places(t: Tracer, source: TracedArray, axis: int, low: int, high: int, mode: str) -> Any:
    """For each place of the padded axis the place it shows."""
    size = source.shape[axis]
    if size == 0:
        raise TraceValueError(f"can't extend empty axis {axis} using modes other than 'constant' or 'empty'")
    if isinstance(size, int):
        return np.pad(np.arange(size), (low, high), mode=mode)  # type: ignore[call-overload]
    places = np.arange(size + (low + high), like=source) - low
    if mode == "edge":
        return np.clip(places, 0, t.array(t.node(size)) - 1)
    if mode == "wrap":
        return np.remainder(places, size)
    if mode == "symmetric":
        turned = np.remainder(places, 2 * size)
        return np.where(turned < size, turned, 2 * size - 1 - turned)
    period = np.maximum(t.array(t.node(2 * size - 2)), 1)
    turned = np.remainder(places, period)
    return np.where(turned < size, turned, period - turned)


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
        indices = np.stack([t.as_array(i) for i in indices])  # type: ignore[call-overload]
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


def _as_matrix(t: Tracer, m: Any) -> TracedArray:
    array = t.as_array(m)
    return array if array.ndim >= 2 else broadcast_to(t, array, (array.shape[0], array.shape[0]))


def fill_diagonal(t: Tracer, a: Any, val: Any, wrap: bool = False) -> None:
    if not isinstance(a, TracedArray) or a.ndim < 2:
        raise TraceValueError("array must be at least 2-d (and traced: make it with np.zeros_like(x))")
    if wrap or a.ndim > 2:
        raise TraceTypeError("fill_diagonal: wrap and more than two dimensions are not supported")
    size = _diagonal_size(*a.dims, (0, 0))
    values = t.as_array(val)
    if values.ndim:
        values = np.resize(values, t.sizes((size,))) if False else values
        count = values.shape[0]
        values = values[: t.sizes((size,))[0]] if isinstance(count, int) and isinstance(size, int) and count >= size else values
    places = np.arange(t.sizes((size,))[0], like=a)
    a[places, places] = values


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
    dims = [as_dim(v) for v in listed]
    if any(d is None for d in dims):
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
