"""Reductions down columns: sums, means and extremes over leading axes, with an epilogue.

Neighbouring results are neighbours in memory and their terms are not. One result at a time, or one vector, would walk
down the whole matrix for a few elements of each row. Here a block of columns is accumulated at once in memory of its own,
so that rows are read as they lie; several rows meet the accumulators at a time, which halves what these cost and makes
long chains of additions shorter. No column is divided between threads.

Rows of few elements (`FEW`) leave most of a vector empty. Where they follow one another in memory, as many as fit `WIDE`
accumulators are taken as one long row, whose parts are combined at the end. Where the number of columns is known at run
time only there are both bodies.

The loops are built serial; their vectors are steps of the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..ir.caps import Caps
from ..ir.dims import DimLike, Symbol, bounds, ceildiv, dim_max, dim_min, divides, product, size_of, symbols_of
from ..ir.graph import Graph, Node
from ..ir.loop import Alloc, Buffer, Check, For, If, IndexValue, Let, Load, Stmt, Store, expression_nodes, expressions_of, loop_variable
from ..ir.loop_proofs import linear_factor
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
from ..ir.schedule import Step
from ..ir.types import INDEX
from .elements import Loops, Nest, around
from .inline import UNROLL_LIMIT, Index, Inliner, Names, flatten_index, loop_symbol, reshape_index, term_of

BLOCK_BYTES = 4096  # of accumulators: they stay in the first level of memory, and enough of each row is read in one go
ROWS = 4            # that meet the accumulators at a time
WIDE, FEW = 64, 8   # accumulators of rows side by side, and columns that rows of this kind have at most


def lower_columns(body: Graph, buffers: Mapping[Node, Buffer], out: Buffer, names: Names, caps: Caps) -> Nest | None:
    """The loop nest of a group around one reduction; None where it does not run down columns."""
    core = _core(body)
    if core is None:
        return None
    assert isinstance(core.op, Reduce)
    lanes = caps.lanes(accumulator_dtype(core.dtype))
    if bounds(product(core.inputs[0].shape[a] for a in core.op.axes))[1] <= UNROLL_LIMIT:
        return None
    return _Lowering(core, body.results[0], out, Inliner(buffers, names, caps.has_fma), lanes).lower()


def _core(body: Graph) -> Node | None:
    """The reduction of a group whose other nodes need no loop and leave what is computed from it where it is."""
    nodes = body.nodes()
    loops = [n for n in nodes if isinstance(n.op, (Reduce, ReduceWindow, Conv, Dot, ArgReduce))]
    if len(loops) != 1 or len(body.results) != 1 or not isinstance(loops[0].op, Reduce) or loops[0].rank == 0:
        return None
    core = loops[0]
    sizes = [n for n in core.shape if n != 1]
    behind = {core}
    for node in nodes:
        if node is core or not any(i in behind for i in node.inputs):
            continue
        if not isinstance(node.op, (Elementwise, Cast, Bitcast, Reshape)) or [n for n in node.shape if n != 1] != sizes:
            return None
        behind.add(node)
    return core if body.results[0] in behind else None


class _Lowering:
    def __init__(self, core: Node, result: Node, out: Buffer, inliner: Inliner, lanes: int) -> None:
        self.core, self.result, self.out, self.inliner, self.lanes = core, result, out, inliner, lanes
        self.names = inliner.names
        assert isinstance(core.op, Reduce)
        self.kind = core.op.kind
        dtype = accumulator_dtype(core.dtype)
        columns, most = core.shape[-1], BLOCK_BYTES // dtype.bytes
        self.width = min(most, columns) if isinstance(columns, int) else most
        self.blocks = ceildiv(columns, self.width)
        self.accumulator = Buffer(self.names.fresh("acc"), dtype, (self.width,), "local")
        self.outer = [(*loop_symbol(self.names.fresh("i"), n), n) for n in core.shape[:-1]]
        self.block, self.at_block = loop_symbol(self.names.fresh("block"), self.blocks)
        self.vectors: list[Step] = []

    def lower(self) -> Nest | None:
        """The loops over the results, and within them one of the two bodies or both."""
        least, most = bounds(self.core.shape[-1])
        narrow = self._side_by_side() if least <= FEW else None
        body = self.body() if most >= self.lanes and (narrow is None or most > FEW) else narrow
        if body is None:
            return None
        if narrow is not None and body is not narrow:
            few = self.inliner.scalar("le", self.inliner.index(self.core.shape[-1]), self.inliner.literal(FEW, INDEX))
            body = (If(few, narrow, body),)
        loops: Loops = [(s, n) for s, _, n in (*self.outer, (self.block, self.at_block, self.blocks)) if n != 1]
        return around(loops, body, self.names, tuple(self.vectors))

    def body(self) -> tuple[Stmt, ...] | None:
        """For a block of columns: clear the accumulators, add the rows up, store the results."""
        rows = self._rows()
        if rows is None:
            return None
        return (Alloc(self.accumulator), self._clear(), *rows, self._store(self.accumulator))

    def _side_by_side(self) -> tuple[Stmt, ...] | None:
        groups = _SideBySide(self)
        added = groups.body()
        return None if added is None else (*added, self._store(groups.accumulator))

    def _clear(self) -> Stmt:
        identity = self.inliner.literal(reduction_identity(self.kind, self.accumulator.dtype), self.accumulator.dtype)
        j, at = self._column()
        return self._along(j, (Store(self.accumulator.name, (at,), identity),))

    def _column(self) -> tuple[Symbol, DimLike]:
        return loop_symbol(self.names.fresh("j"), self.width)

    def _along(self, j: Symbol, body: tuple[Stmt, ...]) -> Stmt:
        """A vector loop over the columns of the block."""
        columns, width = self.core.shape[-1], self.width
        self.vectors.append(Step("vectorize", (j.name, self.lanes)))
        count = width if divides(width, columns) else dim_min(width, columns - self.at_block * width)
        return For(j, count, "serial", body)

    def _index(self, at: DimLike) -> Index:
        """The index of a result."""
        return (*(i for _, i, _ in self.outer), self.at_block * self.width + at)

    def _rows(self) -> list[Stmt] | None:
        """The loops over the rows, of which the innermost takes ROWS at a time, and then one by one what that leaves."""
        extents, _ = term_of(self.core, self._index(0))
        *loops, last = [(*loop_symbol(self.names.fresh("k"), n), n) for n in extents]
        whole, rest = last[2] // ROWS, last[2] % ROWS
        found: list[Stmt] = []
        for count, rows, first in ((whole, ROWS, 0), (rest, 1, whole * ROWS)):
            if count == 0:
                continue
            k, row = loop_symbol(self.names.fresh("k"), count)
            places = [(*(at for _, at, _ in loops), first + row * rows + r) for r in range(rows)]
            body = self._add(places)
            if body is None:
                return None
            found.append(For(k, count, "serial", (body,)))
        for k, _, extent in reversed(loops):
            found = [For(k, extent, "serial", tuple(found))]
        return found

    def _add(self, places: Sequence[Index]) -> Stmt | None:
        """Combines the terms of some rows with the accumulators, pairs first; None where a row does not lie in a line."""
        j, at = self._column()
        inside = self.inliner.inner()
        _, make = term_of(self.core, self._index(at))
        terms = [make(inside, place, self.accumulator)[1] for place in places]
        if not _in_lines((*inside.block, *(Store("", (), term) for term in terms)), j):
            return None
        while len(terms) > 1:
            terms = [inside.scalar(COMBINE[self.kind], a, b) for a, b in zip(terms[::2], terms[1::2], strict=True)]
        return self._along(j, (*inside.block, Store(self.accumulator.name, (at,), terms[0], COMBINE[self.kind])))

    def _store(self, accumulator: Buffer) -> Stmt:
        j, at = self._column()
        index = self._index(at)
        inside = self.inliner.inner()
        value = inside.cast(inside.load(accumulator, (at,)), self.core.dtype)
        inside.bind(self.core, index, lambda: value)
        # the result may have other axes of size 1 than the reduction
        stored = inside.value(self.result, reshape_index(index, self.core.shape, self.result.shape))
        place = flatten_index(index, self.core.shape)
        return self._along(j, (*inside.block, Store(self.out.name, (place,), stored)))


class _SideBySide(_Lowering):
    """Groups of rows as one row each: element (row, column) of a group is at row * columns + column, as in memory."""

    def __init__(self, whole: _Lowering) -> None:
        super().__init__(whole.core, whole.result, whole.out, whole.inliner, whole.lanes)
        self.outer, self.vectors = whole.outer, whole.vectors
        columns = self.core.shape[-1]
        self.columns = columns if bounds(columns)[0] >= 1 else dim_max(columns, 1)
        self.beside = WIDE // self.columns
        self.accumulator = Buffer(self.names.fresh("acc"), self.accumulator.dtype, (max(WIDE, self.width),), "local")
        self.width = WIDE
        self.count: DimLike = self.beside * self.columns  # that the next loop takes

    def body(self) -> tuple[Stmt, ...] | None:
        kept = len(self.vectors)
        extents, _ = term_of(self.core, self._index(0))
        if bounds(product((extents[-1], self.core.shape[-1])))[1] < ROWS * WIDE or not self._follow():
            return None
        rows = self._rows()
        if rows is None:
            del self.vectors[kept:]
            return None
        self.count = self.beside * self.columns
        return (Alloc(self.accumulator), self._clear(), *rows, self._combine())

    def _along(self, j: Symbol, body: tuple[Stmt, ...]) -> Stmt:
        self.vectors.append(Step("vectorize", (j.name, self.lanes)))
        return For(j, self.count, "serial", body)

    def _index(self, at: DimLike) -> Index:
        return (*(i for _, i, _ in self.outer), at)

    def _rows(self) -> list[Stmt] | None:
        """The loops over the groups: ROWS at a time, one by one, and the rows that fill none."""
        extents, _ = term_of(self.core, self._index(0))
        *loops, last = [(*loop_symbol(self.names.fresh("k"), n), n) for n in extents]
        groups = last[2] // self.beside
        whole, rest = groups // ROWS * ROWS, last[2] % self.beside
        found: list[Stmt] = []
        for count, together, first, width in ((groups // ROWS, ROWS, 0, self.beside), (groups % ROWS, 1, whole, self.beside),
                                              (dim_min(rest, 1), 1, groups, rest)):
            k, group = loop_symbol(self.names.fresh("k"), count)
            places = [(*(at for _, at, _ in loops), (first + group * together + r) * self.beside) for r in range(together)]
            self.count = width * self.columns
            body = self._add(places) if count != 0 else None
            if body is not None:
                found.append(For(k, count, "serial", (body,)))
            elif count != 0:
                return None
        for k, _, extent in reversed(loops):
            found = [For(k, extent, "serial", tuple(found))]
        return found

    def _follow(self) -> bool:
        """Whether each row that is added up lies right behind the one before, and nothing asks for its place."""
        extents, _ = term_of(self.core, self._index(0))
        row, column = (loop_variable(self.names.fresh(name), n) for name, n in (("row", extents[-1]), ("column", self.columns)))
        _, make = term_of(self.core, self._index(size_of(column)))
        inside = self.inliner.inner()
        _, term = make(inside, (*(0 for _ in extents[1:]), size_of(row)), self.accumulator)
        statements = (*inside.block, Store("", (), term))
        if any(isinstance(s, Check) for s in statements):
            return False
        for node in (n for s in statements for root in expressions_of(s) for n in expression_nodes(root)):
            if isinstance(node.op, IndexValue) and {row, column} & set(symbols_of(node.op.size)):
                return False
            if isinstance(node.op, Load):
                along = linear_factor(node.op.index[0], column)
                if along is None or linear_factor(node.op.index[0], row) != product((along, self.columns)):
                    return False
        return True

    def _combine(self) -> Stmt:
        """The parts of the long row, into the first of them."""
        row, r = loop_symbol(self.names.fresh("r"), WIDE - 1)
        column, j = loop_symbol(self.names.fresh("j"), FEW)
        part = self.inliner.load(self.accumulator, ((r + 1) * self.columns + j,))
        store = Store(self.accumulator.name, (j,), part, COMBINE[self.kind])
        return For(row, self.beside - 1, "serial", (For(column, self.core.shape[-1], "serial", (store,)),))


def _in_lines(statements: Sequence[Stmt], j: Symbol) -> bool:
    """Whether everything that is read lies beside one another for neighbouring values of `j`, or is the same."""
    read: set[DimLike | None] = set()
    for statement in statements:
        if not isinstance(statement, (Let, Check, Store)):
            return False
        for root in expressions_of(statement):
            read |= {linear_factor(n.op.index[0], j) for n in expression_nodes(root) if isinstance(n.op, Load)}
    return 1 in read and read <= {0, 1}
