"""Contractions in registers: `packed_dot` and `packed_conv` with an epilogue computed while the tile is in registers.

The result's rows are cut into tiles of `rows` and its columns into the panels of the packed operand. One tile is a
register buffer of vectors; the inner loop over the contraction multiplies a row of the panel with one scalar of each
row of the left operand (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008). Where a
dimension is not a multiple of its tile a second, guarded body handles the edge: it reads clamped rows, which exist, and
stores only what belongs to the result.

A group may end with a `pad`: the epilogue then stores each element where it lies within the padding, and `elements`
fills the borders. Where a row of the tile lies is counted along with the rows, so that only the first one is divided.

No iteration over the contraction is split between threads, so results do not depend on their number.

The tile is built as it is, and not scheduled from a plain product like other nests (`elements`): the accumulators, the
clamped rows and the second body would take tens of steps a kernel, some of which nothing else would use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from ..ir.dims import DimLike, Symbol, add_all, ceildiv, dim_min, divides, product, row_major_strides, size_of
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Let, Stmt, Store, loop_variable
from ..ir.ops.compute import PackedConv, PackedDot, accumulator_dtype
from ..ir.ops.shape import Pad
from ..ir.types import INDEX
from ..tiles import Tile
from .inline import Index, Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index


class Operand(Struct, frozen=True):
    """The left operand as the tile reads it: element (row, step), and the loops over the contraction.

    `steps`: extents of the loops over the contraction, outer first. `read(bases, at)` is the flat address for a row
    whose base address is given; `base(row)` that base. `panel(at)` the position along the packed operand's second axis.
    """

    rows: DimLike
    steps: tuple[DimLike, ...]
    base: Callable[[DimLike], DimLike]
    offset: Callable[[Index], DimLike]
    panel: Callable[[Index], DimLike]


def row_operand(node: Node, batch: Index) -> Operand:
    """How the rows of a contraction are read: plain rows of a matrix, or the windows of a convolution."""
    match node.op:
        case PackedDot(batch=count):
            shape = node.inputs[0].shape
            rows, depth = product(shape[count:-1]), shape[-1]
            start = flatten_index(batch, shape[:count]) * rows * depth
            return Operand(rows, (depth,), lambda row: start + row * depth, lambda at: at[0], lambda at: at[0])
        case PackedConv():
            return _window_operand(node)
    raise AssertionError(f"{node.op.spelling} is no contraction")


def _window_operand(node: Node) -> Operand:
    op, x = node.op, node.inputs[0]
    assert isinstance(op, PackedConv)
    channels = x.shape[-1]
    strides = [product(x.shape[a + 1:]) for a in range(x.rank)]
    out = node.shape[:-1]

    def base(row: DimLike) -> DimLike:
        n, *spatial = unflatten_index(row, out)
        return n * strides[0] + sum((i * s * w for i, s, w in zip(spatial, op.strides, strides[1:])), start=0)

    # taps along the last axis lie beside one another: with dilation 1 they and the channels are one loop
    joined = op.dilation[-1] == 1
    taps = (*op.kernel[:-1], op.kernel[-1] * channels) if joined else (*op.kernel, channels)
    steps = [d * w for d, w in zip(op.dilation[:-1], strides[1:-2])] + (
        [1] if joined else [op.dilation[-1] * strides[-2], 1])

    def offset(at: Index) -> DimLike:
        return sum((i * s for i, s in zip(at, steps, strict=True)), start=0)

    return Operand(product(out), taps, base, offset, lambda at: flatten_index(at, taps))


def lower_contraction(node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner,
                      tile: Tile) -> Stmt:
    """The loop nest of `node` (packed_dot or packed_conv) and the epilogue that leads from it to `result`; of a result
    that is padded, all but the borders."""
    names = inliner.names
    count = node.op.batch if isinstance(node.op, PackedDot) else 0
    batch_shape = node.shape[:count]
    columns = node.shape[-1]
    panels = ceildiv(columns, tile.columns)
    operand = row_operand(node, tuple(0 for _ in batch_shape))
    row_tiles = ceildiv(operand.rows, tile.rows)
    extent = product(batch_shape) * panels * row_tiles
    variable, at = loop_symbol(names.fresh("t"), extent)
    names_of = [*(f"b{a}_" for a in range(count)), "panel", "tile"]
    lets, parts = _named_parts(inliner, names_of, unflatten_index(at, (*batch_shape, panels, row_tiles)))
    *batch, panel, row_tile = parts
    work = _TileWork(node, result, out, lhs, rhs, inliner, tile, tuple(batch), panel, row_tile)
    body = work.body(guarded=False)
    if not (divides(tile.rows, operand.rows) and divides(tile.columns, columns)):
        whole_rows = inliner.scalar("le", inliner.index((row_tile + 1) * tile.rows), inliner.index(operand.rows))
        whole_columns = inliner.scalar("le", inliner.index((panel + 1) * tile.columns), inliner.index(columns))
        body = (If(inliner.scalar("and", whole_rows, whole_columns), body, work.body(guarded=True)),)
    return For(variable, extent, "parallel", (*lets, *body))


def _named_parts(inliner: Inliner, labels: Sequence[str], index: Index) -> tuple[list[Stmt], list[DimLike]]:
    """Lets for the parts of the tile's number, so that the many indices made from them stay short."""
    lets: list[Stmt] = []
    parts: list[DimLike] = []
    for label, size in zip(labels, index, strict=True):
        if isinstance(size, int):
            parts.append(size)
            continue
        found = loop_variable(inliner.names.fresh(label), size + 1)
        lets.append(Let(found.name, inliner.index(size), found))
        parts.append(size_of(found))
    return lets, parts


class _Within(Struct, frozen=True):
    """Where a contraction's elements lie in a padded result. `batch`: how far apart neighbours along the batch axes are;
    `rows`: size and distance of what the number of a row is made of, outer first; `first`: where the first element is."""

    batch: tuple[DimLike, ...]
    rows: tuple[tuple[DimLike, DimLike], ...]
    first: DimLike


def _within(node: Node, pad: Node, batch: int) -> _Within:
    assert isinstance(pad.op, Pad)
    steps = row_major_strides(pad.shape)
    kept = iter([step for step, n in zip(steps, pad.inputs[0].shape) if n != 1])
    distances = [0 if n == 1 else next(kept) for n in node.shape]
    rows: list[tuple[DimLike, DimLike]] = []
    for size, distance in reversed([*zip(node.shape[batch:-1], distances[batch:-1])]):
        if size != 1 and rows and distance == rows[0][0] * rows[0][1]:  # nothing lies between the two axes
            rows[0] = size * rows[0][0], rows[0][1]
        elif size != 1:
            rows.insert(0, (size, distance))
    return _Within(tuple(distances[:batch]), tuple(rows), add_all(n * step for n, step in zip(pad.op.low, steps)))


class _Target(Struct, frozen=True):
    """Where the epilogue stores a row: its first column, and what counts it: statements before all rows, before a row and
    behind it."""

    start: DimLike
    begin: tuple[Stmt, ...] = ()
    enter: tuple[Stmt, ...] = ()
    leave: tuple[Stmt, ...] = ()


class _TileWork:
    """The statements of one tile."""

    def __init__(self, node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, tile: Tile,
                 batch: Index, panel: DimLike, row_tile: DimLike) -> None:
        self.within = _within(node, result, len(batch)) if isinstance(result.op, Pad) else None
        self.node, self.result, self.out, self.lhs, self.rhs = node, result, out, lhs, rhs
        if self.within is not None:
            self.result = result.inputs[0]
        self.inliner, self.names, self.tile = inliner, inliner.names, tile
        self.batch, self.panel = batch, panel
        self.operand = row_operand(node, batch)
        self.first_row = row_tile * tile.rows
        self.columns = node.shape[-1]
        self.dtype = accumulator_dtype(node.dtype)

    def body(self, guarded: bool) -> tuple[Stmt, ...]:
        accumulator = Buffer(self.names.fresh("acc"), self.dtype, (self.tile.rows, self.tile.columns), "register")
        return (Alloc(accumulator), self._clear(accumulator), self._contract(accumulator, guarded),
                *self._epilogue(accumulator, guarded))

    def _row_loop(self) -> tuple[Symbol, DimLike]:
        return loop_symbol(self.names.fresh("r"), self.tile.rows)

    def _column_loops(self) -> tuple[Symbol, DimLike, Symbol, DimLike]:
        """The loop over the tile's vectors and the loop over the lanes of one."""
        vector, v = loop_symbol(self.names.fresh("v"), self.tile.columns // self.tile.lanes)
        lane, j = loop_symbol(self.names.fresh("j"), self.tile.lanes)
        return vector, v, lane, j

    def _over_columns(self, vector: Symbol, lane: Symbol, body: tuple[Stmt, ...]) -> Stmt:
        lanes = self.tile.lanes
        return For(vector, self.tile.columns // lanes, "unrolled", (For(lane, lanes, "vector", body, lanes),))

    def _clear(self, accumulator: Buffer) -> Stmt:
        row, r = self._row_loop()
        vector, v, lane, j = self._column_loops()
        zero = self.inliner.literal(0.0 if self.dtype.is_float else 0, self.dtype)
        store = Store(accumulator.name, (r, v * self.tile.lanes + j), zero)
        return For(row, self.tile.rows, "unrolled", (self._over_columns(vector, lane, (store,)),))

    def _contract(self, accumulator: Buffer, guarded: bool) -> Stmt:
        """The loops over the contraction: one vector of the panel at a time meets one element of each row."""
        steps = [loop_symbol(self.names.fresh("k"), n) for n in self.operand.steps]
        at = tuple(s for _, s in steps)
        depth, panels = self.node.inputs[1].shape[-2], self.node.inputs[1].shape[-3]
        batch = flatten_index(self.batch, self.node.shape[:len(self.batch)])
        panel = ((batch * panels + self.panel) * depth + self.operand.panel(at)) * self.tile.columns
        vector, v, lane, j = self._column_loops()
        row, r = self._row_loop()
        inner = self.inliner.inner()
        column = v * self.tile.lanes + j
        right = self._read(inner, self.rhs, panel + column)
        # in a guarded body rows past the end read the last one, which exists
        place = self.first_row + r
        base = self.operand.base(dim_min(place, self.operand.rows - 1) if guarded else place)
        left = self._read(inner, self.lhs, base + self.operand.offset(at))
        old = inner.load(accumulator, (r, column))
        if self.dtype.is_float:
            value = inner.scalar("fma", left, right, old)
        else:
            value = inner.scalar("add", inner.scalar("mul", left, right), old)
        # Row by row: the vectors of the panel stay in registers (equal loads of memory that is only read are one), and
        # of the left operand one broadcast at a time is alive.
        update = self._over_columns(vector, lane, (Store(accumulator.name, (r, column), value),))
        body: Stmt = For(row, self.tile.rows, "unrolled", (update,))
        for (found, _), extent in reversed(list(zip(steps, self.operand.steps))):
            body = For(found, extent, "serial", (body,))
        return body

    def _read(self, inliner: Inliner, buffer: Buffer, flat: DimLike) -> Node:
        shape = Buffer(buffer.name, buffer.dtype, (product(buffer.shape),), buffer.space)
        return inliner.cast(inliner.load(shape, (flat,)), self.dtype)

    def _epilogue(self, accumulator: Buffer, guarded: bool) -> tuple[Stmt, ...]:
        row, r = self._row_loop()
        vector, v, lane, j = self._column_loops()
        place = self.first_row + r
        column = self.panel * self.tile.columns + v * self.tile.lanes + j
        index = (*self.batch, *unflatten_index(place, self.node.shape[len(self.batch):-1]), column)
        inner = self.inliner.inner()
        value = inner.cast(inner.load(accumulator, (r, v * self.tile.lanes + j)), self.node.dtype)
        inner.bind(self.node, index, lambda: value)
        # the result may have other axes of size 1 than the contraction
        stored = inner.value(self.result, reshape_index(index, self.node.shape, self.result.shape))
        if self.within is None:
            target = _Target(flatten_index(index[:-1], self.node.shape[:-1]) * self.columns)
        else:
            target = self._inside_padding(self.within, place)
        body = (*inner.block, Store(self.out.name, (target.start + column,), stored))
        if guarded:
            columns = self._guard(place, vector, v, lane, body)
        else:
            columns = self._over_columns(vector, lane, body)
        return (*target.begin, For(row, self.tile.rows, "unrolled", (*target.enter, columns, *target.leave)))

    def _inside_padding(self, within: _Within, place: DimLike) -> _Target:
        """Where rows lie in a padded result. Several axes of rows are counted like digits: where the row lies, and how far
        each axis but the first has come."""
        fixed = within.first + add_all(i * distance for i, distance in zip(self.batch, within.batch))
        if len(within.rows) < 2:
            return _Target(fixed + add_all(place * distance for _, distance in within.rows))
        inliner, rows = self.inliner, within.rows
        counts = Buffer(self.names.fresh("at"), INDEX, (len(rows),), "register")
        start, *digits = unflatten_index(self.first_row, [n for n, _ in rows])
        first = fixed + add_all(i * distance for i, (_, distance) in zip((start, *digits), rows))
        begin = [Store(counts.name, (i,), inliner.index(size)) for i, size in enumerate((first, *digits))]
        found = loop_variable(self.names.fresh("to"), product(self.out.shape))
        enter = Let(found.name, inliner.load(counts, (0,)), found)
        # the next row: the last digit goes on by one, and each that is full begins again and moves the one before it
        one, zero = inliner.literal(1, INDEX), inliner.literal(0, INDEX)
        inner = inliner.inner()
        moved, step = inner.index(rows[-1][1]), one
        for i in range(len(rows) - 1, 0, -1):
            size, distance = rows[i]
            digit = inner.latch(inner.scalar("add", inner.load(counts, (i,)), step))
            full = inner.latch(inner.scalar("eq", digit, inner.index(size)))
            inner.block.append(Store(counts.name, (i,), inner.scalar("select", full, zero, digit)))
            rest = inner.index(rows[i - 1][1] - size * distance)
            moved = inner.latch(inner.scalar("add", moved, inner.scalar("select", full, rest, zero)))
            step = inner.scalar("select", full, one, zero)
        inner.block.append(Store(counts.name, (0,), moved, "add"))
        return _Target(size_of(found), (Alloc(counts), *begin), (enter,), tuple(inner.block))

    def _guard(self, place: DimLike, vector: Symbol, v: DimLike, lane: Symbol, body: tuple[Stmt, ...]) -> Stmt:
        """The epilogue of a row with stores only for rows and columns that belong to the result."""
        inliner, lanes = self.inliner, self.tile.lanes
        room = self.columns - (self.panel * self.tile.columns + v * lanes)
        has_columns = inliner.scalar("gt", inliner.index(room), inliner.literal(0, INDEX))
        store = If(has_columns, (For(lane, dim_min(lanes, room), "vector", body, lanes),))
        columns = For(vector, self.tile.columns // lanes, "unrolled", (store,))
        belongs = inliner.scalar("lt", inliner.index(place), inliner.index(self.operand.rows))
        return If(belongs, (columns,))
