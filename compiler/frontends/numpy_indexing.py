"""x[key] and x[key] = value by NumPy's rules, on static and symbolic sizes.

Slices, integers, None and Ellipsis give views (also a traced scalar integer does). Integer arrays, concrete or traced,
give copies: their shapes broadcast, and their axes stand where the first of them stood, or in front when a slice, None or
Ellipsis separates them. A concrete mask counts as its integer places. A traced mask has a number of results that data
decides: it is refused for reading and becomes a select for writing.

Concrete indices are checked while tracing where the size is known; all others are checked when the program runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from .. import library
from ..ir.dims import DimLike, bounds, ceildiv, compare, dim_min
from ..ir.graph import Node
from ..ir.ops.shape import Concat, GatherND, ScatterND, Take
from ..ir.types import BOOL, I64
from .numpy_errors import TraceError, TraceIndexError, TraceTypeError, TraceValueError
from .numpy_masks import MaskedSelection, refusal
from .numpy_tracer import Size, TracedArray, Tracer, as_dim, shape_text
from .numpy_views import Picked, Reshaped, Window, layout_of, strides_of


class Entry(Struct, eq=False):
    """One item of a key. `kind`: slice, integer, new (axis), picked (traced scalar), array, ellipsis, mask (traced)."""

    kind: str
    value: Any = None
    axes: int = 1


# --- reading a key ---------------------------------------------------------------------------------------------------


def parse_key(t: Tracer, array: TracedArray, key: Any) -> list[Entry]:
    """The key's entries, one for each axis of the array (and one for each new axis); Ellipsis is spelled out."""
    items = key if isinstance(key, tuple) else (key,)
    entries = [found for item in items for found in _parse_item(t, item)]
    if sum(e.kind == "ellipsis" for e in entries) > 1:
        raise TraceIndexError("an index can only have a single ellipsis ('...')")
    used = sum(e.axes for e in entries if e.kind not in ("new", "ellipsis"))
    if used > array.ndim:
        raise TraceIndexError(f"too many indices for array: array is {array.ndim}-dimensional, but {used} were indexed")
    rest = [Entry("slice", slice(None)) for _ in range(array.ndim - used)]
    place = next((i for i, e in enumerate(entries) if e.kind == "ellipsis"), None)
    if place is None:
        return entries + rest
    return entries[:place] + rest + entries[place + 1:]  # fmt: skip


def _parse_item(t: Tracer, item: Any) -> list[Entry]:
    if item is None:
        return [Entry("new", axes=0)]
    if item is Ellipsis:
        return [Entry("ellipsis", axes=0)]
    if isinstance(item, slice):
        return [Entry("slice", item)]
    dim = as_dim(item)
    if dim is not None:
        return [Entry("integer", dim)]
    if isinstance(item, TracedArray):
        if item.dtype == np.bool_:
            return [Entry("mask", item, item.ndim)]
        _check_index_dtype(item.dtype)
        return [Entry("picked" if not item.ndim else "array", t.node(item))]
    if isinstance(item, (list, tuple)) and _has_traced(item):
        return _parse_item(t, np.stack([t.as_array(v) for v in item]))
    return _parse_concrete(np.asarray(item), item)


def _has_traced(items: Sequence[Any]) -> bool:
    return any(isinstance(v, (TracedArray, Size)) or isinstance(v, (list, tuple)) and _has_traced(v) for v in items)


def _parse_concrete(array: np.ndarray, item: Any) -> list[Entry]:
    if isinstance(item, (list, tuple)) and not array.size:
        array = array.astype(np.int64)
    if array.dtype == np.bool_:
        if not array.ndim:
            raise TraceTypeError("a single True or False as an index is not supported", hint="use x[None] or an empty slice")
        return [Entry("array", _Places(places, array.shape, axis)) for axis, places in enumerate(np.nonzero(array))]
    _check_index_dtype(array.dtype)
    return [Entry("array" if array.ndim else "integer", array if array.ndim else int(array))]


class _Places(Struct, frozen=True, eq=False):
    """One axis of a concrete mask's places; the mask must have the size of the axis it stands on."""

    places: np.ndarray
    mask_shape: tuple[int, ...]
    axis: int


def _check_index_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iu":
        raise TraceIndexError("only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or boolean "
                              f"arrays are valid indices, found {dtype}", hint="convert the indices with astype(np.int64)")  # fmt: skip


# --- windows ---------------------------------------------------------------------------------------------------------


def _slice_number(value: Any, part: str) -> DimLike | None:
    if value is None:
        return None
    dim = as_dim(value)
    if dim is not None:
        return dim
    if isinstance(value, TracedArray):
        raise TraceTypeError(
            f"a slice with a traced {part} has a size or place that is not known at compile time",
            hint="for a window of fixed length n at a traced place i use np.take(x, i + np.arange(n), axis=0)",
        )
    return int(value.__index__())


def _from_front(t: Tracer, value: DimLike) -> bool:
    """True for a place counted from the front, False for one counted from the end."""
    low, high = bounds(value)
    if low >= 0:
        return True
    return False if high < 0 else t.decide("<=", 0, value)


def slice_window(t: Tracer, part: slice, size: DimLike) -> tuple[DimLike, DimLike, int]:
    """Start, number of elements and step of a slice of an axis: Python's clamping, also for symbolic sizes."""
    step = _slice_number(part.step, "step")
    step = 1 if step is None else step
    if not isinstance(step, int):
        raise TraceTypeError(f"a slice step must be a number known at compile time, found {step}")
    if step == 0:
        raise TraceValueError("slice step cannot be zero")
    start, stop = _slice_number(part.start, "start"), _slice_number(part.stop, "stop")
    if isinstance(size, int) and isinstance(start, (int, type(None))) and isinstance(stop, (int, type(None))):
        first, last, step = slice(start, stop, step).indices(size)
        return first, len(range(first, last, step)), step
    if step > 0:
        low = 0 if start is None else _clamped(t, start, size)
        high = size if stop is None else _clamped(t, stop, size)
        return low, ceildiv(high - dim_min(low, high), step), step
    high = size - 1 if start is None else _clamped_below(t, start, size)
    low = -1 if stop is None else _clamped_below(t, stop, size)
    return high, ceildiv(high - dim_min(low, high), -step), step


def _clamped(t: Tracer, place: DimLike, size: DimLike) -> DimLike:
    return dim_min(place, size) if _from_front(t, place) else size - dim_min(-place, size)


def _clamped_below(t: Tracer, place: DimLike, size: DimLike) -> DimLike:
    """Clamped to -1..size-1, for negative steps."""
    return dim_min(place, size - 1) if _from_front(t, place) else size - dim_min(-place - 1, size) - 1


def integer_place(t: Tracer, place: DimLike, size: DimLike, axis: int) -> DimLike:
    """The place an integer index names; IndexError where it is known to be outside."""
    front = _from_front(t, place)
    found = place if front else size + place
    outside = compare(found, size) in (0, 1) if front else compare(found, 0) == -1
    if outside:
        raise TraceIndexError(f"index {place} is out of bounds for axis {axis} with size {size}")
    return found


# --- basic views -----------------------------------------------------------------------------------------------------


def basic_view(t: Tracer, array: TracedArray, entries: Sequence[Entry], keep_integers: bool) -> TracedArray:
    """The view that slices, integers and new axes make; `keep_integers` leaves the axes of integers for later."""
    starts: list[DimLike] = []
    sizes: list[DimLike] = []
    steps: list[int] = []
    shape: list[DimLike] = []
    strides: list[DimLike] | None = []
    before = strides_of(array.layout, array.dims)
    picked: list[tuple[int, Node]] = []
    axis = 0
    for entry in entries:
        if entry.kind == "new":
            shape.append(1)
            strides = None if strides is None else [*strides, 0]
            continue
        size, dropped = array.dims[axis], False
        start, count, step = (0, size, 1) if entry.kind != "slice" else slice_window(t, entry.value, size)
        if not keep_integers and entry.kind == "integer":
            start, count, dropped = integer_place(t, entry.value, size, axis), 1, True
        elif not keep_integers and entry.kind == "picked":
            picked.append((axis, library.wrap_indices(t.b, entry.value, size)))
            dropped = True
        starts.append(start)
        sizes.append(count)
        steps.append(step)
        if not dropped:
            shape.append(count)
            strides = None if strides is None or before is None else [*strides, before[axis] * step]
        axis += 1
    return _apply_view(t, array, (starts, sizes, steps), picked, shape, strides)


def _apply_view(t: Tracer, array: TracedArray, window: tuple[list[DimLike], list[DimLike], list[int]],
                picked: list[tuple[int, Node]], shape: list[DimLike], strides: list[DimLike] | None) -> TracedArray:  # fmt: skip
    starts, sizes, steps = window
    layout = layout_of(shape, None if strides is None else tuple(strides))
    view = array
    if any(s != 0 for s in starts) or any(s != 1 for s in steps) or tuple(sizes) != array.dims:
        view = view.view(Window(tuple(starts), tuple(sizes), tuple(steps)), layout)
    if picked and array.storage.scope is not t.scope:
        view = t.array(t.node(view))
        view.storage.frozen = "an array from outside of the body of tw.cond, tw.while_loop or tw.scan is written in it"
    for axis, index in reversed(picked):
        view = view.view(Picked(axis, index), layout)
    if view.dims != tuple(shape):
        view = view.view(Reshaped(tuple(shape)), layout)
    if view is array:
        view = TracedArray(t, array.storage, array.path, array.layout, uncertain=array.uncertain)
    return view


# --- integer arrays --------------------------------------------------------------------------------------------------


class Gather(Struct, eq=False):
    """Indexing by arrays: the basic view, the axes they stand on, their common shape and where it goes in the result."""

    view: TracedArray
    axes: list[int]
    indices: list[Node]
    grid: tuple[DimLike, ...]
    position: int

    @property
    def rest(self) -> list[int]:
        return [a for a in range(self.view.ndim) if a not in self.axes]

    @property
    def result_shape(self) -> tuple[DimLike, ...]:
        rest = [self.view.dims[a] for a in self.rest]
        return (*rest[: self.position], *self.grid, *rest[self.position:])  # fmt: skip


def plan_gather(t: Tracer, array: TracedArray, entries: Sequence[Entry], separated: bool) -> Gather:
    """Works out an index that holds arrays. `separated`: an Ellipsis stands between them."""
    _check_masks(t, array, entries)
    view = basic_view(t, array, entries, keep_integers=True)
    axes, indices = [], []
    for place, entry in enumerate(entries):
        if entry.kind in ("array", "integer", "picked"):
            axes.append(place)
            indices.append(_index_node(t, entry, view.dims[place], place))
    try:
        grid = t.broadcast_shapes(*(i.shape for i in indices))
    except TraceValueError as error:
        texts = " ".join(shape_text(i.shape) for i in indices)
        raise TraceIndexError(f"shape mismatch: indexing arrays could not be broadcast together with shapes {texts}",
                              hint=error.hint) from None  # fmt: skip
    adjacent = axes == list(range(axes[0], axes[0] + len(axes))) and not separated
    return Gather(view, axes, indices, grid, axes[0] if adjacent else 0)


def _check_masks(t: Tracer, array: TracedArray, entries: Sequence[Entry]) -> None:
    axis = 0
    for entry in entries:
        if isinstance(entry.value, _Places):
            have, need = entry.value.mask_shape[entry.value.axis], array.dims[axis]
            complaint = (f"boolean index did not match indexed array along axis {axis}; size of axis is {need} but size of "
                         f"corresponding boolean axis is {have}")  # fmt: skip
            try:
                t.unify(need, have, complaint)
            except TraceValueError as error:
                raise TraceIndexError(complaint, hint=error.hint) from None
            entry.value = entry.value.places
        axis += entry.kind != "new"


def _index_node(t: Tracer, entry: Entry, size: DimLike, axis: int) -> Node:
    if entry.kind == "integer":
        place = integer_place(t, entry.value, size, axis)
        return library.size_value(t.b, place)
    if isinstance(entry.value, Node):
        return library.wrap_indices(t.b, entry.value, size)
    return concrete_indices(t, entry.value, size, axis)


def concrete_indices(t: Tracer, places: np.ndarray, size: DimLike, axis: int) -> Node:
    """Known indices: checked and wrapped now where the size is known, in the program where it is not."""
    if isinstance(size, int) and places.size:
        wrong = (places < -size) | (places >= size)
        if wrong.any():
            raise TraceIndexError(f"index {places[wrong].flat[0]} is out of bounds for axis {axis} with size {size}")
        places = np.where(places < 0, places + size, places)
    node = library.constant(t.b, places.astype(np.int64))
    return library.wrap_indices(t.b, node, size) if places.size and places.min() < 0 else node


def _stacked_indices(t: Tracer, plan: Gather) -> Node:
    columns = []
    for index in plan.indices:
        whole = library.broadcast(t.b, library.cast(t.b, index, I64), plan.grid)
        columns.append(library.expand(t.b, whole, (len(plan.grid),)))
    return columns[0] if len(columns) == 1 else t.b.add(Concat(len(plan.grid)), *columns)


def _gather(t: Tracer, plan: Gather) -> TracedArray:
    node = t.node(plan.view)
    if len(plan.axes) == 1:
        value = t.b.add(Take(plan.axes[0]), node, plan.indices[0])
        in_order = plan.axes[0] == 0
    else:
        first = library.transpose(t.b, node, [*plan.axes, *plan.rest])
        value = t.b.add(GatherND(0), first, _stacked_indices(t, plan))
        in_order = plan.position == 0
        depth, where = len(plan.grid), plan.position
        moved = [*range(depth, depth + where), *range(depth), *range(depth + where, value.rank)]
        value = library.transpose(t.b, value, moved)
    result = t.array(value)
    if not in_order:
        result.layout = layout_of(value.shape, None)
    return result


# --- the two entries -------------------------------------------------------------------------------------------------


def get_item(t: Tracer, array: TracedArray, key: Any) -> Any:
    """x[key]."""
    entries = parse_key(t, array, key)
    if any(e.kind == "mask" for e in entries):
        return _select(t, array, entries)
    if any(e.kind == "array" for e in entries):
        return _gather(t, plan_gather(t, array, entries, _separated(key)))
    view = basic_view(t, array, entries, keep_integers=False)
    items = key if isinstance(key, tuple) else (key,)
    if not view.dims and array.dims and not any(i is Ellipsis for i in items):
        return t.array(t.node(view), scalar=True)
    return view


def _select(t: Tracer, array: TracedArray, entries: list[Entry]) -> MaskedSelection:
    """What a mask on the first axes selects."""
    mask = entries[0]
    if mask.kind != "mask" or any(e.kind != "slice" or e.value != slice(None) for e in entries[1:]):
        raise refusal("a mask beside other indices")
    _match_mask(t, array, mask, 0)
    return MaskedSelection(t, t.array(t.node(array)), t.node(mask.value))


def _match_mask(t: Tracer, view: TracedArray, mask: Entry, first: int) -> None:
    for axis, size in enumerate(mask.value.dims, first):
        t.unify(view.dims[axis], size, f"boolean index did not match indexed array along axis {axis}; size of axis is "
                f"{view.dims[axis]} but size of corresponding boolean axis is {size}")  # fmt: skip


def _separated(key: Any) -> bool:
    """Whether an Ellipsis stands between index arrays or integers (it separates even where it covers no axis)."""
    items = key if isinstance(key, tuple) else (key,)
    kinds = ["." if i is Ellipsis else " " if i is None or isinstance(i, slice) else "x" for i in items]
    text = "".join(kinds).strip(" .")
    return "." in text


def set_item(t: Tracer, array: TracedArray, key: Any, value: Any) -> None:
    """x[key] = value."""
    entries = parse_key(t, array, key)
    if isinstance(value, MaskedSelection):
        _assign_selection(t, array, entries, value)
        return
    node = t.node(value, array.type.dtype) if not isinstance(value, (list, tuple)) else \
        t.node(_stacked_list(value), array.type.dtype)  # fmt: skip
    _check_assigned(value, array)
    if any(e.kind == "mask" for e in entries):
        _assign_masked(t, array, entries, node)
    elif any(e.kind == "array" for e in entries):
        plan = plan_gather(t, array, entries, _separated(key))
        whole, indices, updates, inverse = _scatter_operands(t, plan, node)
        changed = t.b.add(ScatterND("set"), whole, indices, updates)
        t.assign(plan.view, library.transpose(t.b, changed, inverse))
    else:
        view = basic_view(t, array, entries, keep_integers=False)
        view.scalar = array.scalar
        t.assign(view, fit_value(t, node, view.dims))


def _stacked_list(value: Sequence[Any]) -> Any:
    return np.stack([_stacked_list(v) if isinstance(v, (list, tuple)) else v for v in value]) if _has_traced(value) else value


def _check_assigned(value: Any, array: TracedArray) -> None:
    """Assignment casts as `unsafe` does, except that a Python integer must fit."""
    if type(value) is int and array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        if not limits.min <= value <= limits.max:
            raise OverflowError(f"Python integer {value} out of bounds for {array.dtype}")


def fit_value(t: Tracer, node: Node, shape: tuple[DimLike, ...]) -> Node:
    """The value broadcast to the shape it is assigned to (leading axes of size 1 may be dropped)."""
    while node.rank > len(shape) and node.shape[0] == 1:
        node = library.squeeze(t.b, node, (0,))
    complaint = f"could not broadcast input array from shape {shape_text(node.shape)} into shape {shape_text(shape)}"
    if node.rank > len(shape):
        raise TraceValueError(complaint)
    for size, target in zip(reversed(node.shape), reversed(shape)):
        if size != 1 and size != target:
            t.unify(size, target, complaint)
    return library.broadcast(t.b, node, shape)


def _scatter_operands(t: Tracer, plan: Gather, value: Node) -> tuple[Node, Node, Node, list[int]]:
    order = [*plan.axes, *plan.rest]
    whole = library.transpose(t.b, t.node(plan.view), order)
    updates = fit_value(t, value, plan.result_shape)
    depth, where = len(plan.grid), plan.position
    moved = [*range(where, where + depth), *range(where), *range(where + depth, updates.rank)]
    updates = library.transpose(t.b, updates, moved)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return whole, _stacked_indices(t, plan), updates, inverse


def scatter(t: Tracer, array: TracedArray, key: Any, value: Node, kind: str) -> bool:
    """Combines the value into x[key], repeated places one after the other; False where the key holds no arrays."""
    entries = parse_key(t, array, key)
    if any(e.kind == "mask" for e in entries):
        raise TraceTypeError("a traced mask as the index of ufunc.at is not supported", hint="use np.where(mask, a, b)")
    if not any(e.kind == "array" for e in entries):
        return False
    plan = plan_gather(t, array, entries, _separated(key))
    whole, indices, updates, inverse = _scatter_operands(t, plan, value)
    t.assign(plan.view, library.transpose(t.b, t.b.add(ScatterND(kind), whole, indices, updates), inverse))
    return True


def _assign_selection(t: Tracer, array: TracedArray, entries: list[Entry], value: MaskedSelection) -> None:
    """x[mask] = y[mask]: the two masks must be one value."""
    mask = entries[0]
    full = all(e.kind == "slice" and e.value == slice(None) for e in entries[1:])
    if mask.kind != "mask" or not full or t.node(mask.value) is not value.mask:
        raise refusal("a selection written to places other than those of its own mask")
    t.unify_shapes(array.dims, value.whole.dims, "shapes of the array and the selection differ")
    condition = library.expand(t.b, value.mask, range(value.mask.rank, array.ndim))
    chosen = library.scalar(t.b, "select", library.broadcast(t.b, condition, array.dims),
                            t.node(value.whole, array.type.dtype), t.node(array))  # fmt: skip
    t.assign(array, chosen)


def _assign_masked(t: Tracer, array: TracedArray, entries: list[Entry], value: Node) -> None:
    masks = [e for e in entries if e.kind == "mask"]
    if len(masks) > 1 or any(e.kind not in ("mask", "slice", "integer") for e in entries):
        raise TraceTypeError("a traced mask beside other masks or index arrays is not supported", hint="use np.where")
    place = entries.index(masks[0])
    mask, depth = t.node(masks[0].value), masks[0].axes
    spread = entries[:place] + [Entry("slice", slice(None)) for _ in range(depth)] + entries[place + 1:]  # fmt: skip
    view = basic_view(t, array, spread, keep_integers=False)
    first = sum(e.kind != "integer" for e in entries[:place])
    _match_mask(t, view, masks[0], first)
    if any(e.kind == "integer" for e in entries) and value.rank:
        raise TraceTypeError("an array assigned through a traced mask beside an integer is not supported", hint="use np.where")
    trailing = view.ndim - first - depth
    if value.rank > trailing + 1 or value.rank == trailing + 1 and value.shape[0] != 1:
        raise TraceError(
            "x[mask] = v with a traced mask takes one v for all places, not one for each place: their number is data",
            hint="give v for every element: x[...] = np.where(mask, v, x)",
        )
    while value.rank > trailing:
        value = library.squeeze(t.b, value, (0,))
    condition = library.expand(t.b, mask, [a for a in range(view.ndim) if not first <= a < first + depth])
    chosen = library.scalar(t.b, "select", library.broadcast(t.b, library.cast(t.b, condition, BOOL), view.dims),
                            fit_value(t, value, view.dims), t.node(view))  # fmt: skip
    t.assign(view, chosen)
