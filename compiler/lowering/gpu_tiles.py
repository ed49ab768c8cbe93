"""Contractions on a GPU by plain multiply-adds: `packed_dot` and `packed_conv` with an epilogue, for dtypes without matrix units.

A block computes `rows` of the result and one panel of its columns, `DEPTH` steps at a time. All threads bring that part of both operands
into shared memory, then each adds the products to its own sums: a small tile of neighbouring rows, which are read together, and of columns
so far apart that neighbouring threads read neighbouring ones. Elements of 4 and 8 bytes are copied in several stages, the next ones while
one is multiplied. The windows of a convolution are read as rows of a matrix (`left_operand`), of which only the part at hand is ever there.

Rows past the last one are copies of it, which nothing stores; steps past the last one are zeros on both sides. Sums have one order,
whatever the tile, but for those that are cut into parts (`gpu_split.py`), since tiles are few and deep.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, dim_max, dim_min, divides, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, Commit, CopyAsync, For, If, Stmt, Store, Wait
from ..ir.loop_gpu import COPIED_BYTES
from ..ir.ops.compute import PackedConv, PackedDot, accumulator_dtype
from ..ir.ops.shape import Pad
from ..ir.types import DType
from ..tiles import OPEN_SIZE
from .contraction import named_parts
from .gpu_split import Round, choose_parts, part_rounds
from .gpu_windows import HeldPlaces, has_open_windows
from .inline import Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index
from .left_operand import row_operand

DEPTH = 16          # steps between two barriers
THREADS, LEAST_THREADS = 256, 64
MOST_ROWS = 8       # of a thread's own tile
USUAL_ROWS = 4      # which are read together: fewer make more reads of shared memory than multiply-adds hide
MOST_COLUMNS = 128  # of a panel that a block takes
STAGES = 3          # of shared memory, where elements are copied
COPIED = 16         # bytes at a time at most
# of `DEPTH` steps in microseconds: what a load from memory and two barriers take, and multiply-adds (A100, its figures)
ROUND_TIME, PRODUCTS_A_MICROSECOND = 0.6, 90000


class PlainTile(Struct, frozen=True):
    """A block's tile `rows` x `columns`, by threads that lie `down` x `across`; of the steps one of `parts`."""

    rows: int
    columns: int
    down: int
    across: int
    parts: int = 1
    stages: int = 1

    @property
    def threads(self) -> int:
        return self.down * self.across

    @property
    def own_rows(self) -> int:
        return self.rows // self.down

    @property
    def own_columns(self) -> int:
        return self.columns // self.across


def plain_tile(node: Node, caps: Caps) -> PlainTile | None:
    """The tile for a contraction: higher where there are rows for it and blocks for all multiprocessors; None for those that go
    another way."""
    op = node.op
    if not isinstance(op, (PackedDot, PackedConv)) or op.step > 1 or op.square > 1:
        return None
    if isinstance(op, PackedDot) and op.symmetric or isinstance(op, PackedConv) and op.padding:
        return None
    columns = node.inputs[1].shape[-1]
    if not isinstance(columns, int) or columns > MOST_COLUMNS or columns & (columns - 1):
        return None
    across = min(16, columns)
    down = THREADS // across
    batch = op.batch if isinstance(op, PackedDot) else 0
    rows = product(node.shape[batch:-1])
    most = bounds(rows)[1]
    groups = op.groups if isinstance(op, PackedConv) else 1
    panels = product(node.shape[:batch]) * groups * ceildiv(node.shape[-1] // groups, columns)

    def most_tiles(high: int) -> float:
        return bounds(panels * ceildiv(OPEN_SIZE if most == math.inf else rows, high))[1]

    left, right = (x.dtype for x in node.inputs[:2])

    def stages(high: int) -> int:
        """That fit into half of a multiprocessor's shared memory."""
        size = DEPTH * ((high + _padding(left)) * left.bytes + columns * right.bytes)
        return min(STAGES, caps.shared_bytes // 2 // size)

    # rows without a bound may be few, which a high tile would compute many times over
    highest, own = MOST_ROWS if most < math.inf else MOST_ROWS // 2, 1
    while own < highest and own * columns // across < 64 and most > down * own and stages(down * own * 2) > 0 \
            and most_tiles(down * own * 2) >= caps.multiprocessors:
        own *= 2
    high = down * own
    while own < USUAL_ROWS and down * across > LEAST_THREADS:  # few rows: fewer threads, not fewer rows of each
        own, down = own * 2, down // 2
    busy = high * columns * DEPTH / PRODUCTS_A_MICROSECOND
    read = sum(product(x.shape) * x.dtype.bytes for x in node.inputs[:2])
    sums = product(node.shape) * accumulator_dtype(node.dtype).bytes
    rounds = ceildiv(node.inputs[1].shape[-2], DEPTH)
    copied = max(1, stages(high)) if left.bytes in COPIED_BYTES and right.bytes in COPIED_BYTES else 1
    each = Round(max(ROUND_TIME / (copied - 1), busy) if copied > 1 else ROUND_TIME + busy, busy)
    parts = choose_parts(math.inf if most == math.inf else most_tiles(high), rounds, each, read, sums, caps)
    return PlainTile(high, columns, down, across, parts, copied)


def _padding(dtype: DType) -> int:
    """Elements between the rows of two steps of the left operand: rows begin at multiples of 16 bytes, neighbouring ones in other banks."""
    return COPIED // dtype.bytes


def lower_plain_tiles(node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, tile: PlainTile) -> Stmt:
    """The loop over blocks of a contraction and the epilogue that leads from it to `result`; of a result that is padded, all
    but the borders; of several parts the sums alone, [parts, *shape]."""
    return _Work(node, result, out, lhs, rhs, inliner, tile).lower()


class _Work:
    """The statements of one block."""

    def __init__(self, node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, tile: PlainTile) -> None:
        self.pad = result if isinstance(result.op, Pad) else None
        self.result = result.inputs[0] if self.pad is not None else result
        self.node, self.out, self.lhs, self.rhs, self.inliner, self.tile = node, out, lhs, rhs, inliner, tile
        self.batch_shape = node.shape[:node.op.batch if isinstance(node.op, PackedDot) else 0]
        self.groups = node.op.groups if isinstance(node.op, PackedConv) else 1
        self.columns = node.shape[-1] // self.groups
        self.dtype = accumulator_dtype(node.dtype)
        names = inliner.names
        left, right = (x.dtype for x in node.inputs[:2])
        self.left = Buffer(names.fresh("left"), left, (tile.stages * DEPTH, tile.rows + _padding(left)), "shared")
        self.right = Buffer(names.fresh("right"), right, (tile.stages * DEPTH, tile.columns), "shared")
        self.sums = Buffer(names.fresh("sums"), self.dtype, (tile.threads, tile.own_rows, tile.own_columns), "register")

    def lower(self) -> Stmt:
        tile, names = self.tile, self.inliner.names
        self.rows = row_operand(self.node, tuple(0 for _ in self.batch_shape)).rows
        shape = (tile.parts, self.groups, *self.batch_shape, ceildiv(self.columns, tile.columns), ceildiv(self.rows, tile.rows))
        variable, at = loop_symbol(names.fresh("t"), product(shape))
        labels = ["part", "group", *(f"b{a}_" for a in range(len(self.batch_shape))), "panel", "below"]
        lets, parts = named_parts(self.inliner, labels, unflatten_index(at, shape))
        self.part, self.group, *batch, self.panel, below = parts
        self.batch = tuple(batch)
        self.operand = row_operand(self.node, self.batch, self.group)
        self.first_row = below * tile.rows
        self.steps = product(self.operand.steps)
        memory: tuple[Stmt, ...] = (Alloc(self.left), Alloc(self.right), Alloc(self.sums))
        self.held = None
        if has_open_windows(self.node):
            self.held = HeldPlaces(self.node, self.operand, self.inliner, tile.threads, tile.rows, DEPTH)
            memory += self.held.fill(self._source)
        first, end = part_rounds(self.part, tile.parts, ceildiv(self.steps, DEPTH))
        sum_up = self._staged(first, end - first) if tile.stages > 1 else (self._in_turns(first, end - first),)
        return For(variable, product(shape), "block", (*lets, *memory, self._clear(), *sum_up, self._epilogue()))

    # --- the operands ---

    def _in_turns(self, first: DimLike, rounds: DimLike) -> Stmt:
        """Rounds from `first` on, each brought, then multiplied."""
        step, number = loop_symbol(self.inliner.names.fresh("k"), rounds)
        brought = self._threads(lambda t: self._bring(t, (first + number) * DEPTH, 0))
        return For(step, rounds, "serial", (brought, self._multiply(0)))

    def _staged(self, first: DimLike, rounds: DimLike) -> tuple[Stmt, ...]:
        """Rounds from `first` on, of which the next ones are copied while one is multiplied."""
        inliner, stages = self.inliner, self.tile.stages

        def copied(number: DimLike) -> Stmt:
            there = inliner.scalar("lt", inliner.index(number), inliner.index(rounds))
            return self._threads(lambda t: (If(there, self._bring(t, (first + number) * DEPTH, number % stages)),))

        stage, s = loop_symbol(inliner.names.fresh("s"), stages - 1)
        variable, k = loop_symbol(inliner.names.fresh("k"), rounds)
        body = (Wait(stages - 2), copied(k + stages - 1), Commit(), self._multiply(k % stages))
        return For(stage, stages - 1, "serial", (copied(s), Commit())), For(variable, rounds, "serial", body)

    def _bring(self, thread: DimLike, first: DimLike, stage: DimLike) -> tuple[Stmt, ...]:
        """What a thread does to bring the steps from `first` on, of both operands, into a stage of shared memory."""
        wide = min(COPIED // self.right.dtype.bytes, self.tile.columns) if self.tile.stages > 1 else 1
        left = self._pieces(thread, self.tile.rows, DEPTH, ("row", "step"), lambda row, step: self._left(
            row, stage * DEPTH + step, first + step, self.operand.base(self._source(row)))) if self.held is None else self.held.copy(
                thread, lambda row, step, base, places: self._left(row, stage * DEPTH + step, first + step, base))
        right = self._pieces(thread, DEPTH, self.tile.columns // wide, ("step", "column"), lambda step, column: self._right(
            stage * DEPTH + step, column * wide, first + step, wide))
        return left, right

    def _threads(self, make: Callable[[DimLike], tuple[Stmt, ...]]) -> For:
        thread, t = loop_symbol(self.inliner.names.fresh("c"), self.tile.threads)
        return For(thread, self.tile.threads, "thread", make(t))

    def _pieces(self, thread: DimLike, high: int, wide: int, labels: tuple[str, str], make: object) -> Stmt:
        """What all threads do together for each place of a matrix, neighbours for neighbouring places of a row."""
        assert callable(make)
        turns = -(-high * wide // self.tile.threads)
        variable, turn = loop_symbol(self.inliner.names.fresh("i"), turns)
        place = turn * self.tile.threads + thread
        lets, (row, column) = named_parts(self.inliner, labels, unflatten_index(place, (high, wide)))
        body: tuple[Stmt, ...] = (*lets, *make(row, column))
        if high * wide % self.tile.threads:
            lets, (row, column) = named_parts(self.inliner, labels, unflatten_index(dim_min(place, high * wide - 1), (high, wide)))
            inside = self.inliner.scalar("lt", self.inliner.index(place), self.inliner.index(high * wide))
            body = (If(inside, (*lets, *make(row, column))),)
        return For(variable, turns, "unrolled", body)

    def _source(self, row: DimLike) -> DimLike:
        """The row of the matrix that a row of the tile is; past the last one, that."""
        return dim_max(dim_min(self.first_row + row, self.rows - 1), 0)

    def _left(self, row: DimLike, step: DimLike, at: DimLike, base: DimLike) -> tuple[Stmt, ...]:
        return self._element(self.left, (step, row), self.lhs, at, lambda known: base + self.operand.offset(
            unflatten_index(known, self.operand.steps)))

    def _right(self, step: DimLike, column: DimLike, at: DimLike, wide: int) -> tuple[Stmt, ...]:
        panels, depth, width = self.node.inputs[1].shape[-3:]
        batch = flatten_index(self.batch, self.batch_shape) + self.group
        return self._element(self.right, (step, column), self.rhs, at,
                             lambda known: ((batch * panels + self.panel) * depth + known) * width + column, wide)

    def _element(self, target: Buffer, place: tuple[DimLike, ...], source: Buffer, at: DimLike, where: object,
                 wide: int = 1) -> tuple[Stmt, ...]:
        """An element of an operand at a step, or so many; zeros past the last one."""
        assert callable(where)
        inliner = self.inliner
        if self.tile.stages > 1:
            there = None if divides(DEPTH, self.steps) else inliner.scalar("lt", inliner.index(at), inliner.index(self.steps))
            return (CopyAsync(target.name, place, source.name, (where(at),), wide, there),)
        flat = Buffer(source.name, source.dtype, (product(source.shape),), source.space)
        if divides(DEPTH, self.steps):
            return (Store(target.name, place, inliner.inner().load(flat, (where(at),))),)
        inside = inliner.scalar("lt", inliner.index(at), inliner.index(self.steps))
        lets, (known,) = named_parts(inliner, ["at"], (at,))
        zero = Store(target.name, place, inliner.literal(0.0, target.dtype))
        return (If(inside, (*lets, Store(target.name, place, inliner.inner().load(flat, (where(known),)))), (zero,)),)

    # --- the sums ---

    def _own(self, body: object) -> Stmt:
        """A thread loop around loops over the thread's own tile; `body` of the thread, the tile's place, and where that lies in the
        block's tile."""
        assert callable(body)
        names, tile = self.inliner.names, self.tile
        (down, i), (across, j) = loop_symbol(names.fresh("r"), tile.own_rows), loop_symbol(names.fresh("j"), tile.own_columns)

        def of_thread(t: DimLike) -> tuple[Stmt, ...]:
            inner = body((t, i, j), t // tile.across * tile.own_rows + i, t % tile.across + j * tile.across)
            return (For(down, tile.own_rows, "unrolled", (For(across, tile.own_columns, "unrolled", inner),)),)

        return self._threads(of_thread)

    def _clear(self) -> Stmt:
        zero = self.inliner.literal(0.0, self.dtype)
        return self._own(lambda own, row, column: (Store(self.sums.name, own, zero),))

    def _multiply(self, stage: DimLike) -> Stmt:
        """Adds the products of the steps that a stage of shared memory holds."""
        inliner = self.inliner
        step, k = loop_symbol(inliner.names.fresh("s"), DEPTH)

        def body(own: tuple[DimLike, ...], row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
            inner = inliner.inner()
            left, right = inner.load(self.left, (stage * DEPTH + k, row)), inner.load(self.right, (stage * DEPTH + k, column))
            value = inner.multiply_add(inner.cast(left, self.dtype), inner.cast(right, self.dtype), inner.load(self.sums, own))
            return (Store(self.sums.name, own, value),)

        loop = self._own(body)
        assert isinstance(loop, For)
        return For(loop.symbol, loop.extent, "thread", (For(step, DEPTH, "unrolled", loop.body),))

    # --- the result ---

    def _epilogue(self) -> Stmt:
        """What is computed of the sums, where they belong to the result."""
        inliner, tile = self.inliner, self.tile

        def body(own: tuple[DimLike, ...], row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
            place, across = self.first_row + row, self.panel * tile.columns + column
            statements = self._store(own, place, across)
            for at, size, by in ((across, self.columns, tile.columns), (place, self.rows, tile.rows)):
                if not divides(by, size):
                    statements = (If(inliner.scalar("lt", inliner.index(at), inliner.index(size)), statements),)
            return statements

        return self._own(body)

    def _store(self, own: tuple[DimLike, ...], row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
        """The element (row, column) of the result, of one of the thread's sums."""
        node, inliner, tile = self.node, self.inliner, self.tile
        lets, (row, column) = named_parts(inliner, ["row", "column"], (row, self.group * self.columns + column))
        within = flatten_index((*self.batch, row), (*self.batch_shape, self.rows)) * node.shape[-1] + column
        inner = inliner.inner()
        if tile.parts > 1:
            return (*lets, Store(self.out.name, (self.part * product(node.shape) + within,), inner.load(self.sums, own)))
        index = (*self.batch, *unflatten_index(row, node.shape[len(self.batch):-1]), column)
        value = inner.cast(inner.load(self.sums, own), node.dtype)
        inner.bind(node, index, lambda: value)
        place = reshape_index(index, node.shape, self.result.shape)
        stored = inner.value(self.result, place)
        if self.pad is not None:
            assert isinstance(self.pad.op, Pad)
            target = flatten_index(tuple(i + low for i, low in zip(place, self.pad.op.low)), self.pad.shape)
        else:
            target = within
        return (*lets, *inner.block, Store(self.out.name, (target,), stored))


__all__ = ["PlainTile", "lower_plain_tiles", "plain_tile"]
