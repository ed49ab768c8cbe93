"""Element kernels: one loop nest over each region that the group writes, everything else computed in place.

Covers injective groups, reductions with few elements a result, windows, direct convolutions and dots, and the ops that
write regions (concat, pad, update_slice). The innermost axis is the vector loop; leading axes are one parallel loop.
Adjacent axes that every access walks contiguously become one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from ..ir.dims import Dim, DimLike, Symbol, bounds, ceildiv, dim_min, product, symbols_of
from ..ir.graph import Node
from ..ir.loop import Buffer, For, IndexValue, Load, Stmt, Store, expression_nodes, substitute_statements
from ..ir.ops.shape import Concat, Pad, UpdateSlice
from .inline import Index, Inliner, Names, flatten_index, loop_symbol, unflatten_index

PARALLEL_CHUNK = 2048  # elements of a one-dimensional loop that a thread takes at once
ENOUGH_PARALLEL = 16   # iterations of the parallel loop after which no further axis is merged into it


@dataclass(frozen=True)
class Region:
    """What one loop nest writes: `shape` positions, each at `place(index)` of the buffer, with `value(inliner, index)`."""

    buffer: Buffer
    shape: tuple[DimLike, ...]
    place: Callable[[Index], Index]
    value: Callable[[Inliner, Index], Node]


def regions_of(node: Node, buffer: Buffer, in_place: bool = False) -> list[Region]:
    """The regions that make up a node's value. `in_place`: the buffer already holds update_slice's first operand."""
    def whole(index: Index) -> Index:
        return index

    match node.op:
        case Concat(axis):
            regions = []
            offset: DimLike = 0
            for part in node.inputs:
                regions.append(Region(buffer, part.shape, _shifted(axis, offset), _reads(part)))
                offset = offset + part.shape[axis]
            return regions
        case Pad(low, _):
            x, value = node.inputs
            inner = Region(buffer, x.shape, lambda index: tuple(i + n for i, n in zip(index, low)), _reads(x))
            return [*_borders(node, buffer, value), inner]
        case UpdateSlice(start, step):
            x, update = node.inputs
            window = Region(buffer, update.shape,
                            lambda index: tuple(s + i * by for s, i, by in zip(start, index, step)), _reads(update))
            return [window] if in_place else [Region(buffer, x.shape, whole, _reads(x)), window]
    return [Region(buffer, node.shape, whole, _reads(node))]


def _reads(node: Node) -> Callable[[Inliner, Index], Node]:
    return lambda inliner, index: inliner.value(node, index)


def _shifted(axis: int, offset: DimLike) -> Callable[[Index], Index]:
    return lambda index: (*index[:axis], index[axis] + offset, *index[axis + 1:])


def _borders(node: Node, buffer: Buffer, value: Node) -> list[Region]:
    """The padding of each axis as two slabs, which leave out what the axes before them have covered."""
    op, x = node.op, node.inputs[0]
    assert isinstance(op, Pad)
    regions = []
    for axis in range(x.rank):
        for first, count in ((0, op.low[axis]), (op.low[axis] + x.shape[axis], op.high[axis])):
            if count == 0:
                continue
            shape = (*x.shape[:axis], count, *node.shape[axis + 1:])
            base = (*op.low[:axis], first, *(0 for _ in node.shape[axis + 1:]))
            regions.append(Region(buffer, shape, _based(base), lambda inliner, index: inliner.value(value, ())))
    return regions


def _based(base: Index) -> Callable[[Index], Index]:
    return lambda index: tuple(i + b for i, b in zip(index, base))


# --- loop nests ------------------------------------------------------------------------------------------------------


def lower_region(region: Region, inliner: Inliner, lanes: int) -> Stmt:
    """The loop nest of one region, in the names and buffers of a fresh inliner."""
    names = inliner.names
    axes = [(*loop_symbol(names.fresh("i"), n), n) for n in region.shape]
    value = region.value(inliner, tuple(at for _, at, _ in axes))
    place = flatten_index(region.place(tuple(at for _, at, _ in axes)), region.buffer.shape)
    body: tuple[Stmt, ...] = (*inliner.block, Store(region.buffer.name, (place,), value))
    loops = [(s, n) for s, _, n in axes if n != 1]
    loops, body = merge_axes(loops, body, names)
    return nest(loops, body, lanes, names)


Loops = list[tuple[Symbol, DimLike]]


def merge_axes(loops: Loops, body: tuple[Stmt, ...], names: Names) -> tuple[Loops, tuple[Stmt, ...]]:
    """Neighbouring axes that every access walks as if they were one become one.

    Left alone where the body has inner blocks or lets, or uses an index as a value: those read the single indices.
    """
    if len(loops) < 2 or any(not isinstance(s, Store) for s in body):
        return loops, body
    accesses: list[DimLike] = []
    for statement in body:
        assert isinstance(statement, Store)
        accesses.append(statement.index[0])
        for node in expression_nodes(statement.value):
            if isinstance(node.op, IndexValue):
                return loops, body
            if isinstance(node.op, Load):
                accesses.append(node.op.index[0])
    groups: list[Loops] = [[loops[0]]]
    for before, after in itertools.pairwise(loops):
        joined = all(_contiguous(a, before[0], after[0], after[1]) for a in accesses)
        groups[-1].append(after) if joined else groups.append([after])
    merged: Loops = []
    binding: dict[str, DimLike] = {}
    for group in groups:
        found, at = loop_symbol(names.fresh("i"), product(n for _, n in group)) if len(group) > 1 else (group[0][0], None)
        merged.append((found, product(n for _, n in group)))
        if at is not None:
            # every access is linear with strides as of one axis, so the flat position may stand in the last index
            binding |= {s.name: 0 for s, _ in group[:-1]} | {group[-1][0].name: at}
    return merged, substitute_statements(body, binding)


def _contiguous(access: DimLike, outer: Symbol, inner: Symbol, size: DimLike) -> bool:
    first, second = coefficient_of(access, outer), coefficient_of(access, inner)
    return first is not None and second is not None and first == second * size


def coefficient_of(size: DimLike, symbol: Symbol) -> DimLike | None:
    """The factor c in size = c * symbol + rest where neither c nor rest contains the symbol; None where not linear."""
    if isinstance(size, int):
        return 0
    total: DimLike = 0
    for monomial, coefficient in size.terms:
        power = 0
        for atom, count in monomial:
            if atom == symbol:
                power = count
            elif not isinstance(atom, Symbol) and any(s.name == symbol.name for s in symbols_of(atom.left, atom.right)):
                return None
        if power > 1:
            return None
        if power == 1:
            rest = tuple((a, p) for a, p in monomial if a != symbol)
            total = total + (Dim(((rest, coefficient),)) if rest else coefficient)
    return total


def nest(loops: Loops, body: tuple[Stmt, ...], lanes: int, names: Names) -> Stmt:
    """Loops around the body: leading axes make one parallel loop, the last is the vector loop, those between serial."""
    if not loops:
        return around([], body, names)
    if len(loops) == 1:
        return _chunked(loops[0][0], loops[0][1], body, lanes, names)
    last, extent = loops[-1]
    return around(loops[:-1], (For(last, extent, "vector", body, lanes),), names)


def around(loops: Loops, body: tuple[Stmt, ...], names: Names) -> Stmt:
    """A parallel loop over the leading axes (as many as it takes to keep threads busy), serial loops over the others."""
    if not loops:
        return For(Symbol(names.fresh("once"), 0, 0), 1, "parallel", body)
    count = 1
    while count < len(loops) and bounds(product(n for _, n in loops[:count]))[0] < ENOUGH_PARALLEL:
        count += 1
    lead = loops[:count]
    outer = lead[0][0]
    if len(lead) > 1:
        outer, at = loop_symbol(names.fresh("t"), product(n for _, n in lead))
        index = unflatten_index(at, [n for _, n in lead])
        body = substitute_statements(body, {s.name: i for (s, _), i in zip(lead, index)})
    for symbol, size in reversed(loops[count:]):
        body = (For(symbol, size, "serial", body),)
    return For(outer, product(n for _, n in lead), "parallel", body)


def _chunked(symbol: Symbol, extent: DimLike, body: tuple[Stmt, ...], lanes: int, names: Names) -> Stmt:
    """One axis: a parallel loop over chunks of a vector loop."""
    if bounds(extent)[1] <= PARALLEL_CHUNK:
        return For(Symbol(names.fresh("once"), 0, 0), 1, "parallel", (For(symbol, extent, "vector", body, lanes),))
    chunks = ceildiv(extent, PARALLEL_CHUNK)
    chunk, at = loop_symbol(names.fresh("c"), chunks)
    inner, position = loop_symbol(names.fresh("i"), PARALLEL_CHUNK)
    body = substitute_statements(body, {symbol.name: at * PARALLEL_CHUNK + position})
    whole = isinstance(extent, int) and extent % PARALLEL_CHUNK == 0
    count = PARALLEL_CHUNK if whole else dim_min(PARALLEL_CHUNK, extent - at * PARALLEL_CHUNK)
    return For(chunk, chunks, "parallel", (For(inner, count, "vector", body, lanes),))
