"""Contractions in registers: `packed_dot` and `packed_conv` with an epilogue computed while the tile is in registers.

The result's rows are cut into tiles of `rows` and its columns into the panels of the packed operand. One tile is a
register buffer of vectors; the inner loop over the contraction multiplies a row of the panel with one scalar of each
row of the left operand (Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008). Where a
dimension is not a multiple of its tile a second, guarded body handles the edge: it reads clamped rows, which exist, and
stores only what belongs to the result.

No iteration over the contraction is split between threads, so results do not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.dims import DimLike, Symbol, ceildiv, dim_min, divides, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Stmt, Store
from ..ir.ops.compute import PackedConv, PackedDot, accumulator_dtype
from ..tiles import Tile
from .inline import Index, Inliner, flatten_index, loop_symbol, unflatten_index


@dataclass(frozen=True)
class Operand:
    """The left operand as the tile reads it: element (row, step), and the loops over the contraction.

    `steps`: extents of the loops over the contraction, outer first. `read(bases, at)` is the flat address for a row
    whose base address is given; `base(row)` that base. `panel(at)` the position along the packed operand's second axis.
    """

    rows: DimLike
    steps: tuple[DimLike, ...]
    base: Callable[[DimLike], DimLike]
    offset: Callable[[Index], DimLike]
    panel: Callable[[Index], DimLike]


def row_operand(node: Node, lhs: Buffer, batch: Index) -> Operand:
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
    """The loop nest of `node` (packed_dot or packed_conv) and the epilogue that leads from it to `result`."""
    names = inliner.names
    count = node.op.batch if isinstance(node.op, PackedDot) else 0
    batch_shape = node.shape[:count]
    columns = node.shape[-1]
    panels = ceildiv(columns, tile.columns)
    operand = row_operand(node, lhs, tuple(0 for _ in batch_shape))
    row_tiles = ceildiv(operand.rows, tile.rows)
    variable, at = loop_symbol(names.fresh("t"), product(batch_shape) * panels * row_tiles)
    *batch, panel, row_tile = unflatten_index(at, (*batch_shape, panels, row_tiles))
    work = _TileWork(node, result, out, lhs, rhs, inliner, tile, tuple(batch), panel, row_tile)
    fast = work.body(guarded=False)
    exact = divides(tile.rows, operand.rows) and divides(tile.columns, columns)
    if not exact:
        whole_rows = inliner.scalar("le", inliner.index((row_tile + 1) * tile.rows), inliner.index(operand.rows))
        whole_columns = inliner.scalar("le", inliner.index((panel + 1) * tile.columns), inliner.index(columns))
        guarded = work.body(guarded=True)
        fast = (If(inliner.scalar("and", whole_rows, whole_columns), fast, guarded),)
    return For(variable, product(batch_shape) * panels * row_tiles, "parallel", fast)


class _TileWork:
    """The statements of one tile."""

    def __init__(self, node: Node, result: Node, out: Buffer, lhs: Buffer, rhs: Buffer, inliner: Inliner, tile: Tile,
                 batch: Index, panel: DimLike, row_tile: DimLike) -> None:
        self.node, self.result, self.out, self.lhs, self.rhs = node, result, out, lhs, rhs
        self.inliner, self.names, self.tile = inliner, inliner.names, tile
        self.batch, self.panel = batch, panel
        self.operand = row_operand(node, lhs, batch)
        self.first_row = row_tile * tile.rows
        self.columns = node.shape[-1]
        self.dtype = accumulator_dtype(node.dtype)

    def body(self, guarded: bool) -> tuple[Stmt, ...]:
        tile = self.tile
        accumulator = Buffer(self.names.fresh("acc"), self.dtype, (tile.rows, tile.columns), "register")
        rows = [self._row(r, guarded) for r in range(tile.rows)]
        statements: list[Stmt] = [Alloc(accumulator), *self._clear(accumulator), self._contract(accumulator, rows)]
        for r in range(tile.rows):
            stores = self._epilogue(accumulator, r, guarded)
            if guarded:
                belongs = self.inliner.scalar("lt", self.inliner.index(self.first_row + r),
                                              self.inliner.index(self.operand.rows))
                stores = (If(belongs, stores),)
            statements.extend(stores)
        return tuple(statements)

    def _row(self, r: int, guarded: bool) -> DimLike:
        """The base address of a row; in a guarded body rows past the end read the last one."""
        row = self.first_row + r
        return self.operand.base(dim_min(row, self.operand.rows - 1) if guarded else row)

    def _vectors(self) -> Sequence[int]:
        return range(0, self.tile.columns, self.tile.lanes)

    def _clear(self, accumulator: Buffer) -> list[Stmt]:
        zero = self.inliner.literal(0.0 if self.dtype.is_float else 0, self.dtype)
        statements: list[Stmt] = []
        for r in range(self.tile.rows):
            for first in self._vectors():
                lane, at = self._lane()
                statements.append(self._vector(lane, (Store(accumulator.name, (r, first + at), zero),)))
        return statements

    def _lane(self) -> tuple[Symbol, DimLike]:
        return loop_symbol(self.names.fresh("j"), self.tile.lanes)

    def _vector(self, lane: Symbol, body: tuple[Stmt, ...]) -> Stmt:
        return For(lane, self.tile.lanes, "vector", body, self.tile.lanes)

    def _contract(self, accumulator: Buffer, rows: Sequence[DimLike]) -> Stmt:
        symbols = [loop_symbol(self.names.fresh("k"), n) for n in self.operand.steps]
        at = tuple(s for _, s in symbols)
        body: list[Stmt] = []
        depth = self.node.inputs[1].shape[-2]
        panels = self.node.inputs[1].shape[-3]
        batch = flatten_index(self.batch, self.node.shape[:len(self.batch)])
        panel_start = ((batch * panels + self.panel) * depth + self.operand.panel(at)) * self.tile.columns
        for first in self._vectors():
            lane, j = self._lane()
            inner = self.inliner.inner()
            right = inner.latch(self._read(inner, self.rhs, panel_start + first + j))
            updates = list(inner.block)
            for r, base in enumerate(rows):
                left = self._read(inner, self.lhs, base + self.operand.offset(at))
                place = (r, first + j)
                old = inner.load(accumulator, place)
                if self.dtype.is_float:
                    value = inner.scalar("fma", left, right, old)
                else:
                    value = inner.scalar("add", inner.scalar("mul", left, right), old)
                updates.append(Store(accumulator.name, place, value))
            body.append(self._vector(lane, tuple(updates)))
        for (found, _), extent in reversed(list(zip(symbols, self.operand.steps))):
            body = [For(found, extent, "serial", tuple(body))]
        return body[0]

    def _read(self, inliner: Inliner, buffer: Buffer, flat: DimLike) -> Node:
        shape = Buffer(buffer.name, buffer.dtype, (product(buffer.shape),), buffer.space)
        return inliner.cast(inliner.load(shape, (flat,)), self.dtype)

    def _epilogue(self, accumulator: Buffer, r: int, guarded: bool) -> tuple[Stmt, ...]:
        statements: list[Stmt] = []
        row = self.first_row + r
        row_shape = self.node.shape[len(self.batch):-1]
        for first in self._vectors():
            lane, j = self._lane()
            column = self.panel * self.tile.columns + first + j
            index = (*self.batch, *unflatten_index(row, row_shape), column)
            inner = self.inliner.inner()
            value = inner.cast(inner.load(accumulator, (r, first + j)), self.node.dtype)
            inner.bind(self.node, index, lambda value=value: value)  # type: ignore[misc]
            stored = inner.value(self.result, index)
            flat = flatten_index(index, self.out.shape)
            body = (*inner.block, Store(self.out.name, (flat,), stored))
            if guarded:
                room = self.columns - (self.panel * self.tile.columns + first)
                extent = dim_min(self.tile.lanes, room)
                inside = inner.scalar("gt", inner.index(room), inner.literal(0, inner.index(0).dtype))
                statements.append(If(inside, (For(lane, extent, "vector", body, self.tile.lanes),)))
            else:
                statements.append(self._vector(lane, body))
        return tuple(statements)
