"""`winograd_conv` with an epilogue: blocks of tiles that stay in a thread's own memory from input to result.

For the tiles of a block: their input as B makes it, all channels (vectors run along these); then for each panel of the
weights one product of matrices a point, in registers, and what A makes of the products, to which the epilogue is applied.
Tiles that reach past the result read clamped elements, which exist, and store only what belongs to it; where the tiles do
not fill a register tile of rows the last one is computed several times.

A group may end with a `pad`: elements are stored where they lie within it, and the borders are written by others.

Every tile is computed alike, whatever block and thread it is in, so results do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, ceildiv, dim_min, divides, product, row_major_strides, size_of
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, Let, Stmt, Store, loop_variable
from ..ir.ops.shape import Pad
from ..ir.ops.winograd import WinogradConv
from ..ir.winograd import apply_rows, in_order
from ..tiles import MANY_ROWS, Tile, choose_tile, tiles_in_block
from .inline import Index, Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index

ENOUGH_BLOCKS = 4  # that threads can share


class Block(Struct, frozen=True):
    """`tiles` are worked on together, a multiple of the rows of the register tile."""

    tiles: int
    register: Tile


def choose_block(node: Node, caps: Caps) -> Block:
    """The size of blocks for a winograd_conv."""
    op = node.op
    assert isinstance(op, WinogradConv)
    points, channels, columns = node.inputs[1].shape[0], node.inputs[0].shape[-1], node.inputs[1].shape[-1]
    assert isinstance(points, int) and isinstance(channels, int) and isinstance(columns, int)
    register = choose_tile(columns, MANY_ROWS, node.dtype, caps)
    most = tiles_in_block(points, channels, node.dtype, caps)
    count = product(_tiles(node, op))
    if isinstance(count, int):
        blocks = max(-(-count // most), min(ENOUGH_BLOCKS, -(-count // register.rows)))
        most = -(-count // blocks)
    return Block(max(1, -(-most // register.rows)) * register.rows, register)


def _tiles(node: Node, op: WinogradConv) -> tuple[DimLike, ...]:
    """How many there are along the batch and each spatial axis."""
    return (node.shape[0], *(ceildiv(n, m) for n, m in zip(node.shape[1:-1], op.results)))


def lower_winograd(node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, block: Block) -> Stmt:
    """The loop nest of `node` (winograd_conv) and the epilogue that leads from it to `result`; of a result that is padded,
    all but the borders."""
    return _Work(node, result, out, lhs, rhs, inliner, block).lower()


class _Work:
    """The statements of one kernel."""

    def __init__(self, node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, block: Block) -> None:
        assert isinstance(node.op, WinogradConv)
        self.node, self.result, self.out, self.lhs, self.rhs = node, result, out, lhs, rhs
        self.inliner, self.names, self.block = inliner, inliner.names, block
        self.axes = node.op.axes
        self.tiles = _tiles(node, node.op)
        self.count = product(self.tiles)
        self.points, self.panels, self.depth, self.columns = node.inputs[1].tensor.static_shape
        self.channels, self.groups = node.inputs[0].shape[-1], node.op.groups
        self.of_group = node.op.channels // self.groups
        self.lanes, dtype = block.register.lanes, node.dtype
        self.taken = Buffer(self.names.fresh("taken"), dtype, (self.points, block.tiles, self.channels), "local")
        self.products = Buffer(self.names.fresh("products"), dtype, (self.points, block.tiles, self.columns), "local")
        made = prod(axis.results for axis in self.axes)
        self.made = Buffer(self.names.fresh("made"), dtype, (made, self.columns), "local")

    def lower(self) -> Stmt:
        variable, number = loop_symbol(self.names.fresh("block"), ceildiv(self.count, self.block.tiles))
        first = number * self.block.tiles
        lets = self._count_groups(first)
        panels = self.panels // self.groups
        group, g = loop_symbol(self.names.fresh("group"), self.groups)
        panel, p = loop_symbol(self.names.fresh("panel"), panels)
        each = For(panel, panels, "serial", (self._multiply(g, g * panels + p), self._give(first, g, p)))
        body = (*lets, Alloc(self.taken), self._take(first), Alloc(self.products), Alloc(self.made),
                *((For(group, self.groups, "serial", (each,)),) if self.groups > 1 else (each,)))
        return For(variable, ceildiv(self.count, self.block.tiles), "parallel", body)

    def _count_groups(self, first: DimLike) -> list[Stmt]:
        """Register tiles of rows that the block has: the last block may have fewer."""
        rows = self.block.register.rows
        whole = self.block.tiles // rows
        if divides(self.block.tiles, self.count):
            self.groups_here: DimLike = whole
            return []
        lets, self.groups_here = self._named("groups", dim_min(whole, ceildiv(self.count - first, rows)), whole + 1)
        return lets

    # --- where tiles are ---------------------------------------------------------------------------------------------

    def _named(self, label: str, size: DimLike, extent: DimLike) -> tuple[list[Stmt], DimLike]:
        """A let for a size below `extent`, so that the indices made from it stay short."""
        if isinstance(size, int):
            return [], size
        found = loop_variable(self.names.fresh(label), extent)
        return [Let(found.name, self.inliner.index(size), found)], size_of(found)

    def _place(self, number: DimLike) -> tuple[list[Stmt], Index]:
        """The number of a tile along each axis."""
        lets, number = self._named("number", number, self.count)
        place: list[DimLike] = []
        for size, extent in zip(unflatten_index(number, self.tiles), self.tiles, strict=True):
            more, named = self._named("tile", size, extent)
            lets += more
            place.append(named)
        return lets, tuple(place)

    # --- the input ---------------------------------------------------------------------------------------------------

    def _take(self, first: DimLike) -> Stmt:
        """B on both sides of each tile's elements."""
        count = self.groups_here * self.block.register.rows
        tile, t = loop_symbol(self.names.fresh("t"), count)
        number = first + t if divides(self.block.tiles, self.count) else dim_min(first + t, self.count - 1)
        lets, (n, *place) = self._place(number)
        steps = row_major_strides(self.lhs.shape)
        offsets: list[list[DimLike]] = [[n * steps[0]]]
        for axis, at, size, step in zip(self.axes, place, self.lhs.shape[1:-1], steps[1:-1]):
            offsets.append([])
            for i in range(axis.points):
                place_in = at * axis.results + i
                inside = divides(axis.results, size - (axis.taps - 1))
                more, named = self._named("at", (place_in if inside else dim_min(place_in, size - 1)) * step, size * step)
                lets += more
                offsets[-1].append(named)
        lane, c = loop_symbol(self.names.fresh("c"), self.channels)
        inner = self.inliner.inner()
        flat = Buffer(self.lhs.name, self.lhs.dtype, (product(self.lhs.shape),), self.lhs.space)
        values = [inner.latch(inner.load(flat, (place_in + c,))) for place_in in _sums(offsets)]
        for position, value in enumerate(self._apply(inner, values, [axis.input for axis in self.axes])):
            inner.block.append(Store(self.taken.name, (position, t, c), value))
        vectors = For(lane, self.channels, "vector", tuple(inner.block), self.lanes)
        return For(tile, count, "serial", (*lets, vectors))

    def _apply(self, inner: Inliner, values: list[Node], matrices: Sequence[tuple[tuple[float, ...], ...]]) -> list[Node]:
        """The matrices on the values, one axis after the other; both in C order."""
        def combine(terms: Sequence[tuple[float, Node]]) -> Node:
            return _sum(inner, terms)

        shape = [len(matrix[0]) for matrix in matrices]
        for axis, matrix in enumerate(matrices):
            before, after = prod(shape[:axis]), prod(shape[axis + 1:])
            made: list[Node] = [values[0]] * (before * len(matrix) * after)
            for i in range(before):
                for j in range(after):
                    line = [values[(i * shape[axis] + k) * after + j] for k in range(shape[axis])]
                    for k, value in enumerate(apply_rows(matrix, line, combine)):
                        made[(i * len(matrix) + k) * after + j] = value
            values = made
            shape[axis] = len(matrix)
        return values

    # --- the products ------------------------------------------------------------------------------------------------

    def _multiply(self, of: DimLike, panel: DimLike) -> Stmt:
        """For each point the tiles' input of a group times a panel of the weights, a register tile at a time."""
        register, dtype = self.block.register, self.node.dtype
        point, p = loop_symbol(self.names.fresh("point"), self.points)
        group, g = loop_symbol(self.names.fresh("rows"), self.groups_here)
        step, k = loop_symbol(self.names.fresh("k"), self.depth)
        total = Buffer(self.names.fresh("acc"), dtype, (register.rows, register.columns), "register")
        inner = self.inliner.inner()
        zero = self._each(total, lambda r, column: Store(total.name, (r, column), inner.literal(0.0, dtype)))
        right = ((p * self.panels + panel) * self.depth + k) * self.columns
        weights = Buffer(self.rhs.name, dtype, (product(self.rhs.shape),), self.rhs.space)

        def update(r: DimLike, column: DimLike) -> Stmt:
            left = inner.load(self.taken, (p, g * register.rows + r, of * self.depth + k))
            return Store(total.name, (r, column), inner.multiply_add(left, inner.load(weights, (right + column,)),
                                                                     inner.load(total, (r, column))))

        store = self._each(total, lambda r, column: Store(self.products.name, (p, g * register.rows + r, column),
                                                          inner.load(total, (r, column))))
        loop = For(step, self.depth, "serial", (self._each(total, update),))
        return For(point, self.points, "serial", (For(group, self.groups_here, "serial", (Alloc(total), zero, loop, store)),))

    def _each(self, total: Buffer, make: Callable[[DimLike, DimLike], Stmt]) -> Stmt:
        """A statement for each element of a register tile."""
        rows, columns = total.shape
        row, r = loop_symbol(self.names.fresh("r"), rows)
        vector, v = loop_symbol(self.names.fresh("v"), columns // self.lanes)
        lane, j = loop_symbol(self.names.fresh("j"), self.lanes)
        body = (make(r, v * self.lanes + j),)
        return For(row, rows, "unrolled", (For(vector, columns // self.lanes, "unrolled", (For(lane, self.lanes, "vector", body,
                                                                                              self.lanes),)),))

    # --- the result --------------------------------------------------------------------------------------------------

    def _give(self, first: DimLike, group: DimLike, panel: DimLike) -> Stmt:
        """A on both sides of each tile's products, and the epilogue on what belongs to the result."""
        tile, t = loop_symbol(self.names.fresh("t"), self.block.tiles)
        lets, (n, *place) = self._place(first + t)
        vector, v = loop_symbol(self.names.fresh("v"), self.columns // self.lanes)
        lane, j = loop_symbol(self.names.fresh("j"), self.lanes)
        inner = self.inliner.inner()
        values = [inner.latch(inner.load(self.products, (p, t, v * self.lanes + j))) for p in range(self.points)]
        for position, value in enumerate(self._apply(inner, values, [axis.output for axis in self.axes])):
            inner.block.append(Store(self.made.name, (position, v * self.lanes + j), value))
        make = For(vector, self.columns // self.lanes, "serial", (For(lane, self.lanes, "vector", tuple(inner.block), self.lanes),))
        rest = dim_min(self.block.tiles, self.count - first)
        return For(tile, rest, "serial", (*lets, make, self._epilogue(n, place, group, panel)))

    def _epilogue(self, n: DimLike, place: Sequence[DimLike], group: DimLike, panel: DimLike) -> Stmt:
        room = self.of_group - panel * self.columns
        vectors = self.columns // self.lanes
        vector, v = loop_symbol(self.names.fresh("v"), vectors)
        lane, j = loop_symbol(self.names.fresh("j"), self.lanes)
        loops = []
        for axis, at, size in zip(self.axes, place, self.node.shape[1:-1]):
            found, i = loop_symbol(self.names.fresh("i"), axis.results)
            whole = divides(axis.results, size)
            extent = axis.results if whole else dim_min(axis.results, size - at * axis.results)
            loops.append((found, i, extent, at * axis.results + i))
        column = group * self.of_group + panel * self.columns + v * self.lanes + j
        index = (n, *(at for *_, at in loops), column)
        inner = self.inliner.inner()
        position = flatten_index([i for _, i, *_ in loops], [axis.results for axis in self.axes])
        inner.bind(self.node, index, lambda: inner.load(self.made, (position, v * self.lanes + j)))
        body = self._store(inner, index)
        whole = divides(self.columns, self.of_group)
        count = self.lanes if whole else dim_min(self.lanes, room - v * self.lanes)
        body = (For(lane, count, "vector", body, self.lanes),)
        present = vectors if whole else dim_min(vectors, ceildiv(room, self.lanes))
        body = (For(vector, present, "serial", body),)
        for found, _, extent, _ in reversed(loops):
            body = (For(found, extent, "serial", body),)
        return body[0]

    def _store(self, inner: Inliner, index: Index) -> tuple[Stmt, ...]:
        result = self.result.inputs[0] if isinstance(self.result.op, Pad) else self.result
        moved = reshape_index(index, self.node.shape, result.shape)
        value = inner.value(result, moved)
        if isinstance(self.result.op, Pad):
            moved = tuple(low + i for low, i in zip(self.result.op.low, moved))
        return (*inner.block, Store(self.out.name, (flatten_index(moved, self.result.shape),), value))


def _sums(offsets: Sequence[Sequence[DimLike]]) -> list[DimLike]:
    """All sums of one offset of each list, in C order."""
    found: list[DimLike] = [0]
    for choices in offsets:
        found = [total + choice for total in found for choice in choices]
    return found


def _sum(inner: Inliner, terms: Sequence[tuple[float, Node]]) -> Node:
    """factor * value summed, by additions where the factor allows it."""
    (factor, value), *rest = in_order(terms)
    total = value if factor == 1 else inner.scalar("mul", inner.literal(factor, value.dtype), value)
    for factor, value in rest:
        if abs(factor) == 1:
            total = inner.scalar("add" if factor == 1 else "sub", total, value)
        else:
            total = inner.multiply_add(inner.literal(factor, value.dtype), value, total)
    return total
