"""Contractions in registers: `packed_dot` and `packed_conv` with an epilogue computed while the tile is in registers.

The result's rows are cut into tiles of `rows` and its columns into the panels of the packed operand. One tile is a
register buffer of vectors; the inner loop over the contraction multiplies a row of the panel with one scalar of each
row of the left operand (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008). Where the rows
are no multiple of the tile, the last tile begins earlier and computes some rows of its neighbour once more; a guarded
epilogue stores what is its own. So one loop over the contraction serves whole tiles and edges, which halves the code.
Only a tile with a left operand that is packed or turned has a second, guarded body, which reads clamped rows.

Tiles run in blocks (`Blocks`). A block reads parts of panels and of the left operand that stay in the first two levels of
memory; what a tile has summed so far waits in the thread's own memory meanwhile. Next to the work on one panel the next
is prefetched. Where all rows are one tile, each panel is read only once, and its reading
is what takes time: the tile then reads it at several places at a time (`Blocks.streams`), and the left operand is turned
so that its rows lie side by side. Where they are two tiles, both meet one part of a panel, which the first brings near,
before its next part (`Blocks.in_order`).

A group may end with a `pad`: the epilogue then stores each element where it lies within the padding, and `elements`
fills the borders. Where a row lies is counted along with the rows, so that only the first one of a block is divided.

Where it shows only at run time that there are few rows, a nest of its own computes them (`few_rows`).

No iteration over the contraction is split between threads, so results do not depend on their number.

The tile is built as it is, and not scheduled from a plain product like other nests (`elements`): the accumulators, the
tiles that begin earlier and the guarded epilogue would take tens of steps a kernel, some of which nothing else would use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Struct

from ..ir.dims import DimLike, Symbol, add_all, bounds, ceildiv, dim_max, dim_min, divides, product, row_major_strides, size_of
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Let, Prefetch, Stmt, Store, loop_variable
from ..ir.ops.compute import FLOATS8, Elementwise, PackedConv, PackedDot, accumulator_dtype
from ..ir.ops.shape import Pad
from ..ir.rewrite import COSTS
from ..ir.types import F32, I8, I16, I32, INDEX, U32, dtype_of
from ..tiles import Blocks, Tile
from .inline import Index, Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index
from .left_operand import row_operand

LONG_EPILOGUE = 32  # weighted operations an element, from which on a loop over the tile costs next to nothing
STREAM_UNIT = 16  # steps


class _Sums(Struct, frozen=True):
    """The part of a contraction that a tile is at: `number`, which `variable` counts, of `count` parts of `depth` steps
    each, and where in the thread's own memory the sums wait between two parts."""

    variable: Symbol
    number: DimLike
    count: DimLike
    depth: DimLike
    memory: Buffer
    start: DimLike


def lower_contraction(node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner,
                      tile: Tile, blocks: Blocks | None = None, beyond: int = 0) -> Stmt:
    """The loop nest of `node` (packed_dot or packed_conv) and the epilogue that leads from it to `result`; of a result
    that is padded, all but the borders. With several streams and rows, `lhs` is the left operand turned: [K, rows].
    Where there are no more rows than `beyond`, nothing is computed: `few_rows` does that."""
    names, blocks = inliner.names, blocks or Blocks(1, 1)
    batch_shape = node.shape[:node.op.batch if isinstance(node.op, PackedDot) else 0]
    groups = node.op.groups if isinstance(node.op, PackedConv) else 1
    columns = node.shape[-1] // groups
    operand = row_operand(node, tuple(0 for _ in batch_shape))
    panels, row_tiles = ceildiv(columns, tile.columns), ceildiv(operand.rows, tile.rows)
    shape = (groups, *batch_shape, ceildiv(panels, blocks.panels), ceildiv(row_tiles, blocks.rows))
    count = product(shape) * (1 if beyond == 0 else 1 - is_at_most(operand.rows, beyond))
    variable, at = loop_symbol(names.fresh("t"), count)
    names_of = ["group", *(f"b{a}_" for a in range(len(batch_shape))), "right", "below"]
    lets, parts = named_parts(inliner, names_of, unflatten_index(at, shape))
    group, *batch, right, below = parts
    panels_here = dim_min(blocks.panels, panels - right * blocks.panels)
    rows_here = dim_min(blocks.rows, row_tiles - below * blocks.rows)
    (across, p), (down, r) = loop_symbol(names.fresh("p"), panels_here), loop_symbol(names.fresh("d"), rows_here)
    places, (panel, row_tile) = named_parts(inliner, ["panel", "tile"], (right * blocks.panels + p, below * blocks.rows + r))
    work = TileWork(node, result, out, lhs, rhs, inliner, tile, (group, *batch), panel, row_tile)
    work.blocks, work.down = blocks, r
    sums = work.sum_in_parts(p) if blocks.depth != 0 else None
    begin = work.count_from(below * blocks.rows * tile.rows)
    body = work.body()
    if work.mirrors:  # nothing for a tile below the diagonal
        reaches = inliner.scalar("lt", inliner.index(work.first_row), inliner.index((panel + 1) * tile.columns))
        body = (If(reaches, body),)
    body = (For(across, panels_here, "serial", (*begin, For(down, rows_here, "serial", (*places, *body)))),)
    if sums is not None:
        body = (Alloc(sums.memory), For(sums.variable, sums.count, "serial", body))
    return For(variable, count, "parallel", (*lets, *body))


def is_at_most(size: DimLike, limit: int) -> DimLike:
    """1 where the size is at most the limit, else 0."""
    return dim_min(1, dim_max(limit + 1 - size, 0))


def named_parts(inliner: Inliner, labels: Sequence[str], index: Index) -> tuple[list[Stmt], list[DimLike]]:
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
    """Where the epilogue stores a row: its first column, and what counts it: statements before a row and behind it."""

    start: DimLike
    enter: tuple[Stmt, ...] = ()
    leave: tuple[Stmt, ...] = ()


def _work_of_epilogue(node: Node, result: Node) -> int:
    """The weighted operations for each element between the contraction and the result."""
    total = 0
    seen = {node}
    stack = [result]
    while stack:
        found = stack.pop()
        if found not in seen:
            seen.add(found)
            stack.extend(found.inputs)
            total += COSTS.get(found.op.function, 2) if isinstance(found.op, Elementwise) else 0
    return total


class TileWork:
    """The statements of one tile."""

    def __init__(self, node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, tile: Tile,
                 batch: Index, panel: DimLike, row_tile: DimLike) -> None:
        self.within = _within(node, result, len(batch) - 1) if isinstance(result.op, Pad) else None
        self.node, self.result, self.out, self.lhs, self.rhs = node, result, out, lhs, rhs
        if self.within is not None:
            self.result = result.inputs[0]
        self.inliner, self.names, self.tile = inliner, inliner.names, tile
        self.group, self.batch, self.panel = batch[0], batch[1:], panel
        self.operand = row_operand(node, self.batch, self.group)
        self.first_row = row_tile * tile.rows
        self.columns = node.shape[-1] // (node.op.groups if isinstance(node.op, PackedConv) else 1)
        self.dtype = accumulator_dtype(node.dtype)
        self.blocks = Blocks(1, 1)
        self.down: DimLike = 0
        self.sums: _Sums | None = None
        self.is_long = _work_of_epilogue(node, self.result) >= LONG_EPILOGUE
        self.mirrors = isinstance(node.op, PackedDot) and node.op.symmetric and self.within is None
        self.counts: Buffer | None = None  # where the next row lies in a padded result
        self.begins: DimLike | None = None  # the first row that the tile reads, where it may begin earlier

    def sum_in_parts(self, across: DimLike) -> _Sums:
        """Lets the tile, in the `across`-th panel of its block, take one part of the contraction at a time."""
        high, wide = (int(bounds(size)[1]) for size in (self.blocks.rows, self.blocks.panels))
        tile = self.tile.rows * self.tile.columns
        memory = Buffer(self.names.fresh("sums"), self.dtype, (high * wide * tile,), "local")
        steps = self.operand.steps[0]
        count = ceildiv(steps if bounds(steps)[0] >= 1 else dim_max(steps, 1), self.blocks.depth)  # an empty sum is one part
        variable, number = loop_symbol(self.names.fresh("part"), count)
        self.sums = _Sums(variable, number, count, self.blocks.depth, memory, (across * high + self.down) * tile)
        return self.sums

    def body(self) -> tuple[Stmt, ...]:
        """The tile; with a guard where a dimension is no multiple of it."""
        rows, columns = self.operand.rows, self.columns
        if divides(self.tile.rows, rows) and divides(self.tile.columns, columns):
            return self._whole(lambda accumulator: self._epilogue(accumulator, guarded=False))
        inliner = self.inliner
        whole_rows = inliner.scalar("le", inliner.index(self.first_row + self.tile.rows), inliner.index(rows))
        whole_columns = inliner.scalar("le", inliner.index((self.panel + 1) * self.tile.columns), inliner.index(columns))
        whole = inliner.scalar("and", whole_rows, whole_columns)
        if self.blocks.streams > 1 or isinstance(self.node.op, PackedDot) and self.node.op.symmetric:
            return (If(whole, *(self._whole(partial(self._epilogue, guarded=edge), edge) for edge in (False, True))),)
        lets: list[Stmt] = []
        if not divides(self.tile.rows, rows):
            earlier = dim_max(dim_min(self.first_row, rows - self.tile.rows), 0)
            lets, (self.begins,) = named_parts(inliner, ["begins"], (earlier,))
        return (*lets, *self._whole(lambda accumulator: (
            If(whole, *(self._epilogue(accumulator, guarded=edge) for edge in (False, True))),)))

    def _whole(self, finish: Callable[[Buffer], tuple[Stmt, ...]], clamped: bool = False) -> tuple[Stmt, ...]:
        """Sums and what `finish` does with them."""
        accumulator = Buffer(self.names.fresh("acc"), self.dtype, (self.tile.rows, self.tile.columns), "register")
        begin, end = (self._clear(accumulator),), finish(accumulator)
        if self.sums is not None:
            inliner, number = self.inliner, self.inliner.index(self.sums.number)
            first = inliner.scalar("eq", number, inliner.literal(0, INDEX))
            last = inliner.scalar("eq", number, inliner.index(self.sums.count - 1))
            begin = (If(first, begin, (self._carry(self.sums, accumulator, out=False),)),)
            end = (If(last, end, (self._carry(self.sums, accumulator, out=True),)),)
        return (Alloc(accumulator), *begin, *self._contract(accumulator, clamped), *end)

    def sums_in_memory(self, target: Buffer, first: DimLike, clamped: bool) -> tuple[Stmt, ...]:
        """The sums of the tile, put into columns of the target, from the first one on."""
        accumulator = Buffer(self.names.fresh("acc"), self.dtype, (self.tile.rows, self.tile.columns), "register")
        return (Alloc(accumulator), self._clear(accumulator), *self._contract(accumulator, clamped), self._copy(accumulator, target, first))

    def _carry(self, sums: _Sums, accumulator: Buffer, out: bool) -> Stmt:
        """The accumulators to where they wait, or back."""
        row, r = self._row_loop()
        vector, v, lane, j = self._column_loops()
        column = v * self.tile.lanes + j
        inner, place = self.inliner.inner(), (sums.start + r * self.tile.columns + column,)
        store = (Store(sums.memory.name, place, inner.load(accumulator, (r, column))) if out
                 else Store(accumulator.name, (r, column), inner.load(sums.memory, place)))
        return For(row, self.tile.rows, "unrolled", (self._over_columns(vector, lane, (store,)),))

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

    def _contract(self, accumulator: Buffer, clamped: bool) -> tuple[Stmt, ...]:
        """The loops over the contraction."""
        steps = self.operand.steps
        if self.blocks.streams > 1:
            return self._in_streams(accumulator, clamped)
        if self.sums is not None:
            first = self.sums.number * self.sums.depth
            variable, k = loop_symbol(self.names.fresh("k"), dim_min(self.sums.depth, steps[0] - first))
            body = (*self._ahead(k, first), *self._step(accumulator, (first + k,), clamped))
            return (For(variable, dim_min(self.sums.depth, steps[0] - first), "serial", body),)
        loops = [(*loop_symbol(self.names.fresh("k"), n), n) for n in steps]
        body = (*(self._ahead(loops[0][1], 0) if len(loops) == 1 else ()),
                *self._step(accumulator, tuple(at for _, at, _ in loops), clamped))
        for variable, _, extent in reversed(loops):
            body = (For(variable, extent, "serial", body),)
        return body

    def _in_streams(self, accumulator: Buffer, clamped: bool) -> tuple[Stmt, ...]:
        """The contraction at several places at a time: parts that are no multiple of a page apart, as memory likes it,
        and of which the last is shorter."""
        depth, streams = self.operand.steps[0], self.blocks.streams
        part = depth // streams // STREAM_UNIT * STREAM_UNIT + STREAM_UNIT
        shortest = depth - (streams - 1) * part
        found: list[Stmt] = []
        for first, extent, count in ((0, shortest, streams), (shortest, part - shortest, streams - 1)):
            variable, k = loop_symbol(self.names.fresh("k"), extent)
            stream, s = loop_symbol(self.names.fresh("s"), count)
            lets, (at,) = named_parts(self.inliner, ["at"], (first + k + s * part,))
            body = (*lets, *self._step(accumulator, (at,), clamped))
            found.append(For(variable, extent, "serial", (For(stream, count, "unrolled", body),)))
        return tuple(found)

    def _panel(self, at: Index, panel: DimLike) -> DimLike:
        """Where the row of a panel lies that belongs to a step."""
        panels, depth, width = self.node.inputs[1].shape[-3:]
        batch = flatten_index(self.batch, self.node.shape[:len(self.batch)]) + self.group
        return ((batch * panels + panel) * depth + self.operand.panel(at)) * width

    def _right(self, at: Index, vector: DimLike) -> DimLike:
        """Where a vector of the tile's columns lies that belongs to a step. A tile may take several panels side by side; where
        there are fewer, it reads the last one again."""
        panels, _, width = self.node.inputs[1].shape[-3:]
        assert isinstance(width, int)
        first = vector * self.tile.lanes
        if self.tile.columns == width:
            return self._panel(at, self.panel) + first
        beside = first // width
        return self._panel(at, dim_min(self.panel + beside, panels - 1)) + first - beside * width

    def _ahead(self, k: DimLike, first: DimLike) -> tuple[Stmt, ...]:
        """Prefetches of the next panel, or of the next part of this one, which leads on to the next panel: each tile brings
        its share, some elements a step. Tiles beyond those that bring the whole begin anew, and find it there."""
        if self.blocks.ahead == 0:
            return ()
        depth = self.operand.steps[0] if self.sums is None else self.sums.depth
        share = (self._turn() * depth + k) * self.blocks.ahead * self.operand.words
        distance = (depth if self.blocks.in_order else self.operand.steps[0]) * self.operand.words
        following = self._panel((first,), self.panel) + distance * self.tile.columns
        return (Prefetch(self.rhs.name, (following + share,)),)

    def _turn(self) -> DimLike:
        """Which share of what is prefetched is the tile's."""
        shares = -(-self.tile.columns // self.blocks.ahead)
        return self.down if bounds(self.down)[1] < shares or self.blocks.in_order else self.down % shares

    def _step(self, accumulator: Buffer, at: Index, clamped: bool) -> tuple[Stmt, ...]:
        """One vector of the panel at a time meets one element of each row.

        Row by row: the vectors of the panel stay in registers (equal loads of memory that is only read are one), and of
        the left operand one broadcast at a time is alive.
        """
        if self.rhs.dtype == U32 and self.lhs.dtype == F32:
            return tuple(self._half_step(accumulator, at, clamped, half) for half in range(2))
        vector, v, lane, j = self._column_loops()
        row, r = self._row_loop()
        inner = self.inliner.inner()
        column = v * self.tile.lanes + j
        old = inner.load(accumulator, (r, column))
        if self.operand.step > 1:
            value = self._products_of_words(inner, self._base(r, clamped) + self.operand.offset(at), self._right(at, v) + j, old)
            update = self._over_columns(vector, lane, (Store(accumulator.name, (r, column), value),))
            return (For(row, self.tile.rows, "unrolled", (update,)),)
        right = self._read(inner, self.rhs, self._right(at, v) + j)
        if self.blocks.streams > 1 and self.tile.rows > 1:  # all rows, turned
            left = self._read(inner, self.lhs, at[0] * self.tile.rows + r)
        else:
            left = self._read(inner, self.lhs, self._base(r, clamped) + self.operand.offset(at))
        if self.dtype.is_float:
            value = inner.multiply_add(left, right, old)
        else:
            value = inner.scalar("add", inner.scalar("mul", left, right), old)
        update = self._over_columns(vector, lane, (Store(accumulator.name, (r, column), value),))
        return (For(row, self.tile.rows, "unrolled", (update,)),)

    def _half_step(self, accumulator: Buffer, at: Index, clamped: bool, half: int) -> Stmt:
        """The lower or upper bfloat16 of words meets floats: a shift or a mask makes a float of it, with zeros below. All rows meet one
        half before the other, since registers hold one half of the panel's words."""
        vector, v, lane, j = self._column_loops()
        row, r = self._row_loop()
        inner = self.inliner.inner()
        column = v * self.tile.lanes + j
        word = inner.load(self._flat(self.rhs), (self._right(at, v) + j,))
        function, number = ("and", 0xFFFF0000) if half else ("shl", 16)
        right = inner.bitcast(inner.scalar(function, word, inner.literal(number, U32)), F32)
        left = inner.load(self._flat(self.lhs), (self._base(r, clamped) + self.operand.offset(at) + half,))
        value = inner.multiply_add(left, right, inner.load(accumulator, (r, column)))
        update = self._over_columns(vector, lane, (Store(accumulator.name, (r, column), value),))
        return For(row, self.tile.rows, "unrolled", (update,))

    def _products_of_words(self, inner: Inliner, left: DimLike, right: DimLike, old: Node) -> Node:
        """A word of the panel times the elements of the left operand that belong to it, and what was summed before."""
        assert isinstance(self.node.op, (PackedDot, PackedConv))
        if self.operand.words > 1:
            return self._products_in_16_bits(inner, left, right, old)
        word, weights = self._word(inner, left), inner.load(self._flat(self.rhs), (right,))
        if self.node.inputs[0].dtype in FLOATS8:
            return self._products_of_floats8(inner, word, inner.bitcast(weights, U32), old)
        if weights.dtype == I16:
            weights = inner.scalar("widen_pairs", weights)
        if weights.dtype == U32:
            return inner.scalar("dot_bfloats", word, weights, old)
        function = "dot_pairs" if self.operand.step == 2 else "dot_quads_saturating" if self.node.op.saturates else "dot_quads"
        if self.node.inputs[0].dtype != I8:
            return inner.scalar(function, inner.bitcast(word, I32), weights, old)
        # the instruction takes unsigned bytes: each plus 128, and 128 times the weights are subtracted
        surplus = inner.literal(0x80808080, U32)
        total = inner.scalar(function, inner.bitcast(inner.scalar("xor", word, surplus), I32), weights, old)
        return inner.scalar("sub", total, inner.scalar(function, inner.bitcast(surplus, I32), weights, inner.literal(0, I32)))

    def _products_of_floats8(self, inner: Inliner, word: Node, weights: Node, old: Node) -> Node:
        """Four float8 of each operand as floats: bits of the narrow float in their place of the wide one, times the power of two between
        their exponents. Codes past the greatest number are infinite or NaN."""
        form = self.node.inputs[0].dtype
        five = form == FLOATS8[1]  # bits of exponent; else four
        literal = partial(inner.literal, dtype=U32)

        def part(packed: Node, i: int) -> Node:
            code = inner.scalar("shr", packed, literal(8 * i)) if i else packed
            size = inner.scalar("and", code, literal(0x7F))
            value = inner.bitcast(inner.scalar("shl", size, literal(21 if five else 20)), F32)
            value = inner.scalar("mul", value, inner.literal(2.0 ** (112 if five else 120), F32))
            past = inner.scalar("ge", size, literal(0x7C if five else 0x7F))
            infinite = inner.scalar("eq", size, literal(0x7C))
            beyond = inner.scalar("select", infinite, inner.literal(float("inf"), F32), inner.literal(float("nan"), F32))
            value = inner.scalar("select", past, beyond if five else inner.literal(float("nan"), F32), value)
            sign = inner.scalar("shl", inner.scalar("and", code, literal(0x80)), literal(24))
            return inner.bitcast(inner.scalar("or", inner.bitcast(value, U32), sign), F32)

        for i in range(4):
            old = inner.multiply_add(part(word, i), part(weights, i), old)
        return old

    def _word(self, inner: Inliner, left: DimLike) -> Node:
        """Elements of the left operand that lie side by side: one load for the backend."""
        step = self.operand.step
        unsigned = dtype_of(f"uint{32 // step}")
        word = None
        for i in range(step):
            element = inner.bitcast(inner.load(self._flat(self.lhs), (left + i,)), unsigned)
            part = inner.scalar("shl", inner.cast(element, U32), inner.literal(i * 32 // step, U32))
            word = part if word is None else inner.scalar("or", word, part)
        assert word is not None
        return word

    def _products_in_16_bits(self, inner: Inliner, left: DimLike, right: DimLike, old: Node) -> Node:
        """Several words of the panel: the products of two neighbouring bytes of each are added in 16 bits, and then to the sum."""
        width = self.node.inputs[1].shape[-1]
        total = inner.literal(0, I32)
        for i in range(self.operand.words):
            word = inner.bitcast(self._word(inner, left + i * self.operand.step), I32)
            total = inner.scalar("add_byte_pairs", word, inner.load(self._flat(self.rhs), (right + i * width,)), total)
        return inner.scalar("dot_pairs", total, inner.literal(0x00010001, I32), old)

    def _base(self, row: DimLike, clamped: bool) -> DimLike:
        """Where the row of the left operand lies that a row of the tile reads."""
        operand = self.operand
        if operand.run != 0 and divides(self.tile.rows, operand.run) and not clamped:
            return operand.base(self.first_row) + row * operand.distance
        return operand.base(self._row_read(row, clamped))

    def _row_read(self, row: DimLike, clamped: bool) -> DimLike:
        """The row of the left operand that a row of the tile reads; where there is none of its own, one that exists."""
        last = self.operand.rows - 1
        if self.begins is not None:  # then no row is past the end, unless the tile has more rows than there are
            return self.begins + (row if bounds(last)[0] >= self.tile.rows - 1 else dim_min(row, last))
        return dim_min(self.first_row + row, last) if clamped else self.first_row + row

    def _read(self, inliner: Inliner, buffer: Buffer, flat: DimLike) -> Node:
        return inliner.cast(inliner.load(self._flat(buffer), (flat,)), self.dtype)

    def _flat(self, buffer: Buffer) -> Buffer:
        return Buffer(buffer.name, buffer.dtype, (product(buffer.shape),), buffer.space)

    def _epilogue(self, accumulator: Buffer, guarded: bool) -> tuple[Stmt, ...]:
        """Spelled out for each vector of the tile; as loops over the tile in memory where it is guarded, since edges are
        rare, or long, since it takes most of the time then: its code is by far the most of a kernel."""
        if self.mirrors:
            return self._both_sides(accumulator)
        if guarded or self.is_long:
            source = Buffer(self.names.fresh("tile"), self.dtype, accumulator.shape, "local")
            return (Alloc(source), self._copy(accumulator, source), self.store_from_memory(source, guarded))
        vector, v, lane, j = self._column_loops()
        row, r = self._row_loop()
        target, body = self._store_place(accumulator, r, r, v * self.tile.lanes + j)
        return (For(row, self.tile.rows, "unrolled", (*target.enter, self._over_columns(vector, lane, body), *target.leave)),)

    def store_from_memory(self, source: Buffer, guarded: bool) -> Stmt:
        """The epilogue as loops over the tile in memory, where it is guarded over what of it belongs to the result."""
        lane, j = loop_symbol(self.names.fresh("j"), self.tile.columns)
        row, r = self._row_loop()
        within = r + (self.first_row - self.begins) if guarded and self.begins is not None else r
        target, body = self._store_place(source, r, within, j)
        count, width = self._room() if guarded else (self.tile.rows, self.tile.columns)
        # long chains of operations run for two or three vectors side by side
        vectors = self.tile.columns // self.tile.lanes
        beside = next((n for n in (2, 3) if vectors % n == 0), 1) if self.is_long else 1
        columns = For(lane, width, "vector", body, self.tile.lanes * beside)
        return For(row, count, "serial", (*target.enter, columns, *target.leave))

    def _store_place(self, source: Buffer, row: DimLike, within: DimLike, j: DimLike) -> tuple[_Target, tuple[Stmt, ...]]:
        """Where a row of the tile is stored, and the statements that store its column `j`, which lies at (within, j) of the source."""
        place = self.first_row + row
        column = self.group * self.columns + self.panel * self.node.inputs[1].shape[-1] + j
        if self.within is None:
            target = _Target(flatten_index((*self.batch, place), (*self.node.shape[:len(self.batch)], self.operand.rows))
                             * self.node.shape[-1])
        else:
            target = self._inside_padding(self.within, place)
        return target, self._store(source, (within, j), place, column, target.start + column)

    def _store(self, source: Buffer, within: Index, row: DimLike, column: DimLike, target: DimLike) -> tuple[Stmt, ...]:
        """What is computed of the sum at `within` of the tile, as the element (row, column) of the result."""
        index = (*self.batch, *unflatten_index(row, self.node.shape[len(self.batch):-1]), column)
        inner = self.inliner.inner()
        value = inner.cast(inner.load(source, within), self.node.dtype)
        inner.bind(self.node, index, lambda: value)
        # the result may have other axes of size 1 than the contraction
        stored = inner.value(self.result, reshape_index(index, self.node.shape, self.result.shape))
        return (*inner.block, Store(self.out.name, (target,), stored))

    def _both_sides(self, accumulator: Buffer) -> tuple[Stmt, ...]:
        """The epilogue of a symmetric product: what the tile has on the diagonal and above, and that once more where the
        diagonal mirrors it. So each element of the result is written once, and the two halves are the same sums."""
        source = Buffer(self.names.fresh("tile"), self.dtype, accumulator.shape, "local")
        size, first_column = self.columns, self.panel * self.tile.columns
        start = flatten_index(self.batch, self.node.shape[:len(self.batch)]) * size * size
        count, width = self._room()
        (row, r), (lane, j) = (loop_symbol(self.names.fresh(name), n) for name, n in zip("rj", self.tile_shape))
        skipped = dim_max(self.first_row + r - first_column, 0)  # columns of the tile that lie below the diagonal
        place, column = self.first_row + r, first_column + skipped + j
        body = self._store(source, (r, skipped + j), place, column, start + place * size + column)
        rows = For(row, count, "serial", (For(lane, dim_max(width - skipped, 0), "vector", body, self.tile.lanes),))
        (lane, j), (row, r) = (loop_symbol(self.names.fresh(name), n) for name, n in zip("jr", reversed(self.tile_shape)))
        place, column = first_column + j, self.first_row + r
        body = self._store(source, (r, j), place, column, start + place * size + column)
        above = dim_min(count, dim_max(place - self.first_row, 0))
        columns = For(lane, width, "serial", (For(row, above, "serial", body),))
        return (Alloc(source), self._copy(accumulator, source), rows, columns)

    @property
    def tile_shape(self) -> tuple[int, int]:
        return self.tile.rows, self.tile.columns

    def _room(self) -> tuple[DimLike, DimLike]:
        """The rows and columns of the tile that belong to the result."""
        return (dim_min(self.tile.rows, self.operand.rows - self.first_row),
                dim_min(self.tile.columns, self.columns - self.panel * self.node.inputs[1].shape[-1]))

    def _copy(self, accumulator: Buffer, target: Buffer, first: DimLike = 0) -> Stmt:
        """The accumulators to columns of the target, from the first one on."""
        row, r = self._row_loop()
        vector, v, lane, j = self._column_loops()
        column = v * self.tile.lanes + j
        store = Store(target.name, (r, first + column), self.inliner.inner().load(accumulator, (r, column)))
        return For(row, self.tile.rows, "unrolled", (self._over_columns(vector, lane, (store,)),))

    def count_from(self, row: DimLike) -> tuple[Stmt, ...]:
        """Begins to count where rows lie in a padded result, as all tiles below this row go on to do: only here is divided."""
        if self.within is None or len(self.within.rows) < 2:
            return ()
        rows = self.within.rows
        self.counts = Buffer(self.names.fresh("at"), INDEX, (len(rows),), "register")
        start, *digits = unflatten_index(row, [n for n, _ in rows])
        first = self._fixed(self.within) + add_all(i * distance for i, (_, distance) in zip((start, *digits), rows))
        begin = [Store(self.counts.name, (i,), self.inliner.index(size)) for i, size in enumerate((first, *digits))]
        return (Alloc(self.counts), *begin)

    def _fixed(self, within: _Within) -> DimLike:
        return within.first + add_all(i * distance for i, distance in zip(self.batch, within.batch))

    def _inside_padding(self, within: _Within, place: DimLike) -> _Target:
        """Where rows lie in a padded result. Several axes of rows are counted like digits: where the row lies, and how far
        each axis but the first has come."""
        if self.counts is None:
            return _Target(self._fixed(within) + add_all(place * distance for _, distance in within.rows))
        inliner, rows, counts = self.inliner, within.rows, self.counts
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
        return _Target(size_of(found), (enter,), tuple(inner.block))
