"""Row kernels whose arrays no cache holds: a row is stored while the next one is computed.

Computing a row and storing it one after the other, a core waits for memory in the one loop and memory for the core in the other.
Here the last loop that reduces a row also stores the results of the row before it and prefetches the one behind it. Rows follow
one another in bands, of which the first row has no such neighbour before it, and the last is stored alone.

Assumes: rows of a static size. Guarantees: the same values as `rows.py` computes, in the same order of operations.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.dims import DimLike, Symbol, bounds, ceildiv, dim_min
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, Stmt, Store
from ..ir.ops.compute import Reduce
from .elements import Loops, Nest, around
from .inline import Index, loop_symbol
from .rows import AHEAD_ROW, RowKernel

BAND_ROWS = 64
LEAST_ROWS = 16


class RowBands(RowKernel):
    """The statements of a row kernel in bands."""

    def lower(self) -> Nest:
        kept = self._kept_values()
        early = {n for reduction in self.reductions[:-1] for n in self._needed(reduction)}
        element = min((b.dtype.bytes for _, b in self.whole), default=0)
        if (not isinstance(self.row_size, int) or self.row_size * element < AHEAD_ROW or not early.isdisjoint(kept)
                or not self.outer or bounds(self.outer[-1])[0] < LEAST_ROWS):
            return super().lower()
        self.in_bands = True
        rows = self.outer[-1]
        axes = [(*loop_symbol(self.names.fresh("i"), n), n) for n in self.outer[:-1]]
        band, at = loop_symbol(self.names.fresh("band"), ceildiv(rows, BAND_ROWS))
        first = (*(place for _, place, _ in axes), at * BAND_ROWS)
        loops: Loops = [(s, n) for s, n in (*((s, n) for s, _, n in axes), (band, ceildiv(rows, BAND_ROWS))) if n != 1]
        body = self._band(first, dim_min(BAND_ROWS, rows - at * BAND_ROWS), kept)
        return around(loops, tuple(body), self.names, tuple(self.vectors))

    def _band(self, first: Index, count: DimLike, kept: dict[Node, Buffer]) -> list[Stmt]:
        """Rows from `first` on. What storing a row needs waits in row buffers and, of reductions, in `carried`."""
        carried = {r: Buffer(self.names.fresh("carried"), r.dtype, (), "register") for r in self._carried()}
        found: list[Stmt] = [Alloc(buffer) for buffer in (*kept.values(), *carried.values())]
        found += self._reductions(first, kept, carried)
        following, at = loop_symbol(self.names.fresh("i"), count - 1)
        before, row = ((*first[:-1], first[-1] + at + offset) for offset in (0, 1))
        self.first_along = None
        found.append(For(following, count - 1, "serial", (*self._take_up(before, carried), *self._beside(row, before, following, kept, carried))))
        last = (*first[:-1], first[-1] + count - 1)
        found += self._take_up(last, carried)
        variable, at = self._along()
        return [*found, For(variable, self.row_size, "serial", tuple(self._results_at(last, at, kept)))]

    def _beside(self, row: Index, before: Index, following: Symbol, kept: dict[Node, Buffer],
                carried: dict[Node, Buffer]) -> list[Stmt]:
        """The reductions of a row, and in the last of their loops the results of the one before."""
        previous = self.root

        def at_place(at: DimLike) -> list[Stmt]:
            own, self.root = self.root, previous
            stored = self._results_at(before, at, kept)
            self.root = own
            return [*self._next_row(following, at), *stored]

        return self._reductions(row, kept, carried, at_place)

    def _reductions(self, row: Index, kept: dict[Node, Buffer], carried: dict[Node, Buffer],
                    beside: Callable[[DimLike], list[Stmt]] | None = None) -> list[Stmt]:
        """The reductions of a row, and what of them is carried on."""
        self.root, self.hoisted = self.outside.inner(), set()
        written: dict[Node, Buffer] = {}
        found: list[Stmt] = []
        for reduction in self.reductions:
            found += self._reduce(reduction, row, kept, written, beside if reduction is self.reductions[-1] else None)
        return [*found, *(Store(buffer.name, (), self.root.value(node, row)) for node, buffer in carried.items())]

    def _take_up(self, row: Index, carried: dict[Node, Buffer]) -> list[Stmt]:
        """What the reductions of a row were, and what is computed from them once a row."""
        self.root, self.hoisted = self.outside.inner(), set()
        for node, buffer in carried.items():
            value = self.root.latch(self.root.load(buffer, ()))
            self.root.bind(node, row, lambda value=value: value)  # type: ignore[misc]
        return [*self.root.block, *self._before_results(row)]

    def _carried(self) -> list[Node]:
        """The reductions that results need."""
        members, found, stack = set(self.nodes), dict[Node, None](), [n for n, _ in self.results]
        while stack:
            node = stack.pop()
            if node in members and node not in found:
                found[node] = None
                stack.extend(() if isinstance(node.op, Reduce) else node.inputs)
        return [n for n in self.reductions if n in found]
