"""What the nests of `weight_only_dot` on a GPU's matrix units share: loops over fragments and pieces, and the epilogue."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ..ir.dims import DimLike, ceildiv, dim_min, divides
from ..ir.graph import Node
from ..ir.loop import Buffer, CopyAsync, For, If, Load, Stmt, Store
from ..ir.types import F32, TensorType
from .coded_weights import Nest, Operands
from .contraction import is_at_most, named_parts
from .inline import Index, Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index

Place = tuple[DimLike, ...]
STAGES = 4   # of shared memory
COPIED = 16  # bytes


class UnitTile(Struct, frozen=True):
    """What a block of `threads` computes: `rows` x `columns` of the result, by warps that lie `down` x `across`, as many sets of them as
    there are `slices` of the contraction. For at least `least` and at most `most` rows (0: any number)."""

    rows: int
    columns: int
    down: int
    across: int
    threads: int
    slices: int = 1
    least: int = 0
    most: int = 0


class UnitNest(Nest):
    """One block loop."""

    def __init__(self, node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, tile: UnitTile) -> None:
        super().__init__(node, result, out, operands, inliner, 1)
        self.tile: UnitTile = tile
        self.warps = tile.down * tile.across * tile.slices
        part = (self.warps, tile.rows // tile.down, tile.columns // tile.across)
        self.sums = Buffer(self.names.fresh("sums"), F32, part, "fragment")

    def _blocks(self, body: Callable[[], tuple[Stmt, ...]]) -> Stmt:
        """The loop over blocks, neighbours for tiles below one another."""
        tile = self.tile
        shape = (-(-self.op.columns // tile.columns), ceildiv(self.rows, tile.rows))
        count = shape[0] * shape[1]
        if tile.most:
            count = count * is_at_most(self.rows, tile.most)
        elif tile.least > 1:
            count = count * (1 - is_at_most(self.rows, tile.least - 1))
        variable, at = loop_symbol(self.names.fresh("t"), count)
        lets, (across, below) = named_parts(self.inliner, ["right", "below"], unflatten_index(at, shape))
        self.first_column, self.first_row = across * tile.columns, below * tile.rows
        return For(variable, count, "block", (*lets, *body()))

    def _warps(self, make: Callable[[DimLike, DimLike, DimLike, DimLike], tuple[Stmt, ...]]) -> For:
        """A loop over warps: `make(warp, slice, place down, place across)`."""
        warp, w = loop_symbol(self.names.fresh("w"), self.warps)
        in_slice = self.tile.down * self.tile.across
        within = w % in_slice if self.tile.slices > 1 else w
        return For(warp, self.warps, "warp", make(w, w // in_slice, within // self.tile.across, within % self.tile.across))

    def _elements(self, make: Callable[[Place, DimLike, DimLike, DimLike], list[Stmt] | tuple[Stmt, ...]], columns: int = 0) -> Stmt:
        """A loop over the elements of fragments: `make(element, slice, row of the block, column)`. `columns`: of a warp, where it is others
        than those of its part of the tile."""
        _, rows, wide = self.sums.shape
        wide = columns or wide
        assert isinstance(rows, int) and isinstance(wide, int)

        def of_warp(w: DimLike, part: DimLike, down: DimLike, across: DimLike) -> tuple[Stmt, ...]:
            lane, e = loop_symbol(self.names.fresh("e"), rows * wide)
            lets, (row, column) = named_parts(self.inliner, ["row", "column"], (down * rows + e // wide, across * wide + e % wide))
            body = make((w, e // wide, e % wide), part, row, column)
            return (For(lane, rows * wide, "lane", (*lets, *body)),)

        return self._warps(of_warp)

    def _element(self, fragment: Buffer, place: Place) -> Node:
        return Node(Load(fragment.name, place, fragment.dtype), (), TensorType(fragment.dtype, ()))

    def _threads(self, make: Callable[[DimLike], tuple[Stmt, ...]]) -> For:
        thread, t = loop_symbol(self.names.fresh("c"), self.tile.threads)
        return For(thread, self.tile.threads, "thread", make(t))

    def _pieces(self, thread: DimLike, rows: int, pieces: int, make: Callable[[DimLike, DimLike], tuple[Stmt, ...]]) -> Stmt:
        """What all threads do together for each piece of each row, neighbours for neighbouring pieces."""
        count, threads = rows * pieces, self.tile.threads
        variable, turn = loop_symbol(self.names.fresh("i"), -(-count // threads))
        place = turn * threads + thread
        lets, (row, piece) = named_parts(self.inliner, ["row", "piece"], (place // pieces, place % pieces))
        body = (*lets, *make(row, piece))
        return For(variable, -(-count // threads), "unrolled", body if count % threads == 0 else self._where(place, count, body))

    def _where(self, place: DimLike, size: DimLike, body: tuple[Stmt, ...], otherwise: tuple[Stmt, ...] = ()) -> tuple[Stmt, ...]:
        return (If(self.inliner.scalar("lt", self.inliner.index(place), self.inliner.index(size)), body, otherwise),)

    def _activations(self, target: Buffer, place: Place, source: Buffer, row: DimLike, step: DimLike, count: int,
                     whole: bool) -> CopyAsync:
        """Begins to copy so many activations of a row of the block from a step on: zeros past the last row and, where stages are not
        `whole`, the last step. Those are not read, so that few rows of a tile cost what they are."""
        inliner, inside = self.inliner, None
        limits = [(self.first_row + row, self.rows)] if not divides(self.tile.rows, self.rows) else []
        for at, size in limits if whole else [*limits, (step, self.depth)]:
            fits = inliner.scalar("lt", inliner.index(at), inliner.index(size))
            inside = fits if inside is None else inliner.scalar("and", inside, fits)
        return CopyAsync(target.name, place, source.name, ((self.first_row + row) * self.depth + step,), count, inside)

    def _column(self, column: DimLike) -> tuple[DimLike, DimLike]:
        """The panel of a column of the block, the last one where there is none, and the column in it."""
        return dim_min(self.first_column // self.width + column // self.width, self.panels - 1), column % self.width

    def _give(self, total: Node, row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
        """An element of the result, through the epilogue."""
        node, inner = self.node, self.inliner.inner()
        lets, (at, across) = named_parts(self.inliner, ["at", "across"], (self.first_row + row, self.first_column + column))
        index: Index = (*unflatten_index(at, node.shape[:-1]), across)
        value = inner.cast(total, node.dtype)
        inner.bind(node, index, lambda: value)
        stored = inner.value(self.result, reshape_index(index, node.shape, self.result.shape))
        target = flatten_index((at, across), (self.rows, node.shape[-1]))
        body: tuple[Stmt, ...] = (*inner.block, Store(self.out.name, (target,), stored))
        for place, size, tile in ((at, self.rows, self.tile.rows), (across, self.op.columns, self.tile.columns)):
            if not divides(tile, size):
                body = self._where(place, size, body)
        return (*lets, *body)
