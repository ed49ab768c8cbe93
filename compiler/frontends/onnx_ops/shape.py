"""ONNX operators that move elements or make them from sizes: shapes, slices, gathers, scatters, padding, ranges.

Shapes, axes, starts and repeats must be known at import: constants, or arithmetic on sizes (see known_values.py).
Assumes run-time sizes of at least what the model's own arithmetic needs; the IR's ops check their windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.dims import Dim, DimLike, bounds, ceildiv, compare, dim_max, dim_min, product, provably_at_most
from ...ir.graph import Array, Node
from ...ir.ops.shape import Concat, GatherND, Iota, ScatterAlong, ScatterND, SizeOf, Slice, Take, TakeAlong
from ...ir.types import BOOL, I64, DType
from ...library import broadcast, slice_axis, slice_parts, wrap_indices
from ...library import expand as insert_axes
from ...library import pad as pad_constant
from ...library import squeeze as drop_axes
from ...library import transpose as permute
from .by_data import (
                      axes_of_one,
                      expand_by_data,
                      filled_by_data,
                      pad_by_data,
                      range_by_data,
                      reshape_by_data,
                      slice_by_data,
                      split_by_data,
                      tile_by_data,
)
from .context import Context, Integers, Operators, Undecided, Value, not_negative


def shape(c: Context, data: Node, *, start: int = 0, end: int | None = None) -> Node:
    rank = data.rank
    first = min(max(start + rank if start < 0 else start, 0), rank)
    stop = rank if end is None else end
    stop = min(max(stop + rank if stop < 0 else stop, 0), rank)
    return c.sizes_value(data.shape[first:max(stop, first)])


def size(c: Context, data: Node) -> Node:
    total = product(data.shape)
    return c.b.add(SizeOf(total)) if isinstance(total, Dim) else c.constant(total, I64)


def reshape(c: Context, data: Node, shape: Integers, *, allowzero: int = 0, consumed_inputs: tuple[int, ...] = ()) -> Node:
    """-1 takes the rest, 0 copies the size of the same axis (unless allowzero)."""
    if isinstance(shape, Node) and not c.all_known(shape):
        return reshape_by_data(c, data, shape, not allowzero, reshape_checked)
    wanted = list(c.sizes(shape, "shape"))
    for axis, n in enumerate(wanted):
        if n == 0 and not allowzero:
            if axis >= data.rank:
                c.fail(f"the shape's 0 at {axis} copies an axis that {data.type} does not have")
            wanted[axis] = data.shape[axis]
    if wanted.count(-1) > 1:
        c.fail(f"the shape {tuple(wanted)} leaves two sizes open")
    if any(isinstance(n, int) and n < -1 for n in wanted):
        c.fail(f"the shape {tuple(wanted)} holds a negative size")
    if -1 in wanted:
        _fill_open_size(c, data, wanted)
    return reshape_checked(c, data, wanted)


def _fill_open_size(c: Context, data: Node, wanted: list[DimLike]) -> None:
    place = wanted.index(-1)
    before, after = list(data.shape), [n for a, n in enumerate(wanted) if a != place]
    for n in list(after):                           # sizes that appear on both sides cancel, also where they may be 0
        if n in before and isinstance(n, Dim):
            before.remove(n)
            after.remove(n)
    total, rest = product(before), product(after)
    if rest == 0:
        c.fail(f"the shape {tuple(wanted)} leaves a size open beside a size of 0")
    if isinstance(total, int) and isinstance(rest, int) and total % rest:
        c.fail(f"{data.type} does not divide into the shape {tuple(wanted)}")
    wanted[place] = total // rest


def reshape_checked(c: Context, data: Node, wanted: Sequence[DimLike]) -> Node:
    """Reshape; where equal numbers of elements cannot be proved, they are checked at run time."""
    total, count = product(data.shape), product(wanted)
    if total != count:
        if compare(total, count) in (-1, 1):
            c.fail(f"{data.type} has {total} elements, the shape ({', '.join(map(str, wanted))}) has {count}")
        data = c.refine(c.reshape(data, (total,)), (count,))
    return c.reshape(data, wanted)


def flatten(c: Context, x: Node, *, axis: int = 1) -> Node:
    if not -x.rank <= axis <= x.rank:
        c.fail(f"axis {axis} is outside -{x.rank}..{x.rank}")
    first = axis + x.rank if axis < 0 else axis
    return c.reshape(x, (product(x.shape[:first]), product(x.shape[first:])))


def squeeze(c: Context, data: Node, axes: Integers = None) -> Node:
    if isinstance(axes, Node) and not c.all_known(axes):
        return axes_of_one(c, data, axes, removed=True)
    if axes is None:
        found = tuple(a for a, n in enumerate(data.shape) if n == 1)
        unknown = tuple(a for a, n in enumerate(data.shape) if isinstance(n, Dim) and compare(n, 1) is None)
        if unknown:
            raise _undecided_squeeze(c, data, found, unknown)
    else:
        found = c.axes(c.integers(axes, "axes"), data.rank)
    target = [1 if a in found else n for a, n in enumerate(data.shape)]
    return drop_axes(c.b, c.refine(data, target), found)


def _undecided_squeeze(c: Context, data: Node, ones: tuple[int, ...], unknown: tuple[int, ...]) -> Undecided:
    """All axes of unknown size are 1, or none is: what comes after, or the declared rank of an output, may say which."""
    error = Undecided(f"{c.op_type}: without axes, {data.type} has a rank that its sizes decide", loc=c.b.loc, hint="bind the dims")

    def side(all_ones: bool) -> tuple[Node]:
        gone = sorted((*ones, *unknown)) if all_ones else ones
        kept = c.refine(data, [1 if a in gone else n for a, n in enumerate(data.shape)])
        for axis in () if all_ones else unknown:
            kept = c.require(kept, c.scalar("ne", _scalar(c, data.shape[axis]), c.constant(1, I64)))
        return (drop_axes(c.b, kept, gone),)
    error.side = side
    return error


def unsqueeze(c: Context, data: Node, axes: Integers) -> Node:
    if isinstance(axes, Node) and not c.all_known(axes):
        return axes_of_one(c, data, axes, removed=False)
    wanted = c.integers(axes, "axes")
    return insert_axes(c.b, data, c.axes(wanted, data.rank + len(wanted)))


def transpose(c: Context, data: Node, *, perm: Sequence[int] | None = None) -> Node:
    order = tuple(reversed(range(data.rank))) if perm is None else c.axes(perm, data.rank)
    if len(order) != data.rank:
        c.fail(f"perm {tuple(order)} is no permutation of the {data.rank} axes")
    return permute(c.b, data, order)


def concat(c: Context, *inputs: Node, axis: int = 1) -> Node:
    if not inputs:
        c.fail("needs at least one input")
    place = c.axis(axis, inputs[0].rank)
    common = list(inputs[0].shape)
    for x in inputs[1:]:
        if x.rank != len(common):
            c.fail(f"inputs differ in rank: {inputs[0].type} vs {x.type}")
        for a, n in enumerate(x.shape):
            if a != place and n != common[a]:
                if compare(n, common[a]) in (-1, 1):
                    c.fail(f"{x.type} does not fit to {inputs[0].type} along axis {axis}")
                common[a] = min(n, common[a], key=lambda d: (not isinstance(d, int), len(str(d)), str(d)))
    parts = [c.refine(x, [x.shape[a] if a == place else n for a, n in enumerate(common)]) for x in inputs]
    return parts[0] if len(parts) == 1 else c.b.add(Concat(place), *parts)


def split(c: Context, x: Node, split: Integers = None, *, axis: int = 0,
          num_outputs: int | None = None) -> tuple[Node, ...]:
    place = c.axis(axis, x.rank)
    extent = x.shape[place]
    if isinstance(split, Node) and not c.all_known(split):
        return split_by_data(c, x, split, place)
    if split is not None:
        sizes = list(c.sizes(split, "split"))
    else:
        count = num_outputs or c.output_count
        if count != c.output_count:
            c.fail(f"{count} parts, but {c.output_count} outputs")
        part = ceildiv(extent, count)
        sizes = [part] * (count - 1)
        sizes.append(extent - part * (count - 1))
        if isinstance(sizes[-1], int) and sizes[-1] < 0:
            c.fail(f"axis {axis} of size {extent} does not split into {count} parts")
        if isinstance(sizes[-1], Dim) and bounds(sizes[-1])[0] < 0:
            sizes[-1] = dim_max(sizes[-1], 0)
    if len(sizes) != c.output_count:
        c.fail(f"{len(sizes)} parts, but {c.output_count} outputs")
    total = sum(sizes[1:], sizes[0])
    if compare(total, extent) in (-1, 1):
        c.fail(f"the parts {tuple(sizes)} add up to {total}, axis {axis} has {extent}")
    x = c.refine(x, [total if a == place else n for a, n in enumerate(x.shape)])
    return slice_parts(c.b, x, place, sizes)


# --- slices ----------------------------------------------------------------------------------------------------------


def slice_(c: Context, data: Node, starts: Integers, ends: Integers, axes: Integers = None,
           steps: Integers = None) -> Node:
    if not c.all_known(starts, ends, axes, steps):
        return slice_by_data(c, data, starts, ends, axes, steps)
    first, last = c.sizes(starts, "starts"), c.sizes(ends, "ends")
    places = tuple(range(len(first))) if axes is None else c.integers(axes, "axes")
    by = (1,) * len(first) if steps is None else c.integers(steps, "steps")
    if not len(first) == len(last) == len(places) == len(by):
        c.fail(f"starts, ends, axes and steps differ in length: {len(first)}, {len(last)}, {len(places)}, {len(by)}")
    start: list[DimLike] = [0] * data.rank
    size, step = list(data.shape), [1] * data.rank
    for axis, low, high, stride in zip(c.axes(places, data.rank), first, last, by):
        if stride == 0:
            c.fail(f"the step of axis {axis} is zero")
        start[axis], size[axis] = _window(data.shape[axis], low, high, stride)
        step[axis] = stride
        if size[axis] in (0, 1):
            step[axis] = 1
        if size[axis] == 0:
            start[axis] = 0
    if tuple(size) == data.shape and all(n == 0 for n in start) and set(step) <= {1}:
        return data
    return c.b.add(Slice(tuple(start), tuple(size), tuple(step)), data)


def _clamped(place: DimLike, extent: DimLike, low: DimLike, high: DimLike) -> DimLike:
    """A Python-style position: negative counts from the end; limited to low..high."""
    if bounds(place)[1] < 0:
        place = place + extent
    if isinstance(place, int) and isinstance(extent, Dim) and place >= (1 << 31) - 1:
        return high
    return dim_max(dim_min(place, high), low)


def _window(extent: DimLike, low: DimLike, high: DimLike, step: int) -> tuple[DimLike, DimLike]:
    """First position and number of elements of extent[low:high:step]."""
    if step > 0:
        first, stop = _clamped(low, extent, 0, extent), _clamped(high, extent, 0, extent)
        return first, not_negative(ceildiv(stop - first, step))
    first = _clamped(low, extent, 0, extent - 1)
    before = isinstance(high, int) and high < -(1 << 31) + 1
    stop = -1 if before else _clamped(high, extent, -1, extent - 1)
    return first, not_negative(ceildiv(first - stop, -step))


# --- gathers and scatters --------------------------------------------------------------------------------------------


def _wrapped(c: Context, indices: Node, extent: DimLike) -> Node:
    """Indices with negative ones counted from the end; done here where they are known."""
    value = c.value(indices)
    if value is not None and value.dtype != object and isinstance(extent, int):
        wide = value.astype(np.int64)
        if value.size and (wide.min() < -extent or wide.max() >= extent):
            c.fail(f"index {wide.min() if wide.min() < -extent else wide.max()} is outside an axis of size {extent}")
        return c.constant(np.where(wide < 0, wide + extent, wide))
    if value is not None and value.dtype != object and (value >= 0).all():
        return indices
    return wrap_indices(c.b, indices, extent)


def gather(c: Context, data: Node, indices: Node, *, axis: int = 0) -> Node:
    place = c.axis(axis, data.rank)
    return c.b.add(Take(place), data, _wrapped(c, indices, data.shape[place]))


def gather_elements(c: Context, data: Node, indices: Node, *, axis: int = 0) -> Node:
    place = c.axis(axis, data.rank)
    wrapped = _wrapped(c, indices, data.shape[place])
    if indices.rank == data.rank and not any(compare(m, n) == 1 for a, (m, n) in enumerate(zip(indices.shape, data.shape)) if a != place):
        # beside the axis there may be fewer indices than elements; where that is not proved, a slice checks it
        window = tuple(n if a == place or provably_at_most(m, n) else m for a, (m, n) in enumerate(zip(indices.shape, data.shape)))
        if window != data.shape:
            data = c.b.add(Slice((0,) * data.rank, window, (1,) * data.rank), data)
    return c.b.add(TakeAlong(place), data, wrapped)


def _wrapped_places(c: Context, data: Node, indices: Node, batch: int) -> Node:
    """Index tuples along the last axis, wrapped by the sizes of the axes they name."""
    depth = indices.shape[-1] if indices.rank else None
    if not isinstance(depth, int) or batch + depth > data.rank:
        c.fail(f"indices {indices.type} do not fit {data.type} with {batch} batch axes")
    indices = c.cast(indices, I64)
    extents = c.sizes_value(data.shape[batch:batch + depth])
    return c.apply("select", c.apply("lt", indices, c.constant(0, I64)), c.apply("add", indices, extents), indices)


def gather_nd(c: Context, data: Node, indices: Node, *, batch_dims: int = 0) -> Node:
    places = _wrapped_places(c, data, indices, batch_dims)
    common = (*data.shape[:batch_dims], *places.shape[batch_dims:])
    return c.b.add(GatherND(batch_dims), data, c.refine(places, common))


SCATTER_KINDS = {"none": "set", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def scatter_elements(c: Context, data: Node, indices: Node, updates: Node, *, axis: int = 0,
                     reduction: str = "none") -> Node:
    place = c.axis(axis, data.rank)
    kind = SCATTER_KINDS[c.choice(reduction, "reduction", tuple(SCATTER_KINDS))]
    return c.b.add(ScatterAlong(place, kind), data, _wrapped(c, indices, data.shape[place]), updates)


def scatter_nd(c: Context, data: Node, indices: Node, updates: Node, *, reduction: str = "none") -> Node:
    kind = SCATTER_KINDS[c.choice(reduction, "reduction", tuple(SCATTER_KINDS))]
    places = _wrapped_places(c, data, indices, 0)
    depth = places.shape[-1]
    assert isinstance(depth, int)
    updates = c.refine(updates, (*places.shape[:-1], *data.shape[depth:]))
    return c.b.add(ScatterND(kind), data, places, updates)


def one_hot(c: Context, indices: Node, depth: Node, values: Node, *, axis: int = -1) -> Node:
    """Indices outside -depth..depth-1 give a row of the off value."""
    place = c.axis(axis, indices.rank + 1)
    if c.all_known(depth):
        count = c.size(depth, "depth")
    else:
        count = c.declared_shape("depth", given=depth, rank=indices.rank + 1)[place]
        values = c.require(values, c.apply("eq", c.cast(depth, I64), _scalar(c, count)))
    whole = indices if not indices.dtype.is_float else c.cast(indices, I64)
    whole = c.cast(whole, I64)
    wrapped = c.apply("select", c.apply("lt", whole, c.constant(0, I64)),
                      c.apply("add", whole, c.sizes_value((count,))) if whole.rank else
                      c.apply("add", whole, c.reshape(c.sizes_value((count,)), ())), whole)
    target = (*indices.shape[:place], count, *indices.shape[place:])
    spread = insert_axes(c.b, wrapped, (place,))
    hit = c.apply("eq", spread, c.b.add(Iota(I64, target, place)))
    c.check_rank("values", values, 1)
    off, on = (c.reshape(slice_axis(c.b, values, 0, i, 1), ()) for i in (0, 1))
    return c.apply("select", hit, on, off)


# --- copies ----------------------------------------------------------------------------------------------------------


def expand(c: Context, x: Node, shape: Integers) -> Node:
    if isinstance(shape, Node) and not c.all_known(shape):
        return expand_by_data(c, x, shape)
    wanted = c.sizes(shape, "shape")
    return c.broadcast_to(x, c.broadcast_shape(x.shape, wanted))


def tile(c: Context, x: Node, repeats: Integers, axis: Node | None = None) -> Node:
    """Repeats the whole along each axis. (Opset 1 gave one axis and its count.)"""
    if isinstance(repeats, Node) and axis is None and not c.all_known(repeats):
        return tile_by_data(c, x, repeats)
    if c.opset < 6 and axis is not None:
        count, place = c.size(repeats, "tiles"), c.axis(c.integer(axis, "axis"), x.rank)
        counts: list[DimLike] = [count if a == place else 1 for a in range(x.rank)]
    else:
        counts = list(c.sizes(repeats, "repeats"))
    if len(counts) != x.rank:
        c.fail(f"repeats has {len(counts)} entries, the input {x.rank} axes")
    spread = c.reshape(x, [n for size in x.shape for n in (1, size)])
    repeated = broadcast(c.b, spread, [n for count, size in zip(counts, x.shape) for n in (count, size)])
    return c.reshape(repeated, [count * size for count, size in zip(counts, x.shape)])


PAD_MODES = ("constant", "reflect", "edge", "wrap")


def pad(c: Context, data: Node, pads: Integers, constant_value: Node | None = None, axes: Integers = None, *,
        mode: str = "constant", value: float = 0.0) -> Node:
    """Negative widths crop."""
    c.choice(mode, "mode", PAD_MODES)
    if not c.all_known(pads, axes):
        fill = c.like(value, data) if constant_value is None else c.reshape(constant_value, ())
        return pad_by_data(c, data, pads, fill, axes, mode, _folded_place)
    places = range(data.rank) if axes is None else c.axes(c.integers(axes, "axes"), data.rank)
    widths = c.sizes(pads, "pads")
    if len(widths) != 2 * len(places):
        c.fail(f"pads has {len(widths)} entries for {len(places)} axes")
    low: list[DimLike] = [0] * data.rank
    high: list[DimLike] = [0] * data.rank
    for position, axis in enumerate(places):
        low[axis], high[axis] = widths[position], widths[position + len(places)]
    for axis in range(data.rank):
        data = _cropped(c, data, axis, low, high)
    if mode != "constant":
        for axis in range(data.rank):
            data = _pad_by_place(c, data, axis, low[axis], high[axis], mode)
        return data
    fill = c.like(value, data) if constant_value is None else c.reshape(constant_value, ())
    known = c.value(fill)
    if known is not None and known.dtype != object:
        return pad_constant(c.b, data, low, high, known.item())
    inside = c.full(True, BOOL, data.shape)
    return c.apply("select", pad_constant(c.b, inside, low, high, False), pad_constant(c.b, data, low, high), fill)


def _cropped(c: Context, data: Node, axis: int, low: list[DimLike], high: list[DimLike]) -> Node:
    """The elements that negative widths leave; the widths are then those of the padding."""
    first, last = (0 if bounds(n)[0] >= 0 else -n if bounds(n)[1] < 0 else dim_max(-n, 0) for n in (low[axis], high[axis]))
    low[axis], high[axis] = low[axis] + first, high[axis] + last
    size = data.shape[axis] - first - last
    return slice_axis(c.b, data, axis, first, size if first == last == 0 else not_negative(size))


def _pad_by_place(c: Context, data: Node, axis: int, low: DimLike, high: DimLike, mode: str) -> Node:
    """Padding that repeats elements: beside the axis lie places that are folded back into it."""
    extent = data.shape[axis]

    def beside(width: DimLike, first: DimLike) -> list[Node]:
        if width == 0:
            return []
        place = c.apply("add", c.b.add(Iota(I64, (width,), 0)), _scalar(c, first))
        return [c.b.add(Take(axis), data, _folded_place(c, place, _scalar(c, extent), mode))]

    parts = [*beside(low, -low), data, *beside(high, extent)]
    return data if len(parts) == 1 else c.b.add(Concat(axis), *parts)


def _folded_place(c: Context, place: Node, extent: Node, mode: str) -> Node:
    """A place inside the axis for one that may be outside."""
    last = c.apply("sub", extent, c.constant(1, I64))
    if mode == "edge":
        return c.apply("min", c.apply("max", place, c.constant(0, I64)), last)
    if mode == "wrap":
        return c.apply("mod", place, extent)
    # a triangle wave of period 2 (extent - 1); an axis of one element repeats it
    period = c.apply("max", c.apply("mul", last, c.constant(2, I64)), c.constant(1, I64))
    place = c.apply("mod", place, period)
    place = c.apply("min", place, c.apply("sub", period, place))
    return c.apply("min", place, last)


def _scalar(c: Context, n: DimLike) -> Node:
    return c.b.add(SizeOf(n)) if isinstance(n, Dim) else c.constant(n, I64)


# --- values from sizes -----------------------------------------------------------------------------------------------


def constant_of_shape(c: Context, shape: Integers, *, value: Array | None = None) -> Node:
    fill = np.zeros(1, dtype=np.float32) if value is None else value
    if fill.size != 1:
        c.fail(f"value must hold one element, found {fill.size}")
    if isinstance(shape, Node) and not c.all_known(shape):
        return filled_by_data(c, c.constant(fill.reshape(())), shape)
    wanted = c.sizes(shape, "input")
    if any(isinstance(n, int) and n < 0 for n in wanted):
        c.fail(f"the shape {wanted} holds a negative size")
    return broadcast(c.b, c.constant(fill.reshape(())), wanted)


def range_(c: Context, start: Node, limit: Node, delta: Node) -> Node:
    """ceil((limit - start) / delta) elements, at least none."""
    dtype = start.dtype
    values = [c.value(x) for x in (start, limit, delta)]
    if any(v is not None and v.size != 1 for v in values):
        c.fail(f"start, limit and delta must be one number each, found {start.type}, {limit.type} and {delta.type}")
    if any(v is None for v in values):
        return range_by_data(c, start, limit, delta)
    first, stop, step = (v.reshape(-1).tolist()[0] for v in values if v is not None)
    if step == 0:
        c.fail("delta is zero")
    if isinstance(first, Dim) or isinstance(stop, Dim):  # sizes, and what was cast with them to a float type
        first, stop, step = (int(v) if isinstance(v, float) and v.is_integer() else v for v in (first, stop, step))
    count = _range_count(c, first, stop, step)
    steps = c.b.add(Iota(I64 if dtype.is_integer else dtype, (count,), 0))
    return c.apply("add", c.apply("mul", c.cast(steps, dtype), c.reshape(delta, ())), c.reshape(start, ()))


def _range_count(c: Context, first: object, stop: object, step: object) -> DimLike:
    if isinstance(first, (int, Dim)) and isinstance(stop, (int, Dim)) and isinstance(step, int):
        distance = stop - first if step > 0 else first - stop
        return not_negative(ceildiv(distance, abs(step)))
    if not isinstance(first, (int, float)) or not isinstance(stop, (int, float)) or not isinstance(step, (int, float)):
        c.unsupported(f"a range from {first} to {stop} in steps of {step} has a size that is not known")
    return max(0, int(np.ceil((stop - first) / step)))


def eye_like(c: Context, x: Node, *, dtype: int | None = None, k: int = 0) -> Node:
    if x.rank != 2:
        c.fail(f"needs a matrix, found {x.type}")
    target: DType = x.dtype if dtype is None else c.dtype(dtype)
    return c.cast(c.scalar("eq", *_row_and_column(c, x.shape, k)), target)


def _row_and_column(c: Context, shape: Sequence[DimLike], k: int | Node) -> tuple[Node, Node]:
    """row + k and column of each place of the last two axes."""
    grid = tuple(shape[-2:])
    row, column = c.b.add(Iota(I64, grid, 0)), c.b.add(Iota(I64, grid, 1))
    shift = c.constant(k, I64) if isinstance(k, int) else c.reshape(c.cast(k, I64), ())
    return c.apply("add", row, shift), column


def trilu(c: Context, x: Node, k: Node | None = None, *, upper: int = 1) -> Node:
    row, column = _row_and_column(c, x.shape, 0 if k is None else k)
    kept = c.scalar("ge" if upper else "le", column, row)
    return c.apply("select", kept, x, c.like(0, x))


def identity(c: Context, x: Value, *, consumed_inputs: tuple[int, ...] = ()) -> Value:
    return x


def constant(c: Context, *, value: Array | None = None, value_int: int | None = None, value_float: float | None = None,
             value_ints: Sequence[int] | None = None, value_floats: Sequence[float] | None = None) -> Node:
    for given, dtype in ((value_int, np.int64), (value_float, np.float32), (value_ints, np.int64),
                         (value_floats, np.float32)):
        if given is not None:
            return c.constant(np.array(given, dtype=dtype))
    if value is None:
        c.fail("needs one of value, value_int, value_float, value_ints, value_floats")
    return c.constant(value)


OPS: Operators = {
    "Concat": concat, "Constant": constant, "ConstantOfShape": constant_of_shape,
    "Expand": expand, "EyeLike": eye_like, "Flatten": flatten, "Gather": gather,
    "GatherElements": gather_elements, "GatherND": gather_nd, "Identity": identity, "OneHot": one_hot, "Pad": pad,
    "Range": range_, "Reshape": reshape, "Scatter": scatter_elements,
    "ScatterElements": scatter_elements, "ScatterND": scatter_nd, "Shape": shape, "Size": size, "Slice": slice_,
    "Split": split, "Squeeze": squeeze, "Tile": tile, "Transpose": transpose,
    "Trilu": trilu, "Unsqueeze": unsqueeze,
}
