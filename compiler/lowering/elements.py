"""Element kernels: one loop nest over each region that the group writes, everything else computed in place.

Covers injective groups, reductions with few elements a result, windows, direct convolutions and dots, and the ops that
write regions (concat, pad, update_slice). What is built is a plain serial nest; how it runs is a schedule of checked
primitives (`ir/schedule.py`), chosen here for all strategies but contractions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, Symbol, bounds, ceildiv, dim_max, dim_min, product
from ..ir.graph import Graph, Node
from ..ir.loop import Buffer, For, IndexValue, Let, Load, Prefetch, Stmt, Store, expression_nodes, expressions_of
from ..ir.loop_proofs import linear_factor
from ..ir.ops.compute import Bitcast, Cast, Elementwise
from ..ir.ops.shape import Concat, GatherND, Pad, Reshape, Take, TakeAlong, UpdateSlice, unproved_windows
from ..ir.schedule import Schedule, Step
from .crossings import cross_in_blocks
from .inline import Index, Inliner, Names, flatten_index, loop_symbol, reshape_index
from .streams import is_far

PARALLEL_CHUNK = 2048  # elements of a one-dimensional loop that a thread takes at once
LEAST_CROSSED = 16     # iterations of each of two loops that cross from which on they run in tiles
TILE_BYTES = 128       # of a side of a tile: two lines of memory, since the next one often comes with a line
MOST_SQUARE = 16       # lanes of the squares in a tile
BAND_BYTES = 2048      # stored one after another by a band
NEAR_BAND_BYTES, NEAR_PIECE_BYTES = 1024, 128  # where a cache holds what is stored: by a band, at most of a piece that is worth one
LINE_BYTES = 64
NEAR_BYTES = 16384     # of a transpose that stays in the first level
LEAST_LANES = 4
ENOUGH_PARALLEL = 16   # iterations of the parallel loop after which no further axis is merged into it


class Region(Struct, frozen=True):
    """What one loop nest writes: `shape` positions, each at `place(index)` of the buffer, with `value(inliner, index)`."""

    buffer: Buffer
    shape: tuple[DimLike, ...]
    place: Callable[[Index], Index]
    value: Callable[[Inliner, Index], Node]


def regions_of(node: Node, buffer: Buffer) -> list[Region]:
    """The regions that make up a node's value. Those of an `overlapping` one must be written in order."""
    match node.op:
        case Concat(axis):
            regions = []
            offset: DimLike = 0
            for part in node.inputs:
                within = _regions_of_part(part, buffer)
                regions += [_moved(region, _shifted(axis, offset)) for region in within]
                offset = offset + part.shape[axis]
            return regions
        case Pad(low, _):
            x = node.inputs[0]
            if isinstance(x.op, Concat):
                return [*_padding(node, buffer), *(_moved(part, _based(low)) for part in regions_of(x, buffer))]
            shape = tuple(map(_fitting, x.shape, low, itertools.repeat(1), node.shape))
            return [*_padding(node, buffer), Region(buffer, shape, _based(low), _reads(x))]
        case UpdateSlice(start, step):
            x, update = node.inputs
            shape = tuple(map(_fitting, update.shape, start, step, x.shape))
            window = Region(buffer, shape,
                            lambda index: tuple(s + i * by for s, i, by in zip(start, index, step)), _reads(update))
            if 0 in update.shape or overlapping(node):
                copied = Region(buffer, x.shape, _same, _reads(x))
                return [copied] if 0 in update.shape else [copied, window]
            return [*_slabs(buffer, start, update.shape, lambda place: _reads(x, place)), window]
    return [Region(buffer, node.shape, _same, _reads(node))]


def _regions_of_part(part: Node, buffer: Buffer) -> list[Region]:
    """The regions of what is put beside others, from the part's own first element on."""
    padded = part
    while isinstance(padded.op, Reshape) and _adds_ones(padded):
        padded = padded.inputs[0]
    if isinstance(padded.op, Pad):
        own = regions_of(padded, Buffer(buffer.name, buffer.dtype, padded.shape, buffer.space))
        placed = (_moved(region, lambda index: reshape_index(index, padded.shape, part.shape)) for region in own)
        return [replace(region, buffer=buffer) for region in placed]
    return regions_of(part, buffer) if isinstance(part.op, Concat) else [Region(buffer, part.shape, _same, _reads(part))]


def overlapping(node: Node) -> bool:
    """Whether the last region of a node writes over what the ones before it have written: a window that skips elements, or
    that only a check at run time shows to lie inside."""
    if not isinstance(node.op, UpdateSlice):
        return False
    x, update = node.inputs
    return any(by != 1 for by in node.op.step) or bool(unproved_windows(x.shape, node.op.start, update.shape, node.op.step))


def _fitting(count: DimLike, start: DimLike, step: int, size: DimLike) -> DimLike:
    """The count of places from `start` on in an axis, in a form that shows that they fit, as they do. (Sizes may relate
    in ways that only a check at run time tells, or what a symbol stands for.)"""
    return dim_min(count, ceildiv(size - start, step))


def _same(index: Index) -> Index:
    return index


def _reads(node: Node, place: Callable[[Index], Index] = _same) -> Callable[[Inliner, Index], Node]:
    return lambda inliner, index: inliner.value(node, place(index))


def _shifted(axis: int, offset: DimLike) -> Callable[[Index], Index]:
    return lambda index: (*index[:axis], index[axis] + offset, *index[axis + 1:])


def _moved(part: Region, place: Callable[[Index], Index]) -> Region:
    """A region of an operand as one of the result, where `place` puts the operand's elements."""
    return Region(part.buffer, part.shape, lambda index: place(part.place(index)), part.value)


def border_regions(node: Node, buffer: Buffer) -> list[Region]:
    """The regions of a node but the last: the padding, or what lies around a window."""
    return _padding(node, buffer) if isinstance(node.op, Pad) else regions_of(node, buffer)[:-1]


def _padding(node: Node, buffer: Buffer) -> list[Region]:
    op, (x, value) = node.op, node.inputs
    assert isinstance(op, Pad)
    return _slabs(buffer, op.low, x.shape, lambda place: lambda inliner, index: inliner.value(value, ()))


def _slabs(buffer: Buffer, start: Index, shape: Index,
           value: Callable[[Callable[[Index], Index]], Callable[[Inliner, Index], Node]]) -> list[Region]:
    """What lies around the part of `shape` from `start` on, as two slabs an axis, which leave out what the axes before them
    have covered. `value`: what a slab stores, from where its positions lie."""
    regions = []
    for axis, whole in enumerate(buffer.shape):
        size = shape[axis]
        end = start[axis] + (size if bounds(size)[0] >= 0 else dim_max(size, 0))  # a negative one is refused before this kernel
        for first, count in ((0, start[axis]), (end, whole - end)):
            if count == 0:
                continue
            place = _based((*start[:axis], first, *(0 for _ in buffer.shape[axis + 1:])))
            regions.append(Region(buffer, (*shape[:axis], count, *buffer.shape[axis + 1:]), place, value(place)))
    return regions


def _based(base: Index) -> Callable[[Index], Index]:
    return lambda index: tuple(i + b for i, b in zip(index, base))


# --- loop nests ------------------------------------------------------------------------------------------------------

Loops = list[tuple[Symbol, DimLike]]


class Nest(Struct, frozen=True):
    """A statement of a kernel as it is first built, and the schedule chosen for it."""

    statement: Stmt
    schedule: Schedule = ()


def lower_region(region: Region, inliner: Inliner, lanes: int, caps: Caps | None = None) -> Nest:
    """The loop nest of one region, in the names and buffers of a fresh inliner."""
    names = inliner.names
    axes = [(*loop_symbol(names.fresh("i"), n), n) for n in region.shape]
    value = region.value(inliner, tuple(at for _, at, _ in axes))
    place = flatten_index(region.place(tuple(at for _, at, _ in axes)), region.buffer.shape)
    body: tuple[Stmt, ...] = (*inliner.block, Store(region.buffer.name, (place,), value))
    return nest([(s, n) for s, _, n in axes if n != 1], body, lanes, names, caps if is_far([region.buffer], caps) else None)


def lower_together(results: Sequence[Node], buffers: Sequence[Buffer], inliner: Inliner, lanes: int, caps: Caps) -> Nest:
    """One loop nest that stores several values of one shape. What more than one of them needs, or an index that is read from
    data, is computed once."""
    axes = [(*loop_symbol(inliner.names.fresh("i"), n), n) for n in results[0].shape]
    index = tuple(at for _, at, _ in axes)
    for node in _shared(results):
        inliner.latch_value(node, index)
    values = [inliner.value(node, index) if len(results) == 1 else inliner.latch_value(node, index) for node in results]
    place = flatten_index(index, results[0].shape)
    stores = (Store(buffer.name, (place,), value) for buffer, value in zip(buffers, values, strict=True))
    far = caps if is_far(buffers, caps) else None
    return nest([(s, n) for s, _, n in axes if n != 1], (*inliner.block, *stores), lanes, inliner.names, far)


def _shared(results: Sequence[Node]) -> list[Node]:
    """The nodes, operands first, that several results or indices compute at their own place, without what only these need."""
    nodes = Graph("together", [], results).nodes()
    roots = [*results, *(n.inputs[1] for n in nodes if isinstance(n.op, (Take, TakeAlong, GatherND)))]
    reached: dict[Node, set[int]] = {}
    for number, root in enumerate(roots):
        reached.setdefault(root, set()).add(number)
    found: dict[Node, None] = {}
    for node in reversed(nodes):
        if isinstance(node.op, (Elementwise, Cast, Bitcast, Concat)) or isinstance(node.op, Reshape) and _adds_ones(node):
            for operand in node.inputs:
                reached.setdefault(operand, set()).update(reached.get(node, ()))
    for node in nodes:
        found.update((n, None) for n in node.inputs if len(reached.get(n, ())) > max(1, len(reached.get(node, ()))))
    found.update((n, None) for n in results if len(reached[n]) > 1)
    computed = (Elementwise, Cast, Bitcast, Take, TakeAlong, GatherND)
    return [n for n in nodes if n in found and isinstance(n.op, computed) and n.shape == results[0].shape]


def _adds_ones(node: Node) -> bool:
    return [n for n in node.shape if n != 1] == [n for n in node.inputs[0].shape if n != 1]


def lower_border(region: Region, inliner: Inliner, lanes: int) -> Nest:
    """The loop nest of a border beside a nest that is parallel as built. So is this one: borders lie apart, which is not
    always provable from where they store."""
    found = lower_region(region, inliner, lanes)
    assert isinstance(found.statement, For)
    return Nest(replace(found.statement, kind="parallel"), tuple(s for s in found.schedule if s.primitive != "parallelize"))


def nest(loops: Loops, body: tuple[Stmt, ...], lanes: int, names: Names, far: Caps | None = None) -> Nest:
    """Loops around the body, of which the last is a vector loop. `far`: the target, where no cache of it holds what is stored."""
    if not loops:
        return around([], body, names)
    schedule, merged, finest = merge_neighbours(loops, body)
    last, _ = merged[-1]
    if _crosses(merged, finest, body):
        square = min(lanes, MOST_SQUARE)
        blocks = cross_in_blocks(loops, merged, finest, body, names, lanes, square, far) if far is not None else None
        if blocks is not None:
            return around(blocks.loops, blocks.body, names, blocks.vectors)
        schedule += _in_tiles(merged, body, lanes)
    elif _narrow(merged, finest, body, lanes):
        schedule += _beside(merged, lanes, names)
    elif (number := _finer(merged, finest, body, BAND_BYTES - 1 if far is not None else NEAR_PIECE_BYTES)) is not None:
        steps, ahead = _in_bands(merged, finest, body, number, None if far is not None else lanes)
        return Nest(_serial(loops, (*ahead, *body)), (*schedule, *steps))
    elif len(merged) > 1:
        schedule += (*share(merged[:-1]), *vectors(last.name, lanes, merged[-1][1]))
    else:
        inner = names.fresh(f"{last.name}_inner")
        schedule += (*share(merged), Step("split", (last.name, PARALLEL_CHUNK, "min", inner)),
                     *vectors(inner, lanes, merged[-1][1]))
    return Nest(_serial(loops, body), schedule)


def _crosses(loops: Loops, finest: Sequence[Symbol], body: tuple[Stmt, ...]) -> bool:
    """Whether something that is read lies far apart along the last loop, and beside one another along the one before it."""
    if len(loops) < 2 or bounds(loops[-2][1])[1] < LEAST_CROSSED or bounds(loops[-1][1])[1] < LEAST_CROSSED:
        return False
    before, last = finest[-2:]
    return any(linear_factor(a, before) == 1 and linear_factor(a, last) not in (None, 0, 1) for a in _accesses(body) or ())


def _finer(loops: Loops, finest: Sequence[Symbol], body: tuple[Stmt, ...], most: int) -> int | None:
    """The number of a loop along which lies nearer what is read than along the last but one, pieces of at most `most` bytes at a
    time: what that one leaves out of each page is read by a later round of the other."""
    if len(loops) < 3 or not isinstance(loops[-1][1], int):
        return None
    element = max(s.value.dtype.bytes for s in body if isinstance(s, Store))
    before, last = finest[-2:]
    piece = loops[-1][1] * element
    if piece > most or bounds(loops[-2][1])[1] * piece <= NEAR_BAND_BYTES:
        return None
    for access in _accesses(body) or ():
        along = linear_factor(access, before)
        if linear_factor(access, last) != 1 or along is None or along == loops[-1][1]:
            continue
        for number in range(len(loops) - 2):
            nearer = linear_factor(access, finest[number])
            if isinstance(nearer, int) and nearer > 0 and not (isinstance(along, int) and nearer >= along):
                return number
    return None


def _in_bands(loops: Loops, finest: Sequence[Symbol], body: tuple[Stmt, ...], number: int,
              lanes: int | None) -> tuple[Schedule, tuple[Stmt, ...]]:
    """Bands of the last loop but one: what lies near is read in one band, and each piece that is stored is still long. Where that
    is far (`lanes` is None) whole lines are stored, and what the next band reads is prefetched: pieces as short are none that a
    core foresees."""
    before, (last, width) = loops[-2][0], loops[-1]
    assert isinstance(width, int)
    element = min(s.value.dtype.bytes for s in body if isinstance(s, Store))
    high = max(2, (BAND_BYTES if lanes is None else NEAR_BAND_BYTES) // (width * element))
    outside, band, inner = [s.name for s, _ in loops[number:-2]], f"{before.name}_outer", f"{before.name}_inner"
    moved = tuple(Step("reorder", (name, band)) for name in reversed(outside))
    blocks = (Symbol(band, 0, None), ceildiv(loops[-2][1], high))
    loads = dict.fromkeys(node.op for s in body for root in expressions_of(s) for node in expression_nodes(root)
                          if isinstance(node.op, Load) and lanes is None)
    ahead = tuple(Prefetch(load.buffer, (load.index[0] + high * (linear_factor(load.index[0], finest[-2]) or 0),)) for load in loads
                  if linear_factor(load.index[0], finest[-1]) == 1)
    lanes = lanes or max(1, LINE_BYTES // element)
    return (Step("split", (before.name, high, "min", inner)), *moved, *share([*loops[:number], blocks]),
            Step("vectorize", (last.name, fitting_lanes(lanes, width)))), ahead


def _narrow(loops: Loops, finest: Sequence[Symbol], body: tuple[Stmt, ...], lanes: int) -> bool:
    """Whether vectors along the last loop would be mostly empty, and what is read lies side by side along the one before it:
    pixels whose channels are brought together. Vectors run along that one then, and are stored apart."""
    if len(loops) < 2:
        return False
    (_, length), (_, width) = loops[-2:]
    before, last = finest[-2:]
    reads = [node.op.index[0] for s in body if isinstance(s, Store) for node in expression_nodes(s.value) if isinstance(node.op, Load)]
    return (isinstance(width, int) and 2 * width < lanes and bounds(length)[1] >= lanes
            and all(linear_factor(at, before) in (0, 1) and linear_factor(at, last) is not None for at in reads)
            and any(linear_factor(at, before) == 1 and linear_factor(at, last) != 1 for at in reads) and _accesses(body) is not None)


def _beside(loops: Loops, lanes: int, names: Names) -> Schedule:
    """Vectors along the last loop but one."""
    (before, _), (last, _) = loops[-2:]
    if len(loops) > 2:
        return (*share(loops[:-2]), Step("reorder", (before.name, last.name)), Step("vectorize", (before.name, lanes)))
    inner = names.fresh(f"{before.name}_inner")
    return (*share(loops[:1]), Step("split", (before.name, PARALLEL_CHUNK, "min", inner)), Step("reorder", (inner, last.name)),
            Step("vectorize", (inner, lanes)))


def _in_tiles(loops: Loops, body: tuple[Stmt, ...], lanes: int) -> Schedule:
    """Tiles of a transpose, for which the lines of memory that one column reads are still there for the next. Within one, squares
    of as many rows as there are lanes, which the backend transposes in registers; they follow one another along what is read.
    What is near anyway needs only these."""
    (before, length), (last, width) = loops[-2:]
    square, element = min(lanes, MOST_SQUARE), min(s.value.dtype.bytes for s in body if isinstance(s, Store))
    rows, columns = f"{before.name}_inner", f"{last.name}_inner"
    side = max(TILE_BYTES // element, square)
    if bounds(length)[1] * bounds(width)[1] * element <= NEAR_BYTES or side == square:
        return (*share(loops[:-2] or loops[:1]), Step("split", (before.name, square)), Step("split", (last.name, square)),
                Step("reorder", (rows, f"{last.name}_outer")), Step("vectorize", (columns, square)))
    several = all(bounds(n)[1] > square for n in (length, width))
    exchanged = (Step("reorder", (f"{rows}_outer", f"{columns}_outer")),) if several else ()
    return (*share(loops[:-2] or loops[:1]), Step("split", (before.name, side)), Step("split", (last.name, side)),
            Step("reorder", (rows, f"{last.name}_outer")), Step("split", (rows, square)), Step("split", (columns, square)),
            Step("reorder", (f"{rows}_inner", f"{columns}_outer")), *exchanged, Step("vectorize", (f"{columns}_inner", square)))


def fitting_lanes(lanes: int, extent: DimLike) -> int:
    """The lanes of a vector loop, fewer where most would be idle."""
    while lanes > LEAST_LANES and 2 * bounds(extent)[1] <= lanes:
        lanes //= 2
    return lanes


def vectors(name: str, lanes: int, extent: DimLike, *more: bool) -> Schedule:
    """Vectors along the loop of that name, where it may have two iterations. (The index of an element does not show the variable of a
    loop of at most one, whose vectors would store one element from all lanes.)"""
    if not isinstance(extent, int) and bounds(extent)[1] <= 1:
        return ()
    return (Step("vectorize", (name, fitting_lanes(lanes, extent), *more)),)


def around(loops: Loops, body: tuple[Stmt, ...], names: Names, further: Schedule = ()) -> Nest:
    """Loops around a body with loops of its own, which `further` may schedule."""
    loops = loops or [(Symbol(names.fresh("once"), 0, 0), 1)]
    return Nest(_serial(loops, body), (*share(loops), *further))


def _serial(loops: Loops, body: tuple[Stmt, ...]) -> Stmt:
    for symbol, extent in reversed(loops):
        body = (For(symbol, extent, "serial", body),)
    return body[0]


def share(loops: Loops) -> Schedule:
    """Threads share the leading axes: as many as it takes to keep them busy become one parallel loop."""
    names = [symbol.name for symbol, _ in loops]
    count = 1
    while count < len(loops) and bounds(product(n for _, n in loops[:count]))[0] < ENOUGH_PARALLEL:
        count += 1
    fused = (Step("fuse", tuple(names[:count])),) if count > 1 else ()
    return (Step("parallelize", (names[0],)), *fused)


def merge_neighbours(loops: Loops, body: tuple[Stmt, ...]) -> tuple[Schedule, Loops, list[Symbol]]:
    """Neighbouring axes that every access walks as if they were one become one; the loops then, and the axis of each along
    which it walks.

    Left alone where the body has inner blocks or index lets, or uses an index as a value: those read the single indices.
    """
    accesses = _accesses(body) if len(loops) > 1 else None
    if accesses is None:
        return (), loops, [symbol for symbol, _ in loops]
    groups: list[Loops] = [[loops[0]]]
    for before, after in itertools.pairwise(loops):
        joined = all(_contiguous(a, before[0], after[0], after[1]) for a in accesses)
        groups[-1].append(after) if joined else groups.append([after])
    schedule = tuple(Step("fuse", tuple(s.name for s, _ in group)) for group in groups if len(group) > 1)
    joined_loops = [(group[0][0], product(n for _, n in group)) for group in groups]
    return schedule, joined_loops, [group[-1][0] for group in groups]


def _accesses(body: tuple[Stmt, ...]) -> list[DimLike] | None:
    """The indices of all loads and stores; None where the body does more than name and store what it loads."""
    found: list[DimLike] = []
    for statement in body:
        if isinstance(statement, Store):
            found.append(statement.index[0])
        elif not isinstance(statement, Let) or statement.symbol is not None:
            return None
        for node in expression_nodes(statement.value):
            if isinstance(node.op, IndexValue):
                return None
            if isinstance(node.op, Load):
                found.append(node.op.index[0])
    return found


def _contiguous(access: DimLike, outer: Symbol, inner: Symbol, size: DimLike) -> bool:
    first, second = linear_factor(access, outer), linear_factor(access, inner)
    return first is not None and second is not None and first == second * size
