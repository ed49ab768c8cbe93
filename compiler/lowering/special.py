"""Ops with loops of their own: running sums, sorting, scatter.

Sorting is a bottom-up merge sort of places, stable by construction (Knuth, The Art of Computer Programming 3, 5.2.4);
values are compared with NaN as the greatest.
"""

from __future__ import annotations

from ..ir.dims import DimLike, Symbol, bounds, ceildiv, dim_min, product, size_of
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, Let, Stmt, Store, While, loop_variable
from ..ir.ops.compute import COMBINE, Cumulative, accumulator_dtype, reduction_identity
from ..ir.ops.shape import ScatterAlong, ScatterND
from ..ir.types import I64, INDEX
from .elements import Loops, Nest, around, nest
from .inline import Index, Inliner, flatten_index, loop_symbol

SCATTER = {"set": "", "add": "add", "mul": "mul", "min": "min", "max": "max"}


def _axes(inliner: Inliner, shape: Index, without: int) -> tuple[Loops, list[DimLike]]:
    """Loops over all axes but one, and the index with a placeholder 0 on that one."""
    loops: Loops = []
    index: list[DimLike] = []
    for axis, size in enumerate(shape):
        symbol, at = loop_symbol(inliner.names.fresh("i"), 1 if axis == without else size)
        index.append(0 if axis == without else at)
        if axis != without and size != 1:
            loops.append((symbol, size))
    return loops, index


def lower_cumulative(op: Cumulative, x: Buffer, out: Buffer, inliner: Inliner, lanes: int) -> Nest:
    """Runs along the axis; other axes are independent, the last of them a vector loop."""
    loops, index = _axes(inliner, x.shape, op.axis)
    size = x.shape[op.axis]
    dtype = accumulator_dtype(x.dtype)
    running = Buffer(inliner.names.fresh("running"), dtype, (), "register")
    step, k = loop_symbol(inliner.names.fresh("k"), size)
    index[op.axis] = size - 1 - k if op.reverse else k
    place = flatten_index(index, x.shape)
    inside = inliner.inner()
    value = inside.cast(inside.load(x, tuple(index)), dtype)
    total = inside.scalar(COMBINE[op.kind], inside.load(running, ()), value)
    update = Store(running.name, (), total)
    store = Store(out.name, (place,), inside.cast(inside.load(running, ()), x.dtype))
    round_body: tuple[Stmt, ...] = (store, update) if op.exclusive else (update, store)
    start = Store(running.name, (), inliner.literal(reduction_identity(op.kind, dtype), dtype))
    body: tuple[Stmt, ...] = (Alloc(running), start, For(step, size, "serial", round_body))
    if loops and op.axis != len(x.shape) - 1:
        return nest(loops, body, lanes, inliner.names)
    return around(loops, body, inliner.names)


# --- sorting ---------------------------------------------------------------------------------------------------------


class _Registers:
    """Named index variables in registers, and their values as sizes for index expressions."""

    def __init__(self, inliner: Inliner) -> None:
        self.inliner = inliner
        self.buffers: dict[str, Buffer] = {}

    def declare(self, name: str, value: DimLike) -> list[Stmt]:
        buffer = Buffer(self.inliner.names.fresh(name), INDEX, (), "register")
        self.buffers[name] = buffer
        return [Alloc(buffer), Store(buffer.name, (), self.inliner.index(value))]

    def load(self, name: str) -> Node:
        return self.inliner.load(self.buffers[name], ())

    def set(self, name: str, value: Node) -> Stmt:
        return Store(self.buffers[name].name, (), value)

    def read(self, name: str, lower: int, upper: DimLike) -> tuple[Stmt, DimLike]:
        """A let of the variable, as a size with these bounds."""
        high = bounds(upper)[1]
        found = Symbol(self.inliner.names.fresh(name + "_"), lower, None if high == float("inf") else max(int(high), lower))
        return Let(found.name, self.load(name), found), size_of(found)


def lower_argsort(axis: int, descending: bool, x: Buffer, out: Buffer, spare: Buffer, inliner: Inliner) -> Nest:
    """Sorts the places of each row: runs of width 1, 2, 4, ... are merged from `out` into `spare` and copied back."""
    loops, index = _axes(inliner, x.shape, axis)
    size = x.shape[axis]

    def at(position: DimLike) -> DimLike:
        return flatten_index((*index[:axis], position, *index[axis + 1:]), x.shape)

    registers = _Registers(inliner)
    start, k = loop_symbol(inliner.names.fresh("k"), size)
    fill = For(start, size, "serial", (Store(out.name, (at(k),), inliner.cast(inliner.index(k), I64)),))
    body: list[Stmt] = [fill, *registers.declare("width", 1)]
    read_width, width = registers.read("width", 1, size)
    pair, p = loop_symbol(inliner.names.fresh("p"), ceildiv(size, width * 2))
    merge = _merge_runs(p, width, size, at, descending, x, out, spare, inliner)
    again, c = loop_symbol(inliner.names.fresh("k"), size)
    copy_back = For(again, size, "serial", (Store(out.name, (at(c),), _flat(inliner, spare, at(c))),))
    twice = inliner.scalar("add", registers.load("width"), registers.load("width"))
    more = inliner.scalar("lt", registers.load("width"), inliner.index(size))
    body.append(While(more, (read_width, For(pair, ceildiv(size, width * 2), "serial", tuple(merge)), copy_back,
                             registers.set("width", twice))))
    return around(loops, tuple(body), inliner.names)


def _flat(inliner: Inliner, buffer: Buffer, position: DimLike) -> Node:
    return inliner.load(Buffer(buffer.name, buffer.dtype, (product(buffer.shape),), buffer.space), (position,))


def _merge_runs(p: DimLike, width: DimLike, size: DimLike, at: object, descending: bool, x: Buffer, out: Buffer,
                spare: Buffer, inliner: Inliner) -> list[Stmt]:
    """Merges the runs [low, middle) and [middle, high) of `out` into `spare`."""
    assert callable(at)
    low = p * width * 2
    middle = dim_min(low + width, size)
    high = dim_min(low + width * 2, size)
    registers = _Registers(inliner)
    statements = [*registers.declare("left", low), *registers.declare("right", middle)]
    step, o = loop_symbol(inliner.names.fresh("o"), high - low)
    inside = inliner.inner()
    registers.inliner = inside
    read_left, left = registers.read("left", 0, size)
    read_right, right = registers.read("right", 0, size)
    inside.block += [read_left, read_right]
    from_left = inside.latch(_flat(inside, out, at(dim_min(left, size - 1))))
    from_right = inside.latch(_flat(inside, out, at(dim_min(right, size - 1))))
    value_left = _value_at(inside, x, from_left, at, size)
    value_right = _value_at(inside, x, from_right, at, size)
    first, second = (value_left, value_right) if descending else (value_right, value_left)
    strictly = _less(inside, first, second)
    left_ends = inside.scalar("lt", inside.index(left), inside.index(middle))
    right_ended = inside.scalar("ge", inside.index(right), inside.index(high))
    keep_left = inside.scalar("or", right_ended, inside.scalar("not", strictly))
    take_left = inside.latch(inside.scalar("and", left_ends, keep_left))
    inside.block.append(Store(spare.name, (at(low + o),), inside.scalar("select", take_left, from_left, from_right)))
    one, zero = inside.literal(1, INDEX), inside.literal(0, INDEX)
    inside.block.append(registers.set("left", inside.scalar("add", inside.index(left),
                                                            inside.scalar("select", take_left, one, zero))))
    inside.block.append(registers.set("right", inside.scalar("add", inside.index(right),
                                                             inside.scalar("select", take_left, zero, one))))
    statements.append(For(step, high - low, "serial", tuple(inside.block)))
    return statements


def _value_at(inliner: Inliner, x: Buffer, place: Node, at: object, size: DimLike) -> Node:
    assert callable(at)
    found = loop_variable(inliner.names.fresh("place"), size)
    inliner.block.append(Let(found.name, inliner.cast(place, INDEX), found))
    return inliner.latch(_flat(inliner, x, at(size_of(found))))


def _less(inliner: Inliner, a: Node, b: Node) -> Node:
    """a < b with NaN as the greatest."""
    less = inliner.scalar("lt", a, b)
    if not a.dtype.is_float:
        return less
    number = inliner.scalar("not", inliner.scalar("isnan", a))
    return inliner.scalar("or", less, inliner.scalar("and", number, inliner.scalar("isnan", b)))


def lower_take_sorted(axis: int, x: Buffer, places: Buffer, out: Buffer, inliner: Inliner) -> Nest:
    """out[.., i, ..] = x[.., places[.., i, ..], ..]; the places are a permutation, so no check is needed."""
    loops, index = _axes(inliner, x.shape, axis)
    step, k = loop_symbol(inliner.names.fresh("k"), x.shape[axis])
    index[axis] = k
    inside = inliner.inner()
    place = _flat(inside, places, flatten_index(index, x.shape))

    def at(position: DimLike) -> DimLike:
        return flatten_index((*index[:axis], position, *index[axis + 1:]), x.shape)

    value = _value_at(inside, x, place, at, x.shape[axis])
    inside.block.append(Store(out.name, (flatten_index(index, x.shape),), value))
    return around(loops, (For(step, x.shape[axis], "serial", tuple(inside.block)),), inliner.names)


# --- scatter ---------------------------------------------------------------------------------------------------------


def lower_scatter(node: Node, indices: Buffer, updates: Buffer, target: Buffer, inliner: Inliner) -> Nest:
    """Updates in C order on one thread: the order decides when two meet at one place."""
    op = node.op
    assert isinstance(op, (ScatterND, ScatterAlong))
    axes = [(*loop_symbol(inliner.names.fresh("i"), n), n) for n in updates.shape]
    index = tuple(at for _, at, _ in axes)
    inside = inliner.inner()
    if isinstance(op, ScatterND):
        depth = int(indices.shape[-1])
        grid = index[:len(indices.shape) - 1]
        places = [inside.checked(node, inside.load(indices, (*grid, k)), target.shape[k]) for k in range(depth)]
        place: Index = (*places, *index[len(grid):])
    else:
        found = inside.checked(node, inside.load(indices, index), target.shape[op.axis])
        place = (*index[:op.axis], found, *index[op.axis + 1:])
    combine = SCATTER[op.kind]
    inside.block.append(Store(target.name, (flatten_index(place, target.shape),), inside.load(updates, index), combine))
    body: tuple[Stmt, ...] = tuple(inside.block)
    for symbol, _, size in reversed(axes):
        body = (For(symbol, size, "serial", body),)
    return around([], body, inliner.names)
