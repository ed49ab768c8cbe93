"""Products with weights of a few bits on a GPU's matrix units: any rows of float16 or bfloat16.

A block computes a tile of rows and columns. Activations and words of codes are copied to shared memory as they are, in several stages,
while what came before is multiplied. Threads decode a stage's words into numbers of the activations' dtype: codes less their zero, which
that dtype holds exactly. Units multiply these by runs of steps that share scales, sums in float32; after each run its sums are scaled and
added to those of the tile. Zero points that vary are not subtracted from codes: the run's sum of activations, times the point, is
subtracted from its sum of products, before that is scaled.

Rows past the last one and panels past the last one are copies of it, which nothing stores; steps past the last one have activations zero.

Assumes `choose_code_tile` gave a tile: runs fill the units' steps. Guarantees one sum an element, always in the same order.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from ..ir.caps import Caps
from ..ir.dims import DimLike, bounds, ceildiv, dim_min, divides, product
from ..ir.graph import Node
from ..ir.loop import Alloc, Buffer, Commit, CopyAsync, For, If, Load, MatmulTile, Stmt, Store, Wait
from ..ir.ops.weight_only import WORD, step_of_place
from ..ir.types import BF16, F16, F32, I32, TensorType
from .coded_weights import Nest, Operands, op_of
from .contraction import is_at_most, named_parts
from .inline import Inliner, flatten_index, loop_symbol, reshape_index, unflatten_index

UNIT_STEPS = 16           # that matrix units take at a time
LONGEST_RUN = 128
HIGHEST = 64              # rows of a tile
WIDEST, NARROWEST = 64, 32  # columns
WARPS = 4
STAGES = 4
BLOCKS_BESIDE = 2         # of a multiprocessor, which its shared memory has room for
STAGE_STEPS = {16: 256, 32: 128, HIGHEST: 64}  # by a tile's rows: where these are few, more of the weights must be under way
BLOCK_THREADS = {16: 256, 32: 128, HIGHEST: 128}  # that copy and decode, of which some have warps of the tile
COPIED = 16               # bytes
MOST_EXACT_ZERO = 256     # codes less a zero up to that are numbers of bfloat16
MAGIC, MAGIC_BITS = 2.0**23, 0x4B000000  # a float that counts its last bit by ones


class CodeTile(Struct, frozen=True):
    """What a block computes: `rows` x `columns` of the result, by warps that lie `down` x `across`, `runs` runs of `run` steps a stage.
    `least`: rows below which another nest computes."""

    rows: int
    columns: int
    down: int
    across: int
    run: int
    runs: int
    least: int = 0

    @property
    def threads(self) -> int:
        return BLOCK_THREADS[self.rows]

    @property
    def steps(self) -> int:
        """Of a stage."""
        return self.run * self.runs

    def shared_bytes(self, bits: int) -> int:
        """What the stages of a block take: activations and what is decoded, of 16 bits, and codes."""
        return STAGES * (self.rows * self.steps * 2 + self.steps * bits // 8 * self.columns) + self.steps * self.columns * 2

    def after(self, least: int) -> CodeTile:
        return replace(self, least=least)


def choose_code_tile(node: Node, caps: Caps) -> CodeTile | None:
    """The tile for a product; None where units do not take its activations or the runs that its groups consist of."""
    op, width = op_of(node), node.inputs[1].shape[-1]
    dtype = node.inputs[0].dtype
    if dtype not in (F16, BF16) or str(dtype) not in caps.matrix_units or not isinstance(width, int) or NARROWEST % width or width % 4:
        return None
    most = bounds(product(node.shape[:-1]))[1]
    rows = next((n for n in (16, 32) if most <= n), HIGHEST)
    steps = STAGE_STEPS[rows]
    run = max((n for n in range(UNIT_STEPS, min(steps, LONGEST_RUN) + 1, UNIT_STEPS) if op.group % n == 0), default=0)
    if run == 0:
        return None
    columns = WIDEST if -(-op.columns // WIDEST) * -(-most // rows) >= caps.multiprocessors else NARROWEST
    down = min(2, rows // UNIT_STEPS)
    tile = CodeTile(rows, columns, down, min(WARPS // down, columns // 16), run, max(1, steps // run))
    while tile.runs > 1 and tile.shared_bytes(op.bits) * BLOCKS_BESIDE > caps.shared_bytes:
        tile = replace(tile, runs=tile.runs // 2)
    return tile


class CodeTiles(Nest):
    """One block loop."""

    def __init__(self, node: Node, result: Node, out: Buffer, operands: Operands, inliner: Inliner, tile: CodeTile) -> None:
        super().__init__(node, result, out, operands, inliner, 1)
        self.tile = tile
        self.dtype = node.inputs[0].dtype
        fresh, shape = self.names.fresh, (tile.down * tile.across, tile.rows // tile.down, tile.columns // tile.across)
        self.stage_words = tile.steps // self.of_word
        self.near = COPIED // self.dtype.bytes
        self.left = Buffer(fresh("left"), self.dtype, (STAGES * tile.rows, tile.steps + self.near), "shared")
        self.codes = Buffer(fresh("codes"), I32, (STAGES * self.stage_words, tile.columns), "shared")
        self.right = Buffer(fresh("right"), self.dtype, (tile.steps, tile.columns + self.near), "shared")
        self.row_sums = Buffer(fresh("row_sums"), F32, (tile.rows,), "shared")
        self.part, self.sums = (Buffer(fresh(name), F32, shape, "fragment") for name in ("part", "sums"))
        self.zero = self.op.zero if 0 <= self.op.zero <= MOST_EXACT_ZERO else 0  # that codes are decoded with
        self.needs_sums = operands.points is not None or self.zero != self.op.zero
        self.copies = self.depth % self.near == 0
        self.stages = ceildiv(self.groups * self.op.group, tile.steps)

    def lower(self) -> Stmt:
        tile = self.tile
        shape = (-(-self.op.columns // tile.columns), ceildiv(self.rows, tile.rows))
        count = product(shape)
        if tile.least > 1:
            count = count * (1 - is_at_most(self.rows, tile.least - 1))
        variable, at = loop_symbol(self.names.fresh("t"), count)
        lets, (across, below) = named_parts(self.inliner, ["right", "below"], unflatten_index(at, shape))
        self.first_column, self.first_row = across * tile.columns, below * tile.rows
        shared = [self.left, self.codes, self.right, *([self.row_sums] if self.needs_sums else [])]
        memory = [Alloc(b) for b in (*shared, self.part, self.sums)]
        return For(variable, count, "block", (*lets, *memory, self._elements(self._clear), *self._contract(), self._elements(self._give)))

    # --- loops ---

    def _elements(self, make: object) -> Stmt:
        """A loop over the elements of fragments: `make(element, row of the block, column)`."""
        assert callable(make)
        tile = self.tile
        _, rows, columns = self.sums.shape
        assert isinstance(rows, int) and isinstance(columns, int)
        warp, w = loop_symbol(self.names.fresh("w"), tile.down * tile.across)
        lane, e = loop_symbol(self.names.fresh("e"), rows * columns)
        lets, (row, column) = named_parts(self.inliner, ["row", "column"], (
            w // tile.across * rows + e // columns, w % tile.across * columns + e % columns))
        body = make((w, e // columns, e % columns), row, column)
        return For(warp, tile.down * tile.across, "warp", (For(lane, rows * columns, "lane", (*lets, *body)),))

    def _element(self, fragment: Buffer, place: tuple[DimLike, ...]) -> Node:
        return Node(Load(fragment.name, place, fragment.dtype), (), TensorType(fragment.dtype, ()))

    def _pieces(self, thread: DimLike, rows: int, pieces: int, make: object) -> Stmt:
        """What all threads do together for each piece of each row, neighbours for neighbouring pieces."""
        assert callable(make)
        count, threads = rows * pieces, self.tile.threads
        variable, turn = loop_symbol(self.names.fresh("i"), -(-count // threads))
        place = turn * threads + thread
        lets, (row, piece) = named_parts(self.inliner, ["row", "piece"], (place // pieces, place % pieces))
        body = (*lets, *make(row, piece))
        return For(variable, -(-count // threads), "unrolled", body if count % threads == 0 else self._where(place, count, body))

    def _where(self, place: DimLike, size: DimLike, body: tuple[Stmt, ...], otherwise: tuple[Stmt, ...] = ()) -> tuple[Stmt, ...]:
        return (If(self.inliner.scalar("lt", self.inliner.index(place), self.inliner.index(size)), body, otherwise),)

    # --- the contraction ---

    def _contract(self) -> tuple[Stmt, ...]:
        names, inliner = self.names, self.inliner
        stage, s = loop_symbol(names.fresh("s"), STAGES - 1)
        variable, step = loop_symbol(names.fresh("k"), self.stages)
        following = step + (STAGES - 1)
        more = inliner.scalar("lt", inliner.index(following), inliner.index(self.stages))
        ahead = inliner.scalar("lt", inliner.index(s), inliner.index(self.stages))
        body = (Wait(STAGES - 2), self._copy(following, following % STAGES, more), Commit(), self._decode(step % STAGES),
                *[s for run in range(self.tile.runs) for s in self._run(step, run)])
        return (For(stage, STAGES - 1, "serial", (self._copy(s, s, ahead), Commit())), For(variable, self.stages, "serial", body))

    def _copy(self, step: DimLike, stage: DimLike, when: Node) -> Stmt:
        """Begins to copy the activations and words of a stage."""
        tile, inliner = self.tile, self.inliner
        thread, t = loop_symbol(self.names.fresh("c"), tile.threads)
        left, words, of = self.flat(self.operands.lhs), self.operands.words.name, COPIED // I32.bytes

        def activations(row: DimLike, piece: DimLike) -> tuple[Stmt, ...]:
            size = self.near if self.copies else 1
            at = step * tile.steps + piece * size
            source = dim_min(self.first_row + row, self.rows - 1) * self.depth
            place = (stage * tile.rows + row, piece * size)
            zero = inliner.literal(0.0, self.dtype)
            zeros = tuple(Store(self.left.name, (place[0], place[1] + i), zero) for i in range(size))
            if self.copies:
                bring: Stmt = CopyAsync(self.left.name, place, left.name, (source + at,), size)
            else:
                bring = Store(self.left.name, place, inliner.inner().load(left, (source + dim_min(at, self.depth - 1),)))
            return (bring,) if divides(tile.steps, self.depth) else self._where(at, self.depth, (bring,), zeros)

        def of_codes(row: DimLike, piece: DimLike) -> tuple[Stmt, ...]:
            word = dim_min(step * self.stage_words + row, self.words - 1)
            panel, column = self._column(piece * of)
            return (CopyAsync(self.codes.name, (stage * self.stage_words + row, piece * of), words,
                              ((panel * self.words + word) * self.width + column,), of),)

        body = (self._pieces(t, tile.rows, tile.steps // (self.near if self.copies else 1), activations),
                self._pieces(t, self.stage_words, tile.columns // of, of_codes))
        return For(thread, tile.threads, "thread", (If(when, body),))

    def _column(self, column: DimLike) -> tuple[DimLike, DimLike]:
        """The panel of a column of the block, the last one where there is none, and the column in it."""
        return dim_min(self.first_column // self.width + column // self.width, self.panels - 1), column % self.width

    def _decode(self, stage: DimLike) -> Stmt:
        """The words of a stage as codes less their zero."""
        thread, t = loop_symbol(self.names.fresh("c"), self.tile.threads)

        def of_word(row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
            inner = self.inliner.inner()
            word = inner.latch(inner.load(self.codes, (stage * self.stage_words + row, column)))
            for place in range(WORD // self.op.bits):
                moved = inner.scalar("shr", word, inner.literal(self.op.bits * place, I32)) if place else word
                code = inner.scalar("and", moved, inner.literal(self.mask, I32))
                value = inner.bitcast(inner.scalar("or", code, inner.literal(MAGIC_BITS, I32)), F32)
                value = inner.scalar("sub", value, inner.literal(MAGIC + self.zero, F32))
                step = row * self.of_word + step_of_place(place, self.op.bits)
                inner.block.append(Store(self.right.name, (step, column), inner.cast(value, self.dtype)))
            return tuple(inner.block)

        return For(thread, self.tile.threads, "thread", (self._pieces(t, self.stage_words, self.tile.columns, of_word),))

    def _run(self, step: DimLike, run: int) -> list[Stmt]:
        """The products of one run of a stage, scaled and added to the tile's sums."""
        tile = self.tile
        warp, w = loop_symbol(self.names.fresh("w"), tile.down * tile.across)
        _, rows, columns = self.sums.shape
        first = (step % STAGES * tile.rows + w // tile.across * rows, run * tile.run)
        multiply = MatmulTile(self.part.name, self.left.name, first, self.right.name, (run * tile.run, w % tile.across * columns), tile.run)
        group = dim_min((step * tile.runs + run) // (self.op.group // tile.run), self.groups - 1)
        made: list[Stmt] = [self._sum_rows(step % STAGES * tile.rows, run)] if self.needs_sums else []
        return [*made, For(warp, tile.down * tile.across, "warp", (multiply,)),
                self._elements(lambda element, row, column: self._scale(group, element, row, column))]

    def _sum_rows(self, first: DimLike, run: int) -> Stmt:
        """What the activations of a run add up to, row by row."""
        total = Buffer(self.names.fresh("total"), F32, (), "register")
        thread, t = loop_symbol(self.names.fresh("c"), self.tile.threads)
        turn, i = loop_symbol(self.names.fresh("i"), -(-self.tile.rows // self.tile.threads))
        variable, k = loop_symbol(self.names.fresh("j"), self.tile.run)
        row = i * self.tile.threads + t
        inner = self.inliner.inner()
        value = inner.cast(inner.load(self.left, (first + row, run * self.tile.run + k)), F32)
        body: tuple[Stmt, ...] = (
            Alloc(total), Store(total.name, (), inner.literal(0.0, F32)),
            For(variable, self.tile.run, "unrolled", (Store(total.name, (), value, "add"),)),
            Store(self.row_sums.name, (row,), inner.load(total, ())))
        body = body if self.tile.rows % self.tile.threads == 0 else self._where(row, self.tile.rows, body)
        return For(thread, self.tile.threads, "thread", (For(turn, -(-self.tile.rows // self.tile.threads), "serial", body),))

    def _scale(self, group: DimLike, element: tuple[DimLike, ...], row: DimLike, column: DimLike) -> list[Stmt]:
        inner = self.inliner.inner()
        panel, place = self._column(column)
        at = (panel * self.groups + group) * self.width + place
        value = self._element(self.part, element)
        if self.needs_sums:
            point = inner.literal(float(self.op.zero - self.zero), F32)
            if self.operands.points is not None:
                point = inner.scalar("add", self.load(inner, self.operands.points, at), point)
            value = inner.scalar("sub", value, inner.scalar("mul", point, inner.load(self.row_sums, (row,))))
        total = inner.multiply_add(value, self.load(inner, self.operands.scales, at), self._element(self.sums, element))
        return [*inner.block, Store(self.sums.name, element, total), Store(self.part.name, element, inner.literal(0.0, F32))]

    # --- the result ---

    def _clear(self, element: tuple[DimLike, ...], row: DimLike, column: DimLike) -> list[Stmt]:
        zero = self.inliner.literal(0.0, F32)
        return [Store(self.sums.name, element, zero), Store(self.part.name, element, zero)]

    def _give(self, element: tuple[DimLike, ...], row: DimLike, column: DimLike) -> tuple[Stmt, ...]:
        """An element of the result, through the epilogue."""
        node, inner = self.node, self.inliner.inner()
        lets, (at, across) = named_parts(self.inliner, ["at", "across"], (self.first_row + row, self.first_column + column))
        index = (*unflatten_index(at, node.shape[:-1]), across)
        value = inner.cast(self._element(self.sums, element), node.dtype)
        inner.bind(node, index, lambda: value)
        stored = inner.value(self.result, reshape_index(index, node.shape, self.result.shape))
        target = flatten_index((at, across), (self.rows, node.shape[-1]))
        body: tuple[Stmt, ...] = (*inner.block, Store(self.out.name, (target,), stored))
        for place, size, tile in ((at, self.rows, self.tile.rows), (across, self.op.columns, self.tile.columns)):
            if not divides(tile, size):
                body = self._where(place, size, body)
        return (*lets, *body)


__all__ = ["CodeTile", "CodeTiles", "choose_code_tile"]
