"""ONNX operators whose sizes, axes or places are computed from data: the slower forms of Slice, Pad, Reduce and their kin.

The IR has no sizes that data decides. Where an argument is not known at import, the shape that the model declares for the
result is taken, the elements are gathered by indices computed from the argument, and whether the argument leads to the
declared shape is checked at run time.

Assumes nothing of the arguments. Guarantees: the result is as the standard says, or an error at run time; nothing that the
model declares is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...ir.dims import DimLike
from ...ir.graph import Node
from ...ir.ops.shape import Iota, Take
from ...ir.types import BOOL, I64
from ...library import broadcast, reduce, size_value, slice_axis, slice_parts
from .context import Context, Integers


def vector(c: Context, argument: Integers) -> Node:
    """An argument as int64 values, whatever is known of it."""
    if isinstance(argument, Node):
        return c.reshape(c.cast(argument, I64), (argument.tensor.elements,))
    listed = () if argument is None else (argument,) if isinstance(argument, int) else tuple(argument)
    return c.constant(np.array(listed, dtype=np.int64))


def element(c: Context, values: Node, place: int) -> Node:
    return c.reshape(slice_axis(c.b, values, 0, place, 1), ())


def size(c: Context, n: DimLike) -> Node:
    return size_value(c.b, n)


def number(c: Context, n: int) -> Node:
    return c.constant(n, I64)


def all_of(c: Context, conditions: Sequence[Node]) -> Node:
    total = c.constant(True, BOOL)
    for condition in conditions:
        total = c.scalar("and", total, condition)
    return total


# --- arguments that name axes ----------------------------------------------------------------------------------------


class Axes:
    """A list of axes as it may be at run time: which entry of the other arguments belongs to which axis."""

    def __init__(self, c: Context, axes: Integers, rank: int, count: int) -> None:
        if count > rank:
            c.fail(f"{count} entries for {rank} axes")
        self.c, self.count = c, count
        self.places: tuple[int, ...] | None = None
        self.valid = c.constant(True, BOOL)
        self.hits: list[Node] = []
        if axes is None:
            self.places = tuple(range(count))
        elif c.all_known(axes):
            self.places = c.axes(c.integers(axes, "axes"), rank)
        if self.places is not None:
            if len(self.places) != count or any(p >= rank for p in self.places):
                c.fail(f"{count} entries for the axes {self.places} of {rank}")
            return
        given = vector(c, axes)
        if given.shape != (count,):
            given = c.refine(given, (count,))
        wrapped = c.apply("select", c.apply("lt", given, number(c, 0)), c.apply("add", given, number(c, rank)), given)
        self.hits = [c.apply("eq", wrapped, number(c, a)) for a in range(rank)]
        # as many axes are named as there are entries: each is inside, and none comes twice
        named = [c.cast(self.named(a), I64) for a in range(rank)]
        total = number(c, 0)
        for one in named:
            total = c.scalar("add", total, one)
        self.valid = c.scalar("eq", total, number(c, count))

    def named(self, axis: int) -> Node:
        """Whether the list names the axis."""
        if self.places is not None:
            return self.c.constant(axis in self.places, BOOL)
        return reduce(self.c.b, "or", self.hits[axis], (0,))

    def entry(self, values: Node, axis: int, default: Node) -> Node:
        """What the argument `values` says for the axis, else the default."""
        c = self.c
        if self.places is not None:
            return element(c, values, self.places.index(axis)) if axis in self.places else default
        masked = c.apply("select", self.hits[axis], values, number(c, 0))
        return c.scalar("select", self.named(axis), reduce(c.b, "sum", masked, (0,)), default)

    def may_name(self, axis: int) -> bool:
        return self.places is None or axis in self.places


def _counted(c: Context, *arguments: Integers) -> int:
    """How many entries the lists have; that number is part of their types."""
    for argument in arguments:
        if argument is not None:
            count = vector(c, argument).shape[0]
            if not isinstance(count, int):
                c.unsupported(f"the number of entries of its lists is the symbolic size {count}")
            return count
    return 0


# --- places ----------------------------------------------------------------------------------------------------------


def take_places(c: Context, data: Node, axis: int, places: Node, valid: Node) -> Node:
    """The elements of an axis at these places; an error where `valid` does not hold."""
    return c.b.add(Take(axis), data, c.require(places, valid))


def clamp(c: Context, x: Node, low: Node, high: Node) -> Node:
    return c.apply("max", c.apply("min", x, high), low)


def slice_by_data(c: Context, data: Node, starts: Integers, ends: Integers, axes: Integers, steps: Integers) -> Node:
    """data[start:end:step] along the named axes, with the declared number of elements."""
    shape = c.declared_shape("starts", given=ends)
    if len(shape) != data.rank:
        c.fail(f"the result is declared with {len(shape)} axes, {data.type} has {data.rank}")
    count = _counted(c, starts, ends)
    named = Axes(c, axes, data.rank, count)
    first, last = vector(c, starts), vector(c, ends)
    by = vector(c, (1,) * count if steps is None else steps)
    for axis in range(data.rank):
        if not named.may_name(axis):
            if data.shape[axis] != shape[axis]:
                data = c.refine(data, [shape[a] if a == axis else n for a, n in enumerate(data.shape)])
            continue
        extent, one = size(c, data.shape[axis]), number(c, 1)
        step = named.entry(by, axis, one)
        start, length = _window(c, extent, named.entry(first, axis, number(c, 0)), named.entry(last, axis, extent), step)
        valid = all_of(c, [named.valid, c.scalar("ne", step, number(c, 0)), c.scalar("eq", length, size(c, shape[axis]))])
        index = c.b.add(Iota(I64, (shape[axis],), 0))
        data = take_places(c, data, axis, c.apply("add", start, c.apply("mul", index, step)), valid)
    return data


def _window(c: Context, extent: Node, start: Node, end: Node, step: Node) -> tuple[Node, Node]:
    """The first place and the number of places of start:end:step, as the standard limits them."""
    zero, one = number(c, 0), number(c, 1)
    backwards = c.scalar("lt", step, zero)
    start, end = (c.scalar("select", c.scalar("lt", x, zero), c.scalar("add", x, extent), x) for x in (start, end))
    last = c.scalar("sub", extent, one)
    begin = c.scalar("select", backwards, clamp(c, start, zero, last), clamp(c, start, zero, extent))
    stop = c.scalar("select", backwards, clamp(c, end, number(c, -1), last), clamp(c, end, zero, extent))
    # ceil((stop - begin) / step); a step of 0 is refused elsewhere
    count = c.scalar("neg", c.scalar("floordiv", c.scalar("sub", begin, stop), step))
    return begin, c.scalar("max", count, zero)


# --- shapes ----------------------------------------------------------------------------------------------------------


def matches(c: Context, given: Node, shape: Sequence[DimLike]) -> Node:
    """Whether a list of sizes at run time is this shape."""
    if given.shape != (len(shape),):
        given = c.refine(given, (len(shape),))
    return all_of(c, [c.scalar("eq", element(c, given, i), size(c, n)) for i, n in enumerate(shape)])


def reshape_by_data(c: Context, data: Node, wanted: Node, copies_zero: bool, reshape: Callable[..., Node]) -> Node:
    """To the declared shape, where the list leads to it: a -1 takes any size, a 0 copies one."""
    shape, given = c.declared_shape("shape", given=wanted), vector(c, wanted)
    if given.shape != (len(shape),):
        given = c.refine(given, (len(shape),))
    open_sizes, conditions = number(c, 0), []
    for axis, n in enumerate(shape):
        entry = element(c, given, axis)
        is_open = c.scalar("eq", entry, number(c, -1))
        open_sizes = c.scalar("add", open_sizes, c.cast(is_open, I64))
        fits = c.scalar("or", is_open, c.scalar("eq", entry, size(c, n)))
        if copies_zero and axis < data.rank:
            copied = c.scalar("and", c.scalar("eq", entry, number(c, 0)),
                              c.scalar("eq", size(c, data.shape[axis]), size(c, n)))
            fits = c.scalar("or", fits, copied)
        conditions.append(fits)
    valid = all_of(c, [*conditions, c.scalar("le", open_sizes, number(c, 1))])
    return c.require(reshape(c, data, shape), valid)


def expand_by_data(c: Context, x: Node, wanted: Node) -> Node:
    """Broadcast with the list of sizes, to the declared shape."""
    shape, given = c.declared_shape("shape", given=wanted), vector(c, wanted)
    entries = _counted(c, given)
    if entries > len(shape):
        c.fail(f"the list of {entries} sizes gives more axes than the {len(shape)} that are declared")
    conditions = []
    for place in range(entries):
        axis = len(shape) - entries + place
        own = axis - (len(shape) - x.rank)
        before: DimLike = x.shape[own] if own >= 0 else 1
        entry = element(c, given, place)
        fits = c.scalar("eq", entry, size(c, shape[axis]))
        kept = c.scalar("and", c.scalar("eq", entry, number(c, 1)), c.scalar("eq", size(c, before), size(c, shape[axis])))
        # a size of 1 grows to any number, another one stays
        grows = c.scalar("or", c.scalar("eq", size(c, before), number(c, 1)), c.scalar("eq", size(c, before), size(c, shape[axis])))
        conditions.append(c.scalar("and", grows, c.scalar("or", fits, kept)))
    for axis in range(len(shape) - entries):
        own = axis - (len(shape) - x.rank)
        conditions.append(c.scalar("eq", size(c, x.shape[own] if own >= 0 else 1), size(c, shape[axis])))
    return c.require(c.broadcast_to(x, shape), all_of(c, conditions))


def filled_by_data(c: Context, fill: Node, wanted: Node) -> Node:
    """ConstantOfShape with the declared shape."""
    shape = c.declared_shape("input", given=wanted)
    return broadcast(c.b, c.require(fill, matches(c, vector(c, wanted), shape)), shape)


def tile_by_data(c: Context, x: Node, repeats: Node) -> Node:
    shape, given = c.declared_shape("repeats", given=repeats), vector(c, repeats)
    if len(shape) != x.rank:
        c.fail(f"the result is declared with {len(shape)} axes, {x.type} has {x.rank}")
    for axis, after in enumerate(shape):
        extent = size(c, x.shape[axis])
        valid = c.scalar("eq", c.scalar("mul", extent, element(c, given, axis)), size(c, after))
        index = c.b.add(Iota(I64, (after,), 0))
        x = take_places(c, x, axis, c.apply("mod", index, extent), valid)
    return x


def axes_of_one(c: Context, data: Node, axes: Node, removed: bool) -> Node:
    """Squeeze and Unsqueeze by axes that data names: only sizes of 1 come or go, so the declared shape says it all."""
    shape = c.declared_shape("axes", given=axes)
    longer, shorter = (data.shape, shape) if removed else (shape, data.shape)
    named = Axes(c, axes, len(longer), len(longer) - len(shorter))
    # the axes that stay are those of the other shape, in order: entry k of it is the k-th axis that is not named
    conditions, before = [named.valid], number(c, 0)
    for axis, n in enumerate(longer):
        gone = named.named(axis)
        fits = c.scalar("and", gone, c.scalar("eq", size(c, n), number(c, 1)))
        for place, m in enumerate(shorter):
            same = all_of(c, [c.scalar("not", gone), c.scalar("eq", before, number(c, place)),
                              c.scalar("eq", size(c, n), size(c, m))])
            fits = c.scalar("or", fits, same)
        conditions.append(fits)
        before = c.scalar("add", before, c.cast(c.scalar("not", gone), I64))
    return c.require(c.reshape(data, shape), all_of(c, conditions))


# --- ranges and padding ----------------------------------------------------------------------------------------------


def range_by_data(c: Context, start: Node, limit: Node, delta: Node) -> Node:
    """start + i delta, for as many i as the model declares."""
    shape, dtype = c.declared_shape("limit", given=limit), start.dtype
    start, limit, delta = (c.reshape(x, ()) for x in (start, limit, delta))
    distance = c.scalar("sub", limit, start)
    if dtype.is_float:
        count = c.cast(c.scalar("ceil", c.scalar("div", distance, delta)), I64)
    else:
        count = c.scalar("neg", c.scalar("floordiv", c.cast(c.scalar("sub", start, limit), I64), c.cast(delta, I64)))
    count = c.scalar("max", count, number(c, 0))
    valid = c.scalar("and", c.scalar("ne", delta, c.like(0, delta)), c.scalar("eq", count, size(c, shape[0])))
    index = c.b.add(Iota(I64 if dtype.is_integer else dtype, shape, 0))
    return c.apply("add", c.apply("mul", c.cast(index, dtype), delta), c.require(start, valid))


def pad_by_data(c: Context, data: Node, pads: Integers, fill: Node, axes: Integers, mode: str,
                fold: Callable[[Context, Node, Node, str], Node]) -> Node:
    """Place i of an axis is place i - low of the input; outside it is the fill, or `fold` brings it back inside."""
    shape, widths = c.declared_shape("pads", given=pads), vector(c, pads)
    if len(shape) != data.rank:
        c.fail(f"the result is declared with {len(shape)} axes, {data.type} has {data.rank}")
    count = _counted(c, widths) // 2
    named = Axes(c, axes, data.rank, count)
    low, high = slice_axis(c.b, widths, 0, 0, count), slice_axis(c.b, widths, 0, count, count)
    masks = []
    for axis in range(data.rank):
        if not named.may_name(axis):
            continue
        extent, zero = size(c, data.shape[axis]), number(c, 0)
        before, after = named.entry(low, axis, zero), named.entry(high, axis, zero)
        total = c.scalar("add", c.scalar("add", before, extent), after)
        valid = c.scalar("and", named.valid, c.scalar("eq", total, size(c, shape[axis])))
        place = c.apply("sub", c.b.add(Iota(I64, (shape[axis],), 0)), before)
        if mode == "constant":
            inside = c.apply("and", c.apply("ge", place, zero), c.apply("lt", place, extent))
            masks.append(c.reshape(inside, [shape[axis] if a == axis else 1 for a in range(data.rank)]))
            place = clamp(c, place, zero, c.scalar("sub", extent, number(c, 1)))
        else:
            place = fold(c, place, extent, mode)
        data = take_places(c, data, axis, place, valid)
    for mask in masks:
        data = c.apply("select", mask, data, fill)
    return data


def split_by_data(c: Context, x: Node, parts: Node, axis: int) -> tuple[Node, ...]:
    """Parts of the declared sizes, which the list must name."""
    sizes = [c.declared_shape("split", i, x.rank, given=parts)[axis] for i in range(c.output_count)]
    valid = matches(c, vector(c, parts), sizes)
    total = sizes[0]
    for n in sizes[1:]:
        total = total + n
    x = c.require(c.refine(x, [total if a == axis else n for a, n in enumerate(x.shape)]), valid)
    return slice_parts(c.b, x, axis, sizes)


# --- axes to reduce --------------------------------------------------------------------------------------------------

MOST_CANDIDATES = 16
MOST_AXES = 12      # whose sets are listed


def reduce_by_data(c: Context, data: Node, axes: Node, keep: bool, combine: Callable[..., Node]) -> Node:
    """Over the axes that data names: those sets of axes that lead to the declared shape are computed, and one is chosen."""
    shape, count = c.declared_shape("axes", given=axes), _counted(c, axes)
    if data.rank > MOST_AXES:
        c.unsupported(f"which of the {data.rank} axes are meant is computed from data; up to {MOST_AXES} are supported")
    named = Axes(c, axes, data.rank, count)
    found = [places for places in _subsets(data.rank, count) if _reduced_shape(data.shape, places, keep) == shape]
    if not found:
        c.unsupported(f"no {count} axes of {data.type} lead to the declared shape ({', '.join(map(str, shape))})")
    if len(found) > MOST_CANDIDATES:
        c.unsupported(f"{len(found)} sets of axes lead to the declared shape; which one is meant is computed from data")
    meant = [all_of(c, [named.valid, *(named.named(a) for a in places)]) for places in found]
    return choose(c, [(is_meant, combine(c, data, places, keep)) for is_meant, places in zip(meant, found)], "axes")


def choose(c: Context, candidates: Sequence[tuple[Node, Node]], what: str) -> Node:
    """That of the values whose condition holds; an error at run time where none does."""
    if not candidates:
        c.unsupported(f"no value of input '{what}' leads to the declared shape")
    result, chosen = candidates[0][1], candidates[0][0]
    for is_meant, value in candidates[1:]:
        result = c.apply("select", is_meant, value, result)
        chosen = c.scalar("or", chosen, is_meant)
    return c.require(result, chosen)


def _subsets(rank: int, count: int) -> list[tuple[int, ...]]:
    return [tuple(a for a in range(rank) if chosen >> a & 1) for chosen in range(1 << rank) if chosen.bit_count() == count]


def _reduced_shape(shape: Sequence[DimLike], places: Sequence[int], keep: bool) -> tuple[DimLike, ...]:
    if keep:
        return tuple(1 if a in places else n for a, n in enumerate(shape))
    return tuple(n for a, n in enumerate(shape) if a not in places)


def along_axis_by_data(c: Context, x: Node, axis: Node, compute: Callable[[int], Node]) -> Node:
    """`compute` along the axis that data names, the shape of x staying as it is: one of the results for each axis."""
    named = Axes(c, axis, x.rank, 1)
    result = compute(0)
    for place in range(1, x.rank):
        result = c.apply("select", named.named(place), compute(place), result)
    return c.require(result, named.valid)
