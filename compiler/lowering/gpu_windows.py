"""Where the windows of a convolution begin, kept in the registers of threads that copy them, where images have open sizes.

A thread divides the number of a row for it. Divisions by known sizes are cheap, and compilers move them out of the loop over steps; those
by others they leave where they stand. Assumes that threads take pieces of rows in turns, neighbouring threads neighbouring pieces, and
that they divide into whole rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..ir.dims import DimLike, Symbol
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, For, Let, Stmt, Store, variable_size
from ..ir.ops.compute import PackedConv
from ..ir.types import INDEX
from .contraction import named_parts
from .inline import Inliner, loop_symbol, unflatten_index
from .left_operand import Operand, window_places


def has_open_windows(node: Node) -> bool:
    return isinstance(node.op, PackedConv) and not all(isinstance(n, int) for n in node.shape[1:-1])


class HeldPlaces:
    """Of `rows` rows of a tile, each of so many `pieces`."""

    def __init__(self, node: Node, operand: Operand, inliner: Inliner, threads: int, rows: int, pieces: int) -> None:
        self.node, self.operand, self.inliner, self.threads, self.rows, self.pieces = node, operand, inliner, threads, rows, pieces
        self.turns = rows * pieces // threads
        labels = ["start", *("place" for _ in window_places(node, 0))]
        self.buffers = [Buffer(inliner.names.fresh(label), INDEX, (threads, self.turns), "register") for label in labels]

    def fill(self, row_of: Callable[[DimLike], DimLike]) -> tuple[Stmt, ...]:
        """Statements of the block; `row_of` a row of the tile, its number in the matrix."""
        inliner = self.inliner
        thread, t = loop_symbol(inliner.names.fresh("c"), self.threads)

        def stores(turn: DimLike, row: DimLike, piece: DimLike) -> list[Stmt]:
            values = [self.operand.base(row_of(row)) + self.operand.before, *window_places(self.node, row_of(row))]
            return [Store(buffer.name, (t, turn), inliner.index(value)) for buffer, value in zip(self.buffers, values, strict=True)]

        return (*map(Alloc, self.buffers), For(thread, self.threads, "thread", (self._in_turns(t, stores),)))

    def copy(self, thread: DimLike, make: Callable[[DimLike, DimLike, DimLike, list[DimLike]], Sequence[Stmt]]) -> Stmt:
        """What a thread does for its pieces: `make(row of the tile, piece, base of the row, places of its window)`."""
        def with_places(turn: DimLike, row: DimLike, piece: DimLike) -> list[Stmt]:
            lets = []
            for buffer in self.buffers:
                found = Symbol(self.inliner.names.fresh(f"{buffer.name}_at"))
                lets.append((Let(found.name, self.inliner.inner().load(buffer, (thread, turn)), found), variable_size(found)))
            (_, start), *others = lets
            return [*(let for let, _ in lets), *make(row, piece, start - self.operand.before, [place for _, place in others])]

        return self._in_turns(thread, with_places)

    def _in_turns(self, thread: DimLike, make: Callable[[DimLike, DimLike, DimLike], list[Stmt]]) -> For:
        variable, turn = loop_symbol(self.inliner.names.fresh("i"), self.turns)
        place = unflatten_index(turn * self.threads + thread, (self.rows, self.pieces))
        lets, (row, piece) = named_parts(self.inliner, ["row", "piece"], place)
        return For(variable, self.turns, "unrolled", (*lets, *make(turn, row, piece)))


__all__ = ["HeldPlaces", "has_open_windows"]
