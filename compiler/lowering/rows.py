"""Row kernels: softmax, layer norm and their like in one pass over each row.

A group whose reductions all run over the same trailing axes. For each row (parallel) the reductions are computed in
order, each by a vector loop over the row; then the results are written by one more. An expensive value that several of
these loops need (the exponential of a softmax) is kept in a row buffer where the row is small. Where its size is known at
run time only, so is which: there are two bodies then, of which the one for long rows computes such values anew; and
one more for rows shorter than a vector, which runs along several rows at once.
The loops are built serial; their vectors are steps of the schedule, with reductions reassociated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..ir.dims import DimLike, Symbol, bounds, ceildiv, dim_min, product, substitute, symbols_of
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, If, Literal, Load, Prefetch, Stmt, Store, expression_nodes, expressions_of
from ..ir.loop_proofs import linear_factor
from ..ir.ops.compute import COMBINE, Cast, Elementwise, Reduce, accumulator_dtype, reduction_identity
from ..ir.schedule import Step
from ..ir.types import INDEX, DType
from .elements import Loops, Nest, around, fitting_lanes
from .inline import Index, Inliner, Names, flatten_index, loop_symbol, unflatten_index

ROW_BUFFER_BYTES = 32768
SHORT_ROW = 8     # rows of fewer elements run side by side
LINE_BYTES = 64
AHEAD_ROW = 1024          # bytes of a row from which on the next one is prefetched,
AHEAD_ALL = 1 << 20       # where all rows are as many
AHEAD_HALVES = 8192       # bytes of a row from which on the last two loops over a row prefetch a half of the next one each
LINES = 4                 # registers of the vectors of such loops: of two lines of memory each prefetches one
BLOCK_ROWS = 64   # that a thread takes at once where rows may be short
EXPENSIVE = frozenset({"exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos",
                       "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "pow",
                       "cbrt", "hypot", "div", "sqrt", "floordiv", "mod", "rem"})
# long chains of operations, of which a core works on several at a time
LONG_CHAINS = EXPENSIVE - {"div", "sqrt", "floordiv", "mod", "rem"}


def row_split(reduction: Node) -> int | None:
    """The number of leading axes that a reduction keeps, when it reduces all the others and they are trailing."""
    op = reduction.op
    if not isinstance(op, Reduce) or not op.axes:
        return None
    rank = reduction.inputs[0].rank
    outer = rank - len(op.axes)
    return outer if op.axes == tuple(range(outer, rank)) else None


def _given(value: Node) -> Callable[[], Node]:
    """What gives this value, of all that a loop binds."""
    return lambda: value


class RowKernel:
    """The statements of one row kernel."""

    def __init__(self, inliner: Inliner, nodes: Sequence[Node], results: Sequence[tuple[Node, Buffer]], lanes: int) -> None:
        self.outside = self.root = inliner
        self.names: Names = inliner.names
        self.nodes = nodes
        self.results = results
        self.reductions = [n for n in nodes if isinstance(n.op, Reduce)]
        first = self.reductions[0]
        outer = row_split(first)
        assert outer is not None
        self.outer, self.inner = first.inputs[0].shape[:outer], first.inputs[0].shape[outer:]
        self.row_size = product(self.inner)
        self.halves = self._prefetches_halves()
        self.lanes = lanes * LINES if self.halves else lanes
        self.across = False
        self.hoisted: set[Node] = set()
        self.vectors: list[Step] = []
        self.loads: list[Load] = []  # of inputs, in the first loop over a row
        self.first_along: Symbol | None = None

    def lower(self) -> Nest:
        axes = [(*loop_symbol(self.names.fresh("i"), n), n) for n in self.outer]
        row = tuple(at for _, at, _ in axes)
        loops: Loops = [(s, n) for s, _, n in axes if n != 1]
        if not isinstance(self.row_size, int) and axes and bounds(axes[-1][2])[1] >= SHORT_ROW:
            loops, body = self._in_blocks(loops, row)
        else:
            body = self._along_rows(row)
        return around(loops, tuple(body), self.names, tuple(self.vectors))

    def lower_plain(self) -> Nest:
        """One loop over rows and nothing kept, for targets that divide a row among threads."""
        axes = [(*loop_symbol(self.names.fresh("i"), n), n) for n in self.outer]
        body = self._body(tuple(at for _, at, _ in axes), {})
        return around([(s, n) for s, _, n in axes if n != 1], tuple(body), self.names, tuple(self.vectors))

    def _in_blocks(self, loops: Loops, row: Index) -> tuple[Loops, list[Stmt]]:
        """Blocks of rows that are worked on one after another, or side by side in vectors where they turn out to be short."""
        rows = self.outer[-1]
        block, at_block = loop_symbol(self.names.fresh("block"), ceildiv(rows, BLOCK_ROWS))
        count = dim_min(BLOCK_ROWS, rows - at_block * BLOCK_ROWS)
        short = self.outside.scalar("lt", self.outside.index(self.row_size), self.outside.literal(SHORT_ROW, INDEX))
        bodies = []
        for across in (True, False):
            variable, at = loop_symbol(self.names.fresh("i"), count)
            place = (*row[:-1], at_block * BLOCK_ROWS + at)
            self.across = across
            if across:
                self.vectors.append(Step("vectorize", (variable.name, min(self.lanes, SHORT_ROW))))
            body = self._body(place, {}) if across else self._along_rows(place)
            bodies.append((For(variable, count, "serial", tuple(body)),))
        blocks: Loops = [(block, ceildiv(rows, BLOCK_ROWS))] if block.upper != 0 else []
        return [*loops[:-1], *blocks], [If(short, *bodies)]

    def _along_rows(self, row: Index) -> list[Stmt]:
        """What computes one row, with expensive values in row buffers where these are large enough."""
        kept = self._kept_values()
        body = self._body(row, kept)
        if not kept or isinstance(self.row_size, int):
            return body
        most = min(int(product(buffer.shape)) for buffer in kept.values())
        small = self.root.scalar("le", self.root.index(self.row_size), self.root.literal(most, INDEX))
        return [If(small, tuple(body), tuple(self._body(row, {})))]

    def _body(self, row: Index, kept: dict[Node, Buffer]) -> list[Stmt]:
        """What computes one row, with these values in row buffers."""
        self.root, self.hoisted = self.outside.inner(), set()
        body: list[Stmt] = []
        written: dict[Node, Buffer] = {}
        for reduction in self.reductions:
            body.extend(self._reduce(reduction, row, kept, written))
        body.extend(self._write_results(row, kept, written))
        return body

    def _along(self) -> tuple[Symbol, DimLike]:
        """The variable of a loop over the row, which is to run in vectors unless rows do."""
        variable, at = loop_symbol(self.names.fresh("k"), self.row_size)
        if not self.across:
            self.vectors.append(Step("vectorize", (variable.name, fitting_lanes(self.lanes, self.row_size), True)))
        return variable, at

    def _kept_values(self) -> dict[Node, Buffer]:
        """Expensive values that more than one loop over the row reads, each with its row buffer. Those of a row whose size
        is not known share all the room evenly."""
        loops: dict[Node, int] = {}
        for root in [*self.reductions, *(n for n, _ in self.results)]:
            for node in self._needed(root):
                loops[node] = loops.get(node, 0) + 1
        full = (*self.outer, *self.inner)
        wanted = [n for n in self.nodes if isinstance(n.op, Elementwise) and n.op.function in EXPENSIVE
                  and n.shape == full and loops.get(n, 0) > 1]
        kept: dict[Node, Buffer] = {}
        room = ROW_BUFFER_BYTES
        fixed = isinstance(self.row_size, int)
        for node in wanted:
            size = self.row_size if fixed else ROW_BUFFER_BYTES // sum(n.dtype.bytes for n in wanted)
            bytes_needed = int(product((size, node.dtype.bytes)))
            if bytes_needed <= room:
                kept[node] = Buffer(self.names.fresh("row"), node.dtype, (size,), "local")
                room -= bytes_needed
        return kept

    def _needed(self, root: Node) -> set[Node]:
        """Nodes of the group that computing `root` at one place evaluates, stopping at the reductions before it."""
        members, found, stack = set(self.nodes), set(), [root]
        while stack:
            node = stack.pop()
            if node in found or node not in members or (isinstance(node.op, Reduce) and node is not root):
                continue
            found.add(node)
            stack.extend(node.inputs)
        return found

    def _hoist(self, root: Node, row: Index) -> list[Stmt]:
        """Lets of the values that are the same along the row and that the loop for `root` needs."""
        self.root.block = []
        needed = self._needed(root)
        for node in self.nodes:
            narrow = node.shape == self.outer or node.shape == (*self.outer, *(1 for _ in self.inner))
            if node not in needed or not narrow or node in self.hoisted or not isinstance(node.op, (Elementwise, Cast)):
                continue
            index = row if node.shape == self.outer else (*row, *(0 for _ in self.inner))
            value = self.root.latch_value(node, index)
            self.root.bind(node, index, _given(value), elsewhere=True)
            self.hoisted.add(node)
        return list(self.root.block)

    def _inside(self, row: Index, written: dict[Node, Buffer], at: DimLike) -> Inliner:
        """An inliner for one loop over the row: values already kept are read from their row buffers."""
        inside = self.root.inner()
        index = (*row, *unflatten_index(at, self.inner))
        for node, buffer in written.items():
            inside.bind(node, index, partial(inside.load, buffer, (at,)), elsewhere=True)
        return inside

    def _keep(self, inside: Inliner, row: Index, at: DimLike, kept: dict[Node, Buffer], written: dict[Node, Buffer],
              root: Node) -> list[tuple[Node, Buffer]]:
        """Stores of the values that this loop is the first to need."""
        needed = self._needed(root)
        first = [(n, b) for n, b in kept.items() if n in needed and n not in written]
        index = (*row, *unflatten_index(at, self.inner))
        for node, buffer in first:
            inside.block.append(Store(buffer.name, (at,), inside.latch_value(node, index)))
        return first

    def _reduce(self, reduction: Node, row: Index, kept: dict[Node, Buffer], written: dict[Node, Buffer]) -> list[Stmt]:
        op = reduction.op
        assert isinstance(op, Reduce)
        dtype = accumulator_dtype(reduction.dtype)
        accumulator = Buffer(self.names.fresh(op.kind), dtype, (), "register")
        variable, at = self._along()
        hoisted = self._hoist(reduction, row)
        inside = self._inside(row, written, at)
        new = self._keep(inside, row, at, kept, written, reduction)
        value = inside.cast(inside.value(reduction.inputs[0], (*row, *unflatten_index(at, self.inner))), dtype)
        inside.block.append(Store(accumulator.name, (), value, COMBINE[op.kind]))
        before: list[Stmt] = [*hoisted, *(Alloc(buffer) for _, buffer in new)]
        written.update(new)
        before += [Alloc(accumulator), Store(accumulator.name, (), _identity(self.root, op.kind, dtype))]
        if self.first_along is None:
            self.first_along = variable
            self.loads = [n.op for s in inside.block for e in expressions_of(s) for n in expression_nodes(e) if isinstance(n.op, Load)]
        ahead = self._next_row(row, at, 0) if reduction is self.reductions[-1] else []
        before.append(For(variable, self.row_size, "serial", (*ahead, *inside.block)))
        self.root.block = []
        result = self.root.latch(self.root.cast(self.root.load(accumulator, ()), reduction.dtype))
        before.extend(self.root.block)
        self.root.bind(reduction, row, lambda: result)
        return before

    def _write_results(self, row: Index, kept: dict[Node, Buffer], written: dict[Node, Buffer]) -> list[Stmt]:
        statements: list[Stmt] = []
        full = (*self.outer, *self.inner)
        whole = [(n, b) for n, b in self.results if n.shape == full]
        for node, buffer in self.results:
            if node.shape != full:
                inside = self.root.inner()
                index = row if node.shape == self.outer else (*row, *(0 for _ in self.inner))
                value = inside.value(node, index)
                place = flatten_index(index, buffer.shape)
                statements.extend((*inside.block, Store(buffer.name, (place,), value)))
        if whole:
            variable, at = self._along()
            for node, _ in whole:
                statements.extend(self._hoist(node, row))
            inside = self._inside(row, written, at)
            index = (*row, *unflatten_index(at, self.inner))
            stores = [Store(b.name, (flatten_index(index, b.shape),), inside.value(n, index)) for n, b in whole]
            statements.append(For(variable, self.row_size, "serial", (*self._next_row(row, at, 1), *inside.block, *stores)))
        return statements

    def _is_far(self, row_bytes: int, least: int) -> bool:
        """Whether rows of so many bytes are worth a prefetch."""
        return row_bytes >= least and bounds(product(self.outer))[0] * row_bytes >= AHEAD_ALL

    def _prefetches_halves(self) -> bool:
        """Whether the last reduction prefetches the first half of the next row and the loop that writes the second one, so that memory
        is read evenly. Loops that a core takes longer to compute than memory to read gain nothing from that, nor do short rows."""
        written = any(n.shape == (*self.outer, *self.inner) for n, _ in self.results)
        busy = any(isinstance(n.op, Elementwise) and n.op.function in LONG_CHAINS for n in self.nodes)
        if busy or not written or not isinstance(self.row_size, int) or self.row_size % 2:
            return False
        return self._is_far(self.row_size * self.reductions[0].inputs[0].dtype.bytes, AHEAD_HALVES)

    def _next_row(self, row: Index, at: DimLike, half: int) -> list[Stmt]:
        """Prefetches of the next row, while this one, which is near, is reduced for the last time and written: memory would wait for
        the core meanwhile. They are there twice, since a core that has many under way drops some, or a half in each loop."""
        assert self.first_along is not None
        last = next((s for i in reversed(row) for s in symbols_of(i)), None)
        if not isinstance(self.row_size, int) or last is None or self.across:
            return []
        found: dict[tuple[str, DimLike], Stmt] = {}
        for load in self.loads:
            index = load.index[0] if load.index else 0
            step, row_bytes = linear_factor(index, last), self.row_size * load.dtype.bytes
            if linear_factor(index, self.first_along) != 1 or not isinstance(step, int) or step == 0:
                continue
            if not self._is_far(row_bytes, AHEAD_ROW):
                continue
            lanes = fitting_lanes(self.lanes, self.row_size)
            along = at // 2 + half * (self.row_size // 2) if self.halves else at
            there = substitute(index, {self.first_along.name: along}) + step
            for offset in range(0, lanes // 2 if self.halves else lanes, max(1, LINE_BYTES // load.dtype.bytes)):
                found[load.buffer, there + offset] = Prefetch(load.buffer, (there + offset,))
        return list(found.values())


def _identity(inliner: Inliner, kind: str, dtype: DType) -> Node:
    return inliner.builder.add(Literal(reduction_identity(kind, dtype), dtype))
