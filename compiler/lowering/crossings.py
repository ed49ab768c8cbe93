"""Transposes of arrays that no cache holds: block by block through memory of the thread.

Read along the one side, such an array is written across it. Tiles of a few lines a side (`elements.py`) reach for a line of memory
here and a line there, and memory then delivers a fraction of what it does in order. Here a block is read by rows, a long piece of
each, and turned in memory of the thread that the second level holds; results are stored from there in pieces as long, past the
caches (`streams.py`). Blocks follow one another along the rows that are read. While one is stored the next one is prefetched, row by
row, so that memory is read and written at once; the second level has room for both, and for what is turned.

Assumes: a body that only names and stores what it loads. Guarantees: the same elements are stored, each once. The loops are serial;
`Crossing.vectors` are the steps that make vectors of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, Symbol, bounds, ceildiv, dim_min, substitute
from ..ir.graph import Builder, Op
from ..ir.loop import (
    Alloc,
    Buffer,
    For,
    Load,
    Prefetch,
    Stmt,
    Store,
    expression_nodes,
    expressions_of,
    map_statements,
    substitute_statements,
)
from ..ir.loop_proofs import linear_factor
from ..ir.schedule import Step
from .inline import Names, loop_symbol

PIECE_BYTES = 1024   # stored one after another
LEAST_SIDE = 64      # elements, below which a side is no piece worth the memory of a block
MOST_SIDE = 512
LEVEL2_SHARE = 4     # of the second level is for what is turned; this block and the next one lie beside it
LINE_BYTES = 64

Axes = Sequence[tuple[Symbol, DimLike]]


class Crossing(Struct, frozen=True):
    """A nest in blocks: the loops over blocks, what is done for each, and the steps for the vectors in that."""

    loops: list[tuple[Symbol, DimLike]]
    body: tuple[Stmt, ...]
    vectors: tuple[Step, ...]


class Side(Struct, frozen=True):
    """A side of a block: at most `size` elements of the axis, `count` of them in the block of this number, which begins at `start`."""

    axis: Symbol
    size: int
    block: tuple[Symbol, DimLike]
    number: DimLike
    start: DimLike
    count: DimLike


def cross_in_blocks(axes: Axes, loops: Axes, finest: Sequence[Symbol], body: Sequence[Stmt], names: Names, lanes: int,
                    square: int, caps: Caps) -> Crossing | None:
    """The nest of `body` over the axes in blocks; None where a side is too short. `loops`: the axes merged as far as all accesses
    walk them as one; `finest`: the last axis of each. The last two cross."""
    (_, length), (_, width) = loops[-2:]
    if min(bounds(length)[0], bounds(width)[0]) < LEAST_SIDE:
        return None
    crossed = _crossed(body, *finest[-2:])
    element = min(s.value.dtype.bytes for s in body if isinstance(s, Store))
    most = max(PIECE_BYTES // element, LEAST_SIDE)
    room = max(caps.level2_bytes // LEVEL2_SHARE // sum(most * load.dtype.bytes for load in crossed), LEAST_SIDE)
    rows = _side(names, finest[-1], width, most)
    columns = _side(names, finest[-2], length, min(room // LEAST_SIDE * LEAST_SIDE, most, MOST_SIDE))
    outer = [(*loop_symbol(names.fresh("i"), extent), extent) for _, extent in loops[:-2]]
    places: dict[str, DimLike] = {axis.name: 0 for axis, _ in axes}  # of merged axes the finest alone is walked
    places |= {axis.name: at for axis, (_, at, _) in zip(finest, outer)}
    turned_in: list[tuple[Load, Buffer, int]] = []
    found: list[Stmt] = []
    steps: list[Step] = []
    for load in crossed:
        line = rows.size + LINE_BYTES // load.dtype.bytes  # lines of a column lie apart in a cache
        buffer = Buffer(names.fresh("turned"), load.dtype, (columns.size * line,), "local")
        fill, inner = _turn(load, buffer, line, rows, columns, places, names, square)
        found += [Alloc(buffer), fill]
        steps.append(Step("vectorize", (inner.name, square)))
        turned_in.append((load, buffer, line))
    (column, j), (row, i) = (loop_symbol(names.fresh(stem), side.count) for stem, side in (("j", columns), ("k", rows)))
    turned: dict[Op, Load] = {load: Load(buffer.name, (j * line + i,), load.dtype) for load, buffer, line in turned_in}
    stores = map_statements(body, lambda size: size, lambda op: turned.get(op, op), lambda buffer, index: (buffer, index))
    stores = substitute_statements(stores, _at(places, rows, columns, i, j))
    ahead = [_next_block(load, rows, columns, places, j, names) for load in crossed]
    found.append(For(column, columns.count, "serial", (*ahead, For(row, rows.count, "serial", stores))))
    steps.append(Step("vectorize", (row.name, lanes)))
    blocks = [(s, n) for s, _, n in outer] + [rows.block, columns.block]
    return Crossing([(s, n) for s, n in blocks if n != 1], tuple(found), tuple(steps))


def _crossed(body: Sequence[Stmt], before: Symbol, last: Symbol) -> list[Load]:
    """The loads of what lies apart along the last loop, and side by side along the one before."""
    loads = [node.op for s in body for root in expressions_of(s) for node in expression_nodes(root) if isinstance(node.op, Load)]
    return [load for load in dict.fromkeys(loads) if linear_factor(load.index[0], before) == 1
            and linear_factor(load.index[0], last) not in (None, 0, 1)]


def _side(names: Names, axis: Symbol, extent: DimLike, size: int) -> Side:
    blocks = ceildiv(extent, size)
    block, at = loop_symbol(names.fresh("block"), blocks)
    return Side(axis, size, (block, blocks), at, at * size, dim_min(size, extent - at * size))


def _at(places: Mapping[str, DimLike], rows: Side, columns: Side, i: DimLike, j: DimLike) -> dict[str, DimLike]:
    """What the axes stand for at an element of a block."""
    return {**places, rows.axis.name: rows.start + i, columns.axis.name: columns.start + j}


def _turn(load: Load, buffer: Buffer, line: int, rows: Side, columns: Side, places: Mapping[str, DimLike], names: Names,
          square: int) -> tuple[Stmt, Symbol]:
    """The loops that bring a block into the buffer, columns as lines of it: by squares that the backend transposes in registers,
    which follow one another along what is read. And the variable that is to run in vectors."""
    groups = [loop_symbol(names.fresh(stem), ceildiv(side.count, square)) for stem, side in (("k", rows), ("j", columns))]
    counts = [dim_min(square, side.count - at * square) for side, (_, at) in zip((rows, columns), groups)]
    (row, k), (column, c) = (loop_symbol(names.fresh(stem), count) for stem, count in zip("kj", counts))
    i, j = groups[0][1] * square + k, groups[1][1] * square + c
    index = substitute(load.index[0], _at(places, rows, columns, i, j))
    loop: Stmt = Store(buffer.name, (j * line + i,), Builder().add(Load(load.buffer, (index,), load.dtype)))
    for variable, extent in ((row, counts[0]), (column, counts[1]), (groups[1][0], ceildiv(columns.count, square)),
                             (groups[0][0], ceildiv(rows.count, square))):
        loop = For(variable, extent, "serial", (loop,))
    return loop, row


def _next_block(load: Load, rows: Side, columns: Side, places: Mapping[str, DimLike], j: DimLike, names: Names) -> Stmt:
    """Prefetches of some rows of the block that follows along what is read, as one column of this one is stored: of all rows of it
    by the time that all columns are."""
    _, count = columns.block
    after = columns.number + 1
    share, step = ceildiv(rows.size, columns.size), max(1, LINE_BYTES // load.dtype.bytes)
    pieces = ceildiv(columns.size, step)
    (row, i), (piece, at) = (loop_symbol(names.fresh("ahead"), extent) for extent in (share, pieces))
    there = {**places, rows.axis.name: (rows.number + after // count) * rows.size + j * share + i,
             columns.axis.name: after % count * columns.size + at * step}
    ahead: Stmt = Prefetch(load.buffer, (substitute(load.index[0], there),))
    for variable, extent in ((piece, pieces), (row, share)):
        ahead = For(variable, extent, "serial", (ahead,)) if extent != 1 else ahead
    return ahead
