"""Windows in registers: depthwise convolutions and pooling of channels-last tensors, with an epilogue.

Each result combines a window of one channel, so vectors run along channels and nothing is summed across lanes. Computed
one position at a time, every multiply-add needs two loads. Here a tile of neighbouring positions along one axis (the
columns) is accumulated at once: the taps of a row stay in registers, and each column of the input is loaded once and
goes into all results whose windows hold it. The epilogue is computed on the accumulators.

What does not divide into whole tiles is a narrower tile where the size is static, else tiles of a few columns, as many
as are left, and single ones. Every result takes its taps in the same order, in whichever tile it lies.

Windows along the last axis, several channels a group and one channel in all are left to `elements`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import gcd, prod

from msgspec import Struct

from ..ir.caps import Caps
from ..ir.dims import DimLike, Symbol, bounds, ceildiv, dim_max, dim_min, divides, product, size_of
from ..ir.graph import Graph, Node
from ..ir.loop import Alloc, Buffer, For, If, Let, Stmt, Store, loop_variable
from ..ir.ops.compute import (
    COMBINE,
    ArgReduce,
    Bitcast,
    Cast,
    Conv,
    Dot,
    Elementwise,
    Reduce,
    ReduceWindow,
    accumulator_dtype,
    reduction_identity,
)
from ..ir.ops.shape import Reshape
from .elements import ENOUGH_PARALLEL
from .inline import Index, Inliner, Names, flatten_index, loop_symbol, reshape_index

MOST_LANES = 16    # of narrow integers
MOST_TERMS = 96    # combining steps of a tile that are spelled out
LATENCY = 2.0      # cycles that a result waits between two of its taps; other tiles run meanwhile
TILE_CYCLES = 3.0  # what a row of taps costs besides
NARROW = 3         # columns of the tiles that take the rest of an unknown width
REST = 1.05        # a second, narrower tile must be worth its code
PAGE = 4096        # bytes after which addresses share a set of the first level of memory again, on all cores that we know
LINE = 64
LOST = 8.0         # cycles of a load that must go to the second level since its set is full
NEAR = 0.75        # of the first level of memory may hold what a tile reads
BAND = 16          # rows that a thread walks down; the first of them reads other rows too
LEAST_BAND = 4


class Along(Struct, frozen=True):
    """The window along one axis: taps, and what lies between results and between taps."""

    taps: int
    stride: int
    dilation: int

    def positions(self, columns: int) -> list[int]:
        """The inputs that so many neighbouring results read, in order."""
        return sorted({c * self.stride + k * self.dilation for c in range(columns) for k in range(self.taps)})

    def tap_at(self, position: int, column: int) -> int | None:
        """The tap with which a result reads an input."""
        tap, rest = divmod(position - column * self.stride, self.dilation)
        return tap if rest == 0 and 0 <= tap < self.taps else None


class Windows(Struct, frozen=True):
    """A node whose results combine windows of `x`, each of one channel. `axes`: the window along each axis but the last;
    `weights`: what the taps are multiplied with, if anything; `column`: the axis that tiles lie along; `padding`: how far
    windows reach out of x at both ends of each axis but that one. Taps that lie there are left out."""

    node: Node
    x: Node
    weights: Node | None
    kind: str
    axes: tuple[Along, ...]
    column: int
    padding: tuple[tuple[int, int], ...]

    def rows(self) -> int:
        """The rows of a window."""
        return prod(along.taps for axis, along in enumerate(self.axes) if axis != self.column)


def lower_windows(body: Graph, buffers: Mapping[Node, Buffer], out: Buffer, names: Names, caps: Caps) -> Stmt | None:
    """The loop nest of a group around windows; None where it is no such group, or a tile would not help."""
    found = windows_of(body)
    if found is None:
        return None
    widest = max(accumulator_dtype(found.node.dtype), body.results[0].dtype, key=lambda dtype: dtype.bits)
    lanes = min(caps.lanes(widest), MOST_LANES)
    columns = _columns(found, caps)
    if columns < 2:
        return None
    return _Lowering(found, body.results[0], out, Inliner(buffers, names, caps.has_fma), columns, lanes, caps).lower()


# --- what can be computed so -----------------------------------------------------------------------------------------


def windows_of(body: Graph) -> Windows | None:
    """The windows of a group, where nothing else in it needs a loop and the rest is computed element by element."""
    nodes = body.nodes()
    loops = [n for n in nodes if isinstance(n.op, (Reduce, ReduceWindow, Conv, Dot, ArgReduce))]
    if len(loops) != 1 or len(body.results) != 1:
        return None
    found = _convolution(loops[0]) if isinstance(loops[0].op, Conv) else _pooling(loops[0])
    return found if found is not None and _only_epilogue(nodes, found.node) else None


def _convolution(node: Node) -> Windows | None:
    op, (x, w) = node.op, node.inputs
    assert isinstance(op, Conv)
    plain = all(e == 1 for e in op.input_dilation)
    if not (op.channels_last and plain and op.groups == x.shape[-1] == node.shape[-1]):
        return None
    kernel = w.shape[:-2]
    axes = [Along(1, 1, 1)]
    for taps, stride, dilation in zip(kernel, op.strides, op.dilation, strict=True):
        assert isinstance(taps, int)
        axes.append(Along(taps, stride, dilation))
    return _along_columns(node, x, w, "sum", axes, ((0, 0), *op.padding))


def _pooling(node: Node) -> Windows | None:
    op = node.op
    if not isinstance(op, ReduceWindow) or any(p != (0, 0) for p in op.padding):
        return None
    if node.rank < 2 or op.window[-1] != 1 or op.strides[-1] != 1:
        return None
    axes = [Along(*along) for along in zip(op.window, op.strides, op.dilation, strict=True)]
    return _along_columns(node, node.inputs[0], None, op.kind, axes[:-1], op.padding[:-1])


def _along_columns(node: Node, x: Node, weights: Node | None, kind: str, axes: Sequence[Along],
                   padding: tuple[tuple[int, int], ...]) -> Windows | None:
    """Tiles lie along the last axis that has windows and more than one result."""
    several = [a for a, along in enumerate(axes) if along.taps > 1 and bounds(node.shape[a])[1] > 1]
    if not several or node.shape[-1] == 1 or padding[several[-1]] != (0, 0):
        return None
    return Windows(node, x, weights, kind, tuple(axes), several[-1], padding)


def _only_epilogue(nodes: Sequence[Node], core: Node) -> bool:
    """Whether what is computed from the core keeps its elements where they are."""
    sizes = [n for n in core.shape if n != 1]
    behind = {core}
    for node in nodes:
        if node is core or not any(i in behind for i in node.inputs):
            continue
        if not isinstance(node.op, (Elementwise, Cast, Bitcast, Reshape)) or [n for n in node.shape if n != 1] != sizes:
            return False
        behind.add(node)
    return True


# --- how wide tiles are ----------------------------------------------------------------------------------------------


def _columns(found: Windows, caps: Caps) -> int:
    """The columns of a tile. Beside its accumulators vector registers hold a row of taps, a column of the input, and what
    combining and converting need."""
    along = found.axes[found.column]
    narrow = found.node.dtype.is_float and found.node.dtype.bits < 32
    registers = caps.vector_registers - narrow
    if found.weights is not None:
        registers -= along.taps + (1 if caps.has_fma else 2)
    else:
        registers -= 4 if found.kind in ("max", "min") else 2
    step = product(found.x.shape[found.column + 1:])
    step = step * found.x.dtype.bytes if isinstance(step, int) else 1
    return choose_columns(along, found.node.shape[found.column], registers, found.rows(), step, found.weights is not None,
                          caps.level1_bytes)


@lru_cache(maxsize=1024)
def choose_columns(along: Along, width: DimLike, registers: int, rows: int, step: int, weighted: bool, level1: int) -> int:
    """The columns with which a result of that width takes the fewest cycles, by a model of the core: two operations and
    two loads a cycle, and inputs `step` bytes apart that fall onto each other in the first level of memory. 1 where
    tiles do not help."""
    sets = min(PAGE // gcd(step, PAGE), PAGE // LINE)
    fits = sets * (level1 // PAGE) * NEAR

    def cycles(columns: int) -> float:
        """Of one row of taps."""
        if columns == 0:
            return 0
        inputs = len(along.positions(columns))
        lost = LOST * inputs * max(0, 1 - fits / (inputs * rows))
        if not weighted:
            operations = inputs + columns * along.taps / rows if columns > 1 else along.taps
            return max(operations, inputs) / 2 + lost
        return max(columns * along.taps / 2, (inputs + along.taps) / 2, along.taps * LATENCY) + TILE_CYCLES + lost

    def total(columns: int) -> float:
        if not isinstance(width, int):
            return cycles(columns) / columns
        rest = width % columns
        return (width // columns * cycles(columns) + cycles(rest)) * (REST if rest else 1)

    most = min(MOST_TERMS // along.taps, 16, width if isinstance(width, int) else 16)
    able = [n for n in range(1, most + 1) if (n if weighted else len(along.positions(n))) <= registers]
    return min(able, key=total, default=1)


def channel_group(found: Windows, columns: int, lanes: int, caps: Caps) -> int:
    """The vectors of channels in a group: as many as leave what a tile reads in the first level of memory."""
    channels = found.node.shape[-1]
    if not isinstance(channels, int):
        return 1
    along = found.axes[found.column]
    weights = along.taps if found.weights is not None else 0
    elements = found.rows() * (len(along.positions(columns)) + weights)
    most = max(2, int(caps.level1_bytes * NEAR) // (elements * lanes * found.x.dtype.bytes) // 2 * 2)
    vectors = -(-channels // lanes)
    return -(-vectors // -(-vectors // most))


def band_rows(height: DimLike, work: DimLike) -> int:
    """The rows that a thread walks down at once, beside so much other work to share."""
    if not isinstance(height, int):
        return BAND
    wanted = -(-ENOUGH_PARALLEL // max(int(bounds(work)[0]), 1))
    bands = max(-(-height // BAND), min(wanted, height // LEAST_BAND), 1)
    return max(-(-height // bands), 1)


# --- the loop nest ---------------------------------------------------------------------------------------------------


class _Tile(Struct, frozen=True):
    """Results beside one another: `columns` of them from `first` on, at the place `at` along the other axes but the
    last."""

    at: Index
    first: DimLike
    columns: int


class _Lowering:
    def __init__(self, found: Windows, result: Node, out: Buffer, inliner: Inliner, columns: int, lanes: int,
                 caps: Caps) -> None:
        self.found, self.node, self.result, self.out = found, found.node, result, out
        self.inliner, self.names, self.columns, self.lanes = inliner, inliner.names, columns, lanes
        self.dtype = accumulator_dtype(found.node.dtype)
        self.along = found.axes[found.column]
        self.width = found.node.shape[found.column]
        self.row = next((a for a in reversed(range(len(found.axes))) if a != found.column and found.axes[a].taps > 1
                         and found.node.shape[a] != 1), None)
        self.group = channel_group(found, columns, lanes, caps)
        self.inside: dict[int, tuple[DimLike, DimLike]] = {}  # along padded axes the first tap that reads x, and how many do

    def lower(self) -> Stmt:
        """Tiles below one another read almost the same rows, so a thread walks down a band of them, in a group of
        channels for which these rows stay in the first level of memory."""
        shape, row = self.node.shape, self.row
        others = [a for a in range(len(shape) - 1) if a not in (row, self.found.column)]
        tiles = ceildiv(self.width, self.columns)
        groups = ceildiv(ceildiv(shape[-1], self.lanes), self.group) if isinstance(shape[-1], int) else 1
        work = product(shape[a] for a in others) * tiles * groups
        height = 1 if row is None else shape[row]
        rows = band_rows(height, work)
        parts = (*(shape[a] for a in others), ceildiv(height, rows), tiles, groups)
        variable, at = loop_symbol(self.names.fresh("t"), product(parts))
        lets, (*rest, band, tile, group) = self._parts(at, parts)
        within, r = loop_symbol(self.names.fresh("row"), rows)
        place = dict(zip(others, rest))
        if row is not None:
            place[row] = band * rows + r
        taps = [let for axis, pads in enumerate(self.found.padding) if pads != (0, 0) for let in self._taps_inside(axis, place[axis])]
        body = (*taps, *self._at(tuple(place[a] for a in range(len(shape) - 1) if a != self.found.column), tile, group))
        walked = rows if divides(rows, height) else dim_min(rows, height - band * rows)
        return For(variable, product(parts), "parallel", (*lets, For(within, walked, "serial", body)))

    def _taps_inside(self, axis: int, place: DimLike) -> list[Stmt]:
        """Names the taps that read elements of x along a padded axis: the first one, and how many there are."""
        along, low, size = self.found.axes[axis], self.found.padding[axis][0], self.found.x.shape[axis]
        start = low - place * along.stride
        inliner, names = self.inliner, ("first", "end", "taps")
        first, end, count = (loop_variable(self.names.fresh(name), along.taps + 1) for name in names)
        self.inside[axis] = size_of(first), size_of(count)
        limits = (dim_min(ceildiv(dim_max(at, 0), along.dilation), along.taps) for at in (start, size + start))
        return [*(Let(at.name, inliner.index(limit), at) for at, limit in zip((first, end), limits)),
                Let(count.name, inliner.index(dim_max(size_of(end) - size_of(first), 0)), count)]

    def _at(self, place: Index, tile: DimLike, group: DimLike) -> tuple[Stmt, ...]:
        whole = self.width // self.columns
        body = self._statements(_Tile(place, tile * self.columns, self.columns), group)
        if divides(self.columns, self.width):
            return body
        return (If(self._less(tile, whole), body, self._rest(place, whole, group)),)

    def _parts(self, at: DimLike, shape: Sequence[DimLike]) -> tuple[list[Stmt], Index]:
        """The index in C order under names. It is computed as a value, not as a size: a size that divides would have to be
        the same in all kernels that are to be one (`share`)."""
        inliner = self.inliner
        rest = inliner.index(at)
        lets: list[Stmt] = []
        parts: list[DimLike] = [0] * len(shape)
        axes = [a for a, n in enumerate(shape) if n != 1]
        for axis in reversed(axes):
            size = inliner.index(shape[axis])
            found = loop_variable(self.names.fresh("at"), shape[axis])
            lets.append(Let(found.name, rest if axis == axes[0] else inliner.scalar("rem", rest, size), found))
            rest = inliner.scalar("floordiv", rest, size)
            parts[axis] = size_of(found)
        return lets, tuple(parts)

    def _less(self, left: DimLike, right: DimLike) -> Node:
        return self.inliner.scalar("lt", self.inliner.index(left), self.inliner.index(right))

    def _rest(self, place: Index, whole: DimLike, group: DimLike) -> tuple[Stmt, ...]:
        """What whole tiles leave of the columns: one narrower tile where their number is known, else some that are much
        narrower, and the last columns one by one."""
        if isinstance(whole, int) and isinstance(self.width, int):
            return self._statements(_Tile(place, whole * self.columns, self.width % self.columns), group)
        found: list[Stmt] = []
        left = self.width % self.columns
        for columns in (NARROW, 1) if self.columns > NARROW else (1,):
            each, e = loop_symbol(self.names.fresh("rest"), left // columns)
            tile = _Tile(place, self.width - left + e * columns, columns)
            found.append(For(each, left // columns, "serial", self._statements(tile, group)))
            left = left % columns
        return tuple(found)

    def _statements(self, tile: _Tile, group: DimLike) -> tuple[Stmt, ...]:
        """A tile, one vector of channels of the group after the other."""
        whole, rest = self.node.shape[-1] // self.lanes, self.node.shape[-1] % self.lanes
        found: list[Stmt] = []
        if whole != 0:
            first = group * self.group
            even = rest == 0 and divides(self.group, whole)
            count = whole if group == 0 else self.group if even else dim_min(self.group, whole - first)
            chunk, at = loop_symbol(self.names.fresh("chunk"), whole if group == 0 else self.group)
            found.append(For(chunk, count, "serial", (self._channels(tile, (first + at) * self.lanes, self.lanes),)))
        if rest != 0:
            last = self._channels(tile, whole * self.lanes, rest)
            is_last = self._less(whole, (group + 1) * self.group)
            found.append(last if group == 0 else If(is_last, (last,)))
        return tuple(found)

    def _channels(self, tile: _Tile, base: DimLike, count: DimLike) -> Stmt:
        """A tile's channels from `base` on, as many as a vector holds. Each lane has accumulators of its own: one a result,
        or where there are no weights one a column of the input, which several results share."""
        lane = Symbol(self.names.fresh("j"), 0, self.lanes - 1)
        at = size_of(lane)  # also where there is one channel: what the vector holds differs between its lanes
        size = tile.columns if self.found.weights is not None else self.along.positions(tile.columns)[-1] + 1
        accumulator = Buffer(self.names.fresh("acc"), self.dtype, (size,), "register")
        column, c = loop_symbol(self.names.fresh("c"), size)
        identity = self.inliner.literal(reduction_identity(self.found.kind, self.dtype), self.dtype)
        clear = For(column, size, "unrolled", (Store(accumulator.name, (c,), identity),))
        body = (Alloc(accumulator), clear, *self._taps(tile, base + at, accumulator),
                self._epilogue(tile, base + at, accumulator))
        return For(lane, count, "vector", body, self.lanes)

    def _taps(self, tile: _Tile, channel: DimLike, accumulator: Buffer) -> tuple[Stmt, ...]:
        """The loops over the taps. Those along the columns are spelled out, input by input: it is read once, and goes
        into each result whose window holds it."""
        axes = [a for a, along in enumerate(self.found.axes) if (along.taps > 1 or a in self.inside) and a != self.found.column]
        counts = [self.inside[a][1] if a in self.inside else self.found.axes[a].taps for a in axes]
        loops = [loop_symbol(self.names.fresh("k"), count) for count in counts]
        taps = {a: self.inside[a][0] + k if a in self.inside else k for a, (_, k) in zip(axes, loops)}
        inside = self.inliner.inner()
        weights = self._weights(inside, taps, channel)
        for position in self.along.positions(tile.columns):
            value = inside.cast(inside.value(self.found.x, self._input(tile, taps, position, channel)), self.dtype)
            if not weights:
                inside.block.append(Store(accumulator.name, (position,), value, COMBINE[self.found.kind]))
                continue
            value = inside.latch(value)
            for column in range(tile.columns):
                tap = self.along.tap_at(position, column)
                if tap is not None:
                    old = inside.load(accumulator, (column,))
                    inside.block.append(Store(accumulator.name, (column,), inside.multiply_add(value, weights[tap], old)))
        body: tuple[Stmt, ...] = tuple(inside.block)
        for count, (variable, _) in reversed(list(zip(counts, loops))):
            body = (For(variable, count, "serial", body),)
        return body

    def _weights(self, inside: Inliner, taps: Mapping[int, DimLike], channel: DimLike) -> list[Node]:
        """The taps along the columns."""
        if self.found.weights is None:
            return []
        found = []
        for tap in range(self.along.taps):
            index = [tap if a == self.found.column else taps.get(a, 0) for a in range(1, len(self.found.axes))]
            found.append(inside.latch(inside.cast(inside.value(self.found.weights, (*index, 0, channel)), self.dtype)))
        return found

    def _input(self, tile: _Tile, taps: Mapping[int, DimLike], position: int, channel: DimLike) -> Index:
        """The index into the input."""
        others = iter(tile.at)
        index: list[DimLike] = []
        for axis, along in enumerate(self.found.axes):
            if axis != self.found.column:
                index.append(next(others) * along.stride + taps.get(axis, 0) * along.dilation - self.found.padding[axis][0])
                continue
            index.append(tile.first * along.stride + position)
        return (*index, channel)

    def _total(self, inner: Inliner, accumulator: Buffer, column: DimLike) -> Node:
        """The value of a result."""
        if self.found.weights is not None:
            return inner.load(accumulator, (column,))
        first = column * self.along.stride
        total = inner.load(accumulator, (first,))
        for tap in range(1, self.along.taps):
            other = inner.load(accumulator, (first + tap * self.along.dilation,))
            total = inner.scalar(COMBINE[self.found.kind], total, other)
        return total

    def _epilogue(self, tile: _Tile, channel: DimLike, accumulator: Buffer) -> Stmt:
        column, c = loop_symbol(self.names.fresh("c"), tile.columns)
        at, place = self.found.column, tile.first + c
        index = (*tile.at[:at], place, *tile.at[at:], channel)
        inner = self.inliner.inner()
        value = inner.cast(self._total(inner, accumulator, c), self.node.dtype)
        inner.bind(self.node, index, lambda: value)
        # the result may have other axes of size 1 than the windows
        stored = inner.value(self.result, reshape_index(index, self.node.shape, self.result.shape))
        body: tuple[Stmt, ...] = (*inner.block, Store(self.out.name, (flatten_index(index, self.node.shape),), stored))
        return For(column, tile.columns, "unrolled", body)
